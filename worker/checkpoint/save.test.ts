import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { CheckpointError } from './checkpoint-error.ts';
import type { TensorData } from './format.ts';
import { loadCheckpoint } from './load.ts';
import { openFileWriter, type FileWriter, type SavedFile } from './file-writer.ts';
import { saveCheckpointPart, shareOf, type SavedTensor } from './save.ts';

const writers: FileWriter[] = [];
const openWriter = (): FileWriter => {
  const writer = openFileWriter();
  writers.push(writer);
  return writer;
};
after(() => Promise.all(writers.map((writer) => writer.close())));

const f32 = (values: Float32Array): TensorData => ({
  dtype: 'F32',
  shape: [values.length],
  data: new Uint8Array(values.buffer),
});

function stateOf(lengths: readonly number[]): Map<string, TensorData> {
  return new Map(
    lengths.flatMap((length, index) =>
      ['', 'optimizer/first/', 'optimizer/second/'].map((prefix): [string, TensorData] => [
        `${prefix}layers/${index}/kernel`,
        f32(Float32Array.from({ length }, (_, i) => i * 0.25 + index + prefix.length)),
      ]),
    ),
  );
}

function sizesOf(state: ReadonlyMap<string, TensorData>): Map<string, number> {
  return new Map([...state].map(([name, { data }]) => [name, data.byteLength]));
}

async function save(
  dir: string,
  state: ReadonlyMap<string, TensorData>,
  worldSize: number,
): Promise<SavedFile[]> {
  const sizes = sizesOf(state);
  const parts = await Promise.all(
    Array.from({ length: worldSize }, (_, rank) => {
      const share = shareOf(sizes, rank, worldSize);
      const tensors = new Map([...state].filter(([name]) => share.has(name)));
      return saveCheckpointPart({ dir, rank, worldSize, tensors, sizes }, openWriter());
    }),
  );
  return parts.flat();
}

/** As the coordinator does once all parts are there. */
async function writeManifest(dir: string, files: readonly SavedFile[]): Promise<void> {
  const digest = '0'.repeat(64);
  const manifest = {
    ...{ formatVersion: 1, runId: 'run', step: 500, generation: 2, dataPosition: 8000, seed: 1 },
    ...{ configDigest: digest, datasetDigest: digest, files, time: '2026-01-01T00:00:00.000Z' },
  };
  await writeFile(join(dir, 'manifest.json'), JSON.stringify(manifest));
}

test('every tensor belongs to one rank, and no rank has more than a tensor above another', () => {
  const sizes = new Map(Array.from({ length: 40 }, (_, i) => [`t${i}`, ((i * 7919) % 1000) + 1]));
  for (const worldSize of [1, 2, 3, 5, 8, 64]) {
    const shares = Array.from({ length: worldSize }, (_, rank) => shareOf(sizes, rank, worldSize));
    const names = shares.flatMap((share) => [...share]);
    assert.deepEqual(names.sort(), [...sizes.keys()].sort());
    const loads = shares.map((share) =>
      [...share].reduce((sum, name) => sum + sizes.get(name)!, 0),
    );
    assert.ok(Math.max(...loads) - Math.min(...loads) <= Math.max(...sizes.values()));
  }
  const reversed = new Map([...sizes].reverse());
  assert.deepEqual([...shareOf(reversed, 1, 3)].sort(), [...shareOf(sizes, 1, 3)].sort());
});

for (const worldSize of [1, 2, 3]) {
  test(`a checkpoint of ${worldSize} workers is loaded whole`, async () => {
    const dir = join(await temporaryFolder('save'), 'checkpoints', 'step-00000500');
    const state = stateOf([1000, 3, 70_000, 2_000_000]);
    const files = await save(dir, state, worldSize);
    await writeManifest(dir, files);
    let numPieces = 0;
    const loaded = await loadCheckpoint(dir, () => numPieces++);
    assert.ok(numPieces >= worldSize, 'each file is a sign of progress at least');
    assert.deepEqual(new Map([...loaded].sort()), new Map([...state].sort()));
    const onDisk = await readdir(dir);
    assert.deepEqual(onDisk.sort(), [...files.map(({ name }) => name), 'manifest.json'].sort());
    for (const { name, sha256 } of files) {
      assert.equal(
        execFileSync('sha256sum', [join(dir, name)], { encoding: 'utf8' }).slice(0, 64),
        sha256,
      );
    }
  });
}

