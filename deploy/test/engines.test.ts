import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, symlink } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { before, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine } from '../../worker/backend/engine.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import {
  findTensorflow,
  installTensorflow,
  tensorflowCacheDir,
  type TensorflowInstallation,
} from '../../worker/tensorflow/install.ts';
import { videoloom } from './command.ts';

const work = await temporaryFolder('work');
/** Why these tests cannot run here. */
let skip: string | false = false;
let installation: TensorflowInstallation;

// Into the user's cache: the first run takes a minute, later ones nothing.
before(async () => {
  const { code, output } = await videoloom(['engine', 'install', 'tensorflow'], { cwd: work });
  skip = /TENSORFLOW_COMPILER_MISSING: .*/.exec(output)?.[0] ?? false;
  if (skip !== false) return;
  assert.equal(code, 0, output);
  installation = (await findTensorflow(tensorflowCacheDir(process.env)))!;
});

test('list and doctor know the installed engine', async (context) => {
  if (skip !== false) {
    context.skip(skip);
    return;
  }
  const listed = await videoloom(['engine', 'list'], { cwd: work });
  assert.match(listed.output, /^tensorflow +@tensorflow\/tfjs-node 4\.22\.0 +\/.*tfjs-node$/m);
  const diagnosed = await videoloom(['engine', 'doctor', 'tensorflow'], { cwd: work });
  assert.equal(diagnosed.code, 0, diagnosed.output);
  assert.match(diagnosed.output, /^tensorflowVersion: 2\.\d+\.\d+$/m);
  assert.match(diagnosed.output, /^computes: true$/m);
});

// Both compute in float32 with other orders of summation: 1e-7 a sum, and ten updates carry it on (2e-7 was seen).
const RELATIVE_TOLERANCE = 1e-5;

test('ten steps of the demo have the losses that they have with xla, in plain JavaScript too', async (context) => {
  const train = async (engine: string): Promise<Commit[]> => {
    const overrides = ['data.demoTrainClips=12', 'data.demoHeldOutClips=4'];
    const { code, output } = await videoloom(
      [
        ...['train', 'videobert', '--preset', 'tiny', '--workers', '1', '--steps', '10'],
        ...['--out', engine, `engine.name=${engine}`, ...overrides],
      ],
      { cwd: work },
    );
    assert.equal(code, 0, output);
    return commitsOf(join(work, engine));
  };
  const compiled = await train('xla');
  assert.equal(compiled.length, 10);
  for (const engine of skip === false ? ['cpu', 'tensorflow'] : ['cpu']) {
    const eager = await train(engine);
    assert.equal(eager.length, 10);
    for (const [i, { step, objectives, gradientNorm }] of compiled.entries()) {
      near(eager[i]!.gradientNorm, gradientNorm, `${engine}, step ${step}: gradient norm`);
      for (const [k, { name, lossSum, count }] of objectives.entries()) {
        const other = eager[i]!.objectives[k]!;
        assert.deepEqual([other.name, other.count], [name, count]);
        near(other.lossSum, lossSum, `${engine}, step ${step}: ${name}`);
      }
    }
  }
  if (skip !== false) context.diagnostic(`without the tensorflow engine: ${skip}`);
  // Who goes on with a run goes on with its engine.
  const other = await videoloom(['resume', 'xla', 'engine.name=cpu'], { cwd: work });
  assert.equal(other.code, 2, other.output);
  assert.match(other.output, /RUN_DIFFERS: .*engine\.name: "xla", now "cpu"/);
  const norms = compiled.map(({ gradientNorm }) => gradientNorm);
  assert.ok(new Set(norms).size === 10, 'the parameters move');
});

