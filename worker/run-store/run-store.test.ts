import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { appendFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { createServer, request, type Server } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { TestContext } from 'node:test';
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3';

import { openLog } from '../../proto/log.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { verifyCheckpoint } from '../../proto/checkpoint-manifest.ts';
import { startS3Server } from '../../video/storage/test/s3-server.ts';
import { openCopier, type CopierSetting, type CopyMetrics } from './copier.ts';
import { copyCheckpoint, copyRunFiles, pruneCopies } from './copy-run.ts';
import { fetchNewestCheckpoint, fetchRun, storedPlan } from './fetch-run.ts';
import { lookAtFiles, writeRunFileNames } from './run-files.ts';
import { listCheckpoints, openRunStore, splitRunUrl, type RunStore } from './run-store.ts';

const BUCKET = 'runs';
const PART_BYTES = 5 << 20;
const QUICK = { retryDelayMs: 1, partBytes: PART_BYTES };
const DIGEST = 'a'.repeat(64);

const server = await startS3Server();
const skip = 'skip' in server ? server.skip : false;

/** Stands between client and server; what it is told to do, it does to each request. */
let proxy: Server;
let disturb: (path: string, method: string) => 'break' | 'refuse' | undefined = () => undefined;

describe('a run in a store', { skip }, () => {
  let s3: S3Client;
  before(async () => {
    if ('skip' in server) return;
    const { port: target } = new URL(server.endpoint);
    proxy = createServer((incoming, outgoing) => {
      const what = disturb(incoming.url!, incoming.method!);
      if (what === 'refuse') {
        outgoing.writeHead(503).end();
        return;
      }
      const onward = request(
        { port: target, path: incoming.url, method: incoming.method, headers: incoming.headers },
        (answer) => {
          outgoing.writeHead(answer.statusCode!, answer.headers);
          answer.pipe(outgoing);
        },
      );
      onward.on('error', () => outgoing.destroy());
      if (what === 'break') incoming.once('data', () => incoming.destroy());
      else incoming.pipe(onward);
    }).listen(0, '127.0.0.1');
    await once(proxy, 'listening');
    Object.assign(process.env, {
      AWS_ENDPOINT_URL_S3: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
      AWS_ACCESS_KEY_ID: 'AKIAPLANTEDKEY',
      AWS_SECRET_ACCESS_KEY: 'planted-secret',
      AWS_REGION: 'us-east-1',
      AWS_EC2_METADATA_DISABLED: 'true',
      AWS_CONFIG_FILE: '/dev/null',
      AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
    });
    s3 = new S3Client({ forcePathStyle: true, region: 'us-east-1' });
    await s3.send(new CreateBucketCommand({ Bucket: BUCKET }));
  });
  after(async () => {
    s3.destroy();
    proxy.closeAllConnections();
    proxy.close();
    if (!('skip' in server)) await server.close();
  });

  const storeOf = (folder: string): RunStore =>
    openRunStore(`s3://${BUCKET}/${folder.split('/').at(-1)!}`, 'run-a', QUICK);

  it('comes back on a machine that has nothing, from the newest checkpoint that is whole', async () => {
    const folder = await makeRun();
    const store = storeOf(folder);
    await copyRunFiles(folder, store);
    for (const step of [1, 2, 3]) {
      // More than a part, so that it goes in several.
      await save(folder, step, step === 3 ? 2 * PART_BYTES + 77 : 1000);
      assert.equal(await copyCheckpoint(folder, step, store), 'copied');
      assert.equal(await copyCheckpoint(folder, step, store), 'there already');
    }
    assert.equal((await storedPlan(store))?.configDigest, DIGEST);

    const fresh = await temporaryFolder('store');
    const said: string[] = [];
    assert.equal(await fetchRun(store, fresh, (line) => said.push(line)), 3);
    assert.equal(said.length, 0);
    await verifyCheckpoint(join(fresh, 'checkpoints', 'step-00000003'), 'run-a');
    for (const name of ['run.json', 'config.resolved.yaml', 'nested/words.json', 'journal.jsonl'])
      assert.deepEqual(await readFile(join(fresh, name)), await readFile(join(folder, name)), name);
    assert.deepEqual(
      (await readdir(fresh)).sort(),
      [
        'checkpoints',
        'config.resolved.yaml',
        'journal.jsonl',
        'nested',
        'run-files.json',
        'run.json',
      ],
      'neither keys nor logs nor what was there before',
    );

    // One byte of the newest is another one now, and the one before has lost its file.
    const { path } = (await listCheckpoints(store)).get(3)!.find(({ name }) => name === MODEL)!;
    const bytes = Buffer.from(await store.store.read(path));
    bytes[1234]! ^= 1;
    const Key = `${store.root.slice(`s3://${BUCKET}/`.length)}/${path}`;
    await s3.send(new PutObjectCommand({ Bucket: BUCKET, Key, Body: bytes }));
    await store.writer.remove('checkpoints/step-00000002/model-00001-of-00001.safetensors');
    const other = await temporaryFolder('store');
    assert.equal(await fetchRun(store, other, (line) => said.push(line)), 1);
    assert.match(said[0]!, /step 3 is passed over: STORED|step 3 is passed over: s3:.*SHA-256/);
    assert.match(said[1]!, /step 2 is passed over/);
    assert.deepEqual(await readdir(join(other, 'checkpoints')), ['step-00000001']);
  });

  it('counts a checkpoint only with its manifest, and goes on with one that broke off', async (t) => {
    const folder = await makeRun();
    const store = storeOf(folder);
    await copyRunFiles(folder, store);
    await save(folder, 1, 1000);
    await copyCheckpoint(folder, 1, store);
    await save(folder, 2, PART_BYTES + 5);
    t.after(() => {
      disturb = () => undefined;
    });
    let broken = 0;
    // The second part never arrives.
    disturb = (path) => {
      if (!path.includes('partNumber=2')) return undefined;
      broken++;
      return 'break';
    };
    const done = new Set<string>();
    await assert.rejects(copyCheckpoint(folder, 2, store, { done }), { name: 'StorageError' });
    assert.equal(broken, 4, 'each attempt that a store makes');
    assert.equal(
      await fetchNewestCheckpoint(store, await temporaryFolder('store'), () => undefined),
      1,
    );
    disturb = () => undefined;
    assert.equal(await copyCheckpoint(folder, 2, store, { done }), 'copied');
    assert.equal(
      await fetchNewestCheckpoint(store, await temporaryFolder('store'), () => undefined),
      2,
    );
  });

  it('refuses a file that is not what the manifest lists, and another run of the same name', async () => {
    const folder = await makeRun();
    const store = storeOf(folder);
    await copyRunFiles(folder, store);
    await save(folder, 1, 1000);
    const path = join(folder, 'checkpoints', 'step-00000001', MODEL);
    const bytes = await readFile(path);
    bytes[5]! ^= 1;
    await writeFile(path, bytes);
    await assert.rejects(copyCheckpoint(folder, 1, store), { code: 'STORAGE_CHANGED' });
    assert.equal(
      await fetchNewestCheckpoint(store, await temporaryFolder('store'), () => undefined),
      undefined,
    );
    await writeFile(join(folder, 'run.json'), JSON.stringify({ ...PLAN, seed: 2 }));
    await assert.rejects(copyRunFiles(folder, store), /STORE_HOLDS|seed is 1 there and 2 here/);
  });

  it('keeps the newest by count and age, and removes nothing while the newest is not whole', async () => {
    const folder = await makeRun();
    const store = storeOf(folder);
    await copyRunFiles(folder, store);
    for (let step = 1; step <= 5; step++) {
      await save(folder, step, 500);
      await copyCheckpoint(folder, step, store);
    }
    await store.writer.put('checkpoints/step-00000002/notes.txt', Buffer.from('the good one'));
    await store.writer.put(`checkpoints/step-00000003/${MODEL}.tmp-1`, Buffer.from('half'));
    const now = new Date(5.5 * 3_600_000);
    const whole = `checkpoints/step-00000005/${MODEL}`;
    const bytes = Buffer.from(await store.store.read(whole));
    await store.writer.put(whole, Buffer.from(bytes).fill(1, 0, 1));
    await assert.rejects(pruneCopies(store, { keep: 2, keepHours: undefined }, { now }), {
      code: 'STORED_CHECKPOINT_DAMAGED',
    });
    assert.equal((await listCheckpoints(store)).size, 5);
    await store.writer.put(whole, bytes);
    assert.deepEqual(await pruneCopies(store, { keep: 3, keepHours: undefined }, { now }), [1, 2]);
    assert.deepEqual(await pruneCopies(store, { keep: 3, keepHours: 2 }, { now }), [3]);
    const left: string[] = [];
    for await (const { path } of store.store.list()) left.push(path);
    assert.deepEqual(
      left.filter((path) => !path.startsWith('run/')),
      [
        'checkpoints/step-00000002/notes.txt',
        ...[4, 5].flatMap((step) => [
          `checkpoints/step-0000000${step}/manifest.json`,
          `checkpoints/step-0000000${step}/${MODEL}`,
        ]),
        'journals/step-00000004.jsonl.gz',
        'journals/step-00000005.jsonl.gz',
      ],
    );
  });

  it('leaves alone what another worker still copies, until it would not be kept anyway', async () => {
    const folder = await makeRun();
    const store = storeOf(folder);
    for (const step of [1, 2, 3, 4]) await save(folder, step, 500);
    const retention = { keep: 1, keepHours: undefined };
    const removed: number[][] = [];
    // Two newer ones get there between the files of step 2 and its manifest.
    const slow = tellingStore(store, async (path) => {
      if (path !== `checkpoints/step-00000002/${MODEL}`) return;
      for (const step of [1, 3]) await copyCheckpoint(folder, step, store);
      removed.push(await pruneCopies(store, retention));
      const files = (await listCheckpoints(store)).get(2)?.map(({ name }) => name);
      assert.deepEqual(files, [MODEL]);
      assert.ok(await hasFile(store, 'journals/step-00000002.jsonl.gz'));
    });
    assert.equal(await copyCheckpoint(folder, 2, slow), 'copied');
    // A second time it is begun and given up.
    removed.push(await pruneCopies(store, retention));
    await store.writer.put(`checkpoints/step-00000002/${MODEL}`, Buffer.from('half'));
    await copyCheckpoint(folder, 4, store);
    removed.push(await pruneCopies(store, retention));
    assert.deepEqual(removed, [[1], [2], [3]]);
    assert.deepEqual([...(await listCheckpoints(store)).keys()], [4]);
  });

  it('puts again what is removed while it copies, and else leaves no manifest', async () => {
    const folder = await makeRun();
    const store = storeOf(folder);
    const path = `checkpoints/step-00000001/${MODEL}`;
    const manifest = 'checkpoints/step-00000001/manifest.json';
    await save(folder, 1, 500);
    for (const moment of [path, manifest]) {
      let times = 0;
      const disturbed = tellingStore(store, async (put) => {
        if (put === moment && times++ === 0) await store.writer.remove(path);
      });
      assert.equal(await copyCheckpoint(folder, 1, disturbed), 'copied');
      assert.ok(await hasFile(store, path), `removed after ${moment}`);
      assert.ok(await hasFile(store, manifest));
      await store.writer.remove(manifest);
    }
    const hopeless = tellingStore(store, async (put) => {
      if (put === manifest) await store.writer.remove(path);
    });
    const done = new Set<string>();
    await assert.rejects(copyCheckpoint(folder, 1, hopeless, { done }), {
      ...{ code: 'STORAGE_FAILED', retryable: true },
    });
    assert.ok(!(await hasFile(store, manifest)));
    assert.equal(await copyCheckpoint(folder, 1, store, { done }), 'copied');
    // A manifest alone, as it is left where nobody looked.
    await store.writer.remove(path);
    assert.equal(await copyCheckpoint(folder, 1, store), 'copied');
    assert.ok(await hasFile(store, path));
    assert.equal(await copyCheckpoint(folder, 1, store), 'there already');
  });

  it('counts what lacks a file among none that are kept', async () => {
    const folder = await makeRun();
    const store = storeOf(folder);
    for (const step of [1, 2, 3, 4]) {
      await save(folder, step, 500);
      await copyCheckpoint(folder, step, store);
    }
    await store.writer.remove(`checkpoints/step-00000003/${MODEL}`);
    await store.writer.put(`checkpoints/step-00000004/${MODEL}`, Buffer.from('half'));
    const retention = { keep: 2, keepHours: undefined };
    assert.deepEqual(await pruneCopies(store, retention), []);
    for (const step of [5, 6]) {
      await save(folder, step, 500);
      await copyCheckpoint(folder, step, store);
    }
    assert.deepEqual(await pruneCopies(store, retention), [1, 2]);
    // They lie behind those that were removed: the next time they go.
    assert.deepEqual([...(await listCheckpoints(store)).keys()], [3, 4, 5, 6]);
    await save(folder, 7, 500);
    await copyCheckpoint(folder, 7, store);
    assert.deepEqual(await pruneCopies(store, retention), [5]);
    assert.deepEqual([...(await listCheckpoints(store)).keys()], [6, 7]);
  });

  it('copies in the background: an outage is told and outlasted, and the newest is what gets there', async (t) => {
    const folder = await makeRun();
    const store = storeOf(folder);
    const counted = { copied: [] as number[], failed: [] as string[], bytes: 0 };
    const copier = openTestCopier(t, folder, counted);
    t.after(() => {
      disturb = () => undefined;
    });
    disturb = () => 'refuse';
    // All are there when the first attempt fails, so that the next one can take the newest.
    for (const step of [1, 2, 3]) await save(folder, step, 500);
    for (const step of [1, 2, 3]) copier.copy(step);
    while (counted.failed.length === 0) await new Promise((resolve) => setTimeout(resolve, 10));
    disturb = () => undefined;
    await copier.settled({ limitMs: 60_000, stillMs: 60_000 });
    assert.deepEqual(counted.copied, [3]);
    assert.deepEqual([...new Set(counted.failed)], ['STORAGE_UNREACHABLE']);
    assert.ok(counted.bytes > 500);
    assert.deepEqual([...(await listCheckpoints(store)).keys()], [3]);
  });

  it('gives up in time while the server is gone, and a later start catches up', async (t) => {
    const folder = await makeRun();
    const counted = { copied: [] as number[], failed: [] as string[], bytes: 0 };
    t.after(() => {
      disturb = () => undefined;
    });
    disturb = () => 'refuse';
    const copier = openTestCopier(t, folder, counted);
    await save(folder, 7, 500);
    copier.copy(7);
    const startMs = performance.now();
    await copier.settled({ limitMs: 1500, stillMs: 1500 });
    assert.ok(performance.now() - startMs < 30_000);
    await copier.close();
    assert.deepEqual(counted.copied, []);
    disturb = () => undefined;
    const next = openTestCopier(t, folder, counted);
    next.copy(7);
    await next.settled({ limitMs: 60_000, stillMs: 60_000 });
    assert.deepEqual(counted.copied, [7]);
  });

  it('is named by one address', () => {
    assert.deepEqual(splitRunUrl('s3://b/p/q/run-a/'), { store: 's3://b/p/q', runId: 'run-a' });
    assert.deepEqual(splitRunUrl('s3://b/run-a'), { store: 's3://b', runId: 'run-a' });
    assert.throws(() => splitRunUrl('s3://bucket'), { code: 'USAGE' });
  });
});

const MODEL = 'model-00001-of-00001.safetensors';
const PLAN = {
  ...{ runId: 'run-a', seed: 1, totalSteps: 9, microbatches: 2, microbatchSize: 2 },
  ...{ numTrainSamples: 11, datasetDigest: DIGEST, configDigest: DIGEST, checkpointEverySteps: 1 },
};

/** A run folder as `prepare` and a coordinator leave it. */
async function makeRun(): Promise<string> {
  const folder = await temporaryFolder('store');
  await mkdir(join(folder, 'nested'));
  await mkdir(join(folder, 'tls'));
  await writeFile(join(folder, 'tls', 'ca.key'), 'secret');
  await writeFile(join(folder, 'notes.txt'), 'my own');
  await writeFile(join(folder, 'config.resolved.yaml'), 'of a preparation that was killed');
  const before = await lookAtFiles(folder);
  // Somebody makes certificates while the run is prepared.
  await mkdir(join(folder, 'workers'));
  for (const name of ['ca.key', 'ca.pem', 'token', 'workers/worker-0.key'])
    await writeFile(join(folder, name), 'secret');
  await writeFile(join(folder, 'config.resolved.yaml'), 'model: {}\n');
  await writeFile(join(folder, 'nested', 'words.json'), '["a"]');
  await writeRunFileNames(folder, { before, more: ['run.json'] });
  await writeFile(join(folder, 'run.json'), JSON.stringify(PLAN));
  await mkdir(join(folder, 'logs'));
  return folder;
}

/** A checkpoint as workers and a coordinator write it. */
async function save(folder: string, step: number, sizeBytes: number): Promise<void> {
  const path = join(folder, 'checkpoints', `step-${String(step).padStart(8, '0')}`);
  await mkdir(path, { recursive: true });
  const content = createHash('shake256', { outputLength: sizeBytes }).update(`${step}`).digest();
  await writeFile(join(path, MODEL), content);
  const sha256 = createHash('sha256').update(content).digest('hex');
  const manifest = {
    ...{ formatVersion: 1, runId: 'run-a', step, generation: 1, dataPosition: 4 * step, seed: 1 },
    ...{ configDigest: DIGEST, datasetDigest: DIGEST, files: [{ name: MODEL, sizeBytes, sha256 }] },
    time: new Date(step * 3_600_000).toISOString(),
  };
  await writeFile(join(path, 'manifest.json'), JSON.stringify(manifest));
  await appendFile(join(folder, 'journal.jsonl'), `{"step":${step}}\n`);
}

/** The store, of which `tell` hears what was put; nothing goes on until it is through. */
function tellingStore(store: RunStore, tell: (path: string) => Promise<void>): RunStore {
  const { writer } = store;
  return {
    ...store,
    writer: {
      ...writer,
      async put(path, ...rest) {
        await writer.put(path, ...rest);
        await tell(path);
      },
      async putFile(path, ...rest) {
        await writer.putFile(path, ...rest);
        await tell(path);
      },
    },
  };
}

async function hasFile({ store }: RunStore, wanted: string): Promise<boolean> {
  for await (const { path } of store.list()) if (path === wanted) return true;
  return false;
}

function openTestCopier(
  t: TestContext,
  folder: string,
  counted: { copied: number[]; failed: string[]; bytes: number },
) {
  const metrics: CopyMetrics = {
    copied: (step) => counted.copied.push(step),
    copyFailed: (code) => counted.failed.push(code),
    copyBytes: (numBytes) => (counted.bytes += numBytes),
  };
  const setting: CopierSetting = {
    ...{ folder, runId: 'run-a', store: `s3://${BUCKET}/${folder.split('/').at(-1)!}` },
    ...{ keep: 2, keepHours: undefined },
  };
  const log = openLog({}, { file: join(folder, 'logs', 'log.jsonl') });
  const copier = openCopier(setting, { log, metrics, retryDelayMs: 50 });
  t.after(() => copier.close());
  return copier;
}