test('the index says in which file each model tensor is', async () => {
  const dir = await temporaryFolder('save');
  const state = stateOf([10, 20, 30]);
  await save(dir, state, 2);
  const index = JSON.parse(await readFile(join(dir, 'model.safetensors.index.json'), 'utf8')) as {
    metadata: { total_size: number };
    weight_map: Record<string, string>;
  };
  assert.equal(index.metadata.total_size, 4 * 60);
  const model = [...state.keys()].filter((name) => !name.startsWith('optimizer/'));
  assert.deepEqual(Object.keys(index.weight_map).sort(), model.sort());
  for (const [name, file] of Object.entries(index.weight_map)) {
    assert.match(file, /^model-0000[12]-of-00002\.safetensors$/);
    assert.ok((await readFile(join(dir, file))).includes(JSON.stringify(name)));
  }
});

test('one flipped bit, a cut file and a missing file are named', async () => {
  const dir = await temporaryFolder('save');
  const files = await save(dir, stateOf([5000]), 1);
  await writeManifest(dir, files);
  const failsWith = async (code: string, name: string): Promise<void> => {
    await assert.rejects(loadCheckpoint(dir), (error: unknown) => {
      assert.ok(error instanceof CheckpointError, String(error));
      assert.equal(error.code, code);
      assert.ok(error.message.includes(name), error.message);
      return true;
    });
  };
  for (const { name } of files) {
    const path = join(dir, name);
    const whole = await readFile(path);
    for (const at of [0, 9, whole.length - 1]) {
      const flipped = Buffer.from(whole);
      flipped[at]! ^= 1;
      await writeFile(path, flipped);
      await failsWith('CHECKPOINT_CORRUPT', name);
    }
    await writeFile(path, whole.subarray(0, -1));
    await failsWith('CHECKPOINT_CORRUPT', name);
    await rm(path);
    await failsWith('CHECKPOINT_INCOMPLETE', name);
    await writeFile(path, whole);
  }
  await loadCheckpoint(dir);
  await rm(join(dir, 'manifest.json'));
  await assert.rejects(loadCheckpoint(dir), { code: 'CHECKPOINT_INVALID' });
});

/** A process that saves 3 x `numElements` f32 values to the folder and prints the error's code, or `saved`. */
function saverScript(dir: string, numElements: number): string {
  return `
    import { saveCheckpointPart } from ${JSON.stringify(import.meta.resolve('./save.ts'))};
    import { openFileWriter } from ${JSON.stringify(import.meta.resolve('./file-writer.ts'))};
    const data = new Uint8Array(4 * ${numElements}).fill(7);
    const names = ['a', 'b', 'optimizer/a'];
    const tensors = new Map(names.map((name) => [name, { dtype: 'F32', shape: [${numElements}], data }]));
    const sizes = new Map(names.map((name) => [name, data.byteLength]));
    process.on('SIGXFSZ', () => {});
    console.log('saving');
    const part = { dir: ${JSON.stringify(dir)}, rank: 0, worldSize: 1, tensors, sizes };
    await saveCheckpointPart(part, openFileWriter()).then(
      () => console.log('saved'),
      (error) => console.log(error.code, '-', error.message),
    );`;
}

const nodeArguments = (script: string): string[] => [
  '--import',
  'tsx',
  '--input-type=module',
  '-e',
  script,
];

test('a share that fails leaves a checkpoint whole that others have completed meanwhile', async () => {
  const dir = await temporaryFolder('save');
  const state = stateOf([5000]);
  await writeManifest(dir, await save(dir, state, 1));
  const whole = await loadCheckpoint(dir);
  const load = (): Promise<never> => Promise.reject(new Error('the worker has left'));
  const tensors = new Map(
    [...state].map(([name, tensor]): [string, SavedTensor] => {
      const { byteLength } = tensor.data;
      return [
        name,
        name.startsWith('optimizer/') ? { ...tensor, data: { byteLength, load } } : tensor,
      ];
    }),
  );
  const late = { dir, rank: 0, worldSize: 1, tensors, sizes: sizesOf(state) };
  await assert.rejects(saveCheckpointPart(late, openWriter()));
  assert.deepEqual(await loadCheckpoint(dir), whole);
});