test('its functions donate, hand through and differentiate as those of the cpu engine', async (context) => {
  if (skip !== false) {
    context.skip(skip);
    return;
  }
  const cacheDir = userCacheDir(process.env);
  const results: number[][] = [];
  for (const name of ['cpu', 'tensorflow'] as const) {
    const engine = await openEngine({ engine: name, cacheDir, threads: 4 });
    assert.equal(engine.name, name);
    const step = engine.compile(
      (weights: tf.Tensor, rows: tf.Tensor, picks: tf.Tensor) => {
        const loss = (w: tf.Tensor): tf.Scalar => {
          const logits = tf.matMul(tf.gather(rows, picks), w);
          const logSoftmax = tf.logSoftmax(logits);
          return tf.neg(tf.mean(tf.mul(logSoftmax, tf.oneHot(picks, 2))));
        };
        const { grad, value } = tf.valueAndGrad(loss)(weights);
        const isLarge = tf.greater(tf.abs(grad), 0.01);
        return { next: tf.sub(weights, grad), value, rows, first: tf.argMax(isLarge) };
      },
      { name: 'step', donate: [0] },
    );
    const weights = engine.upload(Float32Array.of(0.5, -1, 2, 0.25), [2, 2]);
    const rows = engine.upload(Float32Array.of(1, 2, 3, -4), [2, 2]);
    const picks = engine.upload(Int32Array.of(1, 0, 1), [3]);
    const held = tf.memory().numTensors;
    const made = await step(weights, rows, picks);
    assert.ok(weights.isDisposed);
    assert.ok(!rows.isDisposed);
    assert.notEqual(made.rows, rows);
    assert.equal(tf.memory().numTensors, held - 1 + 4, `${name}: nothing is left over`);
    const { next, value, first } = made;
    results.push([...(await next.data()), ...(await value.data()), ...(await first.data())]);
    rows.dispose();
    assert.deepEqual([...(await made.rows.data())], [1, 2, 3, -4]);
    tf.dispose([made, picks]);
    assert.equal(await step.lower(rows, rows, rows), undefined);
    engine.close();
  }
  const [plain, native] = results;
  for (const [i, value] of plain!.entries()) near(native![i]!, value, `value ${i}`);
});

test('where its own binary can be downloaded, that is taken', async (context) => {
  if (skip !== false) {
    context.skip(skip);
    return;
  }
  // A mirror as the package's scripts know them, of an archive with the library and one with the binding.
  const mirror = join(work, 'mirror');
  const libraries = join(installation.folder, 'deps/lib');
  await mkdir(join(mirror, 'lib'), { recursive: true });
  for (const name of await readdir(libraries))
    await symlink(join(libraries, name), join(mirror, 'lib', name));
  const archives = new Map([
    ['libtensorflow', execFileSync('tar', ['-czC', mirror, 'lib'])],
    [
      'CPU-linux',
      execFileSync('tar', [
        '-czC',
        join(installation.folder, 'lib'),
        basename(dirname(installation.binding)),
      ]),
    ],
  ]);
  const asked: string[] = [];
  const server = createServer(({ url }, response) => {
    asked.push(url!);
    const archive = [...archives].find(([name]) => basename(url!).startsWith(name))?.[1];
    response.writeHead(archive === undefined ? 404 : 200).end(archive);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  try {
    const phases: string[] = [];
    const taken = await installTensorflow({
      cacheDir: join(work, 'prebuilt'),
      env: {
        ...process.env,
        TFJS_NODE_CDN_STORAGE: origin,
        npm_config_tfjs_binding_binary_host_mirror: origin,
      },
      onProgress: (detail) => phases.push(detail),
    });
    assert.equal(taken.origin, 'prebuilt');
    assert.equal(taken.tensorflowVersion, installation.tensorflowVersion);
    assert.equal(asked.length, 2, asked.join(' '));
    assert.deepEqual(phases, [
      'npm install @tensorflow/tfjs-node 4.22.0',
      'looking for its own binary',
    ]);
  } finally {
    server.close();
  }
});

interface Commit {
  readonly type: string;
  readonly step: number;
  readonly gradientNorm: number;
  readonly objectives: readonly { name: string; lossSum: number; count: number }[];
}

async function commitsOf(run: string): Promise<Commit[]> {
  const lines = (await readFile(join(run, 'journal.jsonl'), 'utf8')).trimEnd().split('\n');
  return lines.map((line) => JSON.parse(line) as Commit).filter(({ type }) => type === 'commit');
}

function near(actual: number, expected: number, what: string): void {
  assert.ok(
    Math.abs(actual - expected) <= RELATIVE_TOLERANCE * Math.max(1, Math.abs(expected)),
    `${what}: ${actual}, and ${expected} was expected`,
  );
}