test('a share of fewer workers that comes too late leaves a complete checkpoint as it is', async () => {
  const dir = await temporaryFolder('late');
  const state = stateOf([3, 5]);
  await writeManifest(dir, await save(dir, state, 1));
  const whole = new Map<string, Buffer>();
  for (const name of await readdir(dir)) whole.set(name, await readFile(join(dir, name)));
  // As rank 0 of two, whose index names other files.
  const sizes = sizesOf(state);
  const share = shareOf(sizes, 0, 2);
  const tensors = new Map([...state].filter(([name]) => share.has(name)));
  const part = { dir, rank: 0, worldSize: 2, tensors, sizes };
  await assert.rejects(saveCheckpointPart(part, openWriter()), /manifest\.json is there/);
  assert.deepEqual((await readdir(dir)).sort(), [...whole.keys()].sort());
  for (const [name, bytes] of whole) assert.ok(bytes.equals(await readFile(join(dir, name))), name);
});

test('a full disk is told, and nothing is left of the share', async (t) => {
  const dir = await temporaryFolder('save');
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', dir], { stdio: 'pipe' });
  } catch (error) {
    t.skip(`no small disk can be mounted: ${String((error as { stderr?: Buffer }).stderr).trim()}`);
    return;
  }
  try {
    const { stdout } = await promisify(execFile)(
      process.execPath,
      nodeArguments(saverScript(dir, 1 << 20)),
    );
    assert.match(stdout, /CHECKPOINT_DISK_FULL - .*model-00001-of-00001\.safetensors.*ENOSPC/);
    assert.deepEqual(await readdir(dir), []);
    // The model's file fits and the optimizer's does not: neither stays.
    const second = await promisify(execFile)(
      process.execPath,
      nodeArguments(saverScript(dir, 400_000)),
    );
    assert.match(second.stdout, /CHECKPOINT_DISK_FULL - .*optimizer-00001-of-00001\.safetensors/);
    assert.deepEqual(await readdir(dir), []);
  } finally {
    execFileSync('umount', [dir]);
  }
});

test('a limit on file sizes is told, and nothing is left of the share', async () => {
  const dir = await temporaryFolder('save');
  const script = saverScript(dir, 1 << 20);
  const { stdout } = await promisify(execFile)('prlimit', [
    '--fsize=2000000',
    process.execPath,
    ...nodeArguments(script),
  ]);
  assert.match(stdout, /CHECKPOINT_TOO_LARGE - .*EFBIG/);
  assert.deepEqual(await readdir(dir), []);
});

test('a folder that cannot be made is told', async () => {
  const dir = await temporaryFolder('save');
  await writeFile(join(dir, 'file'), '');
  const state = stateOf([4]);
  const part = { rank: 0, worldSize: 1, tensors: state, sizes: sizesOf(state) };
  const inFile = { ...part, dir: join(dir, 'file', 'step-00000001') };
  await assert.rejects(saveCheckpointPart(inFile, openWriter()), {
    name: 'CheckpointError',
    code: 'CHECKPOINT_NOT_WRITABLE',
  });
});

test('a process killed while it saves leaves no file under a final name', async () => {
  const dir = await temporaryFolder('save');
  const child = spawn(process.execPath, nodeArguments(saverScript(dir, 30 << 20)), {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  // The temporary file has begun: kill in the middle of it.
  let names: string[] = [];
  while (names.length === 0) {
    assert.equal(child.exitCode, null, 'the save was over before it was seen');
    await new Promise((resolve) => setTimeout(resolve, 2));
    names = await readdir(dir);
  }
  child.kill('SIGKILL');
  await exited;
  assert.deepEqual(
    (await readdir(dir)).filter((name) => !/\.tmp-\d+$/.test(name)),
    [],
  );
});
