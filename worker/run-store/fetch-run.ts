import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  MANIFEST_FILE,
  type CheckpointManifest,
} from '../../proto/checkpoint-manifest.ts';
import { syncFolder, writeFileDurably } from '../../proto/durable-file.ts';
import { UsageError } from '../../proto/errors.ts';
import { makeOutputFolder } from '../../proto/output-path.ts';
import { parseRunPlan, RUN_PLAN_FILE, type RunPlan } from '../../proto/run-plan.ts';
import { StorageError } from '../../video/storage/store.ts';
import { damaged, JOURNAL_FILE, readStoredManifest } from './copy-run.ts';
import {
  checkpointPrefix,
  isComplete,
  journalPath,
  listCheckpoints,
  readIfThere,
  RUN_PREFIX,
  RunManifest,
  type RunStore,
} from './run-store.ts';

type ManifestFile = CheckpointManifest['files'][number];

/** The plan of the run in the store; undefined where there is none. @throws StorageError */
export async function storedPlan(from: RunStore): Promise<RunPlan | undefined> {
  const manifest = await readIfThere(from, RUN_PREFIX + MANIFEST_FILE);
  if (manifest === undefined) return undefined;
  const path = RUN_PREFIX + RUN_PLAN_FILE;
  const plan = Buffer.from(await from.store.read(path)).toString('utf8');
  return parseRunPlan(plan, `${from.root}/${path}`);
}

/**
 * Brings a run from the store into an empty folder: its files, the newest whole checkpoint, and the journal up to it;
 * the plan last, so that what is half there is no run. Gives the step to go on from; 0 where no checkpoint is whole.
 * @throws UsageError RUN_NOT_FOUND, FOLDER_NOT_EMPTY; StorageError
 */
export async function fetchRun(
  from: RunStore,
  folder: string,
  say: (line: string) => void,
): Promise<number> {
  const text = await readIfThere(from, RUN_PREFIX + MANIFEST_FILE);
  if (text === undefined) {
    throw new UsageError(
      'RUN_NOT_FOUND',
      `${from.root} holds no run: it has no ${RUN_PREFIX}${MANIFEST_FILE}. Correct the address, or AWS_ENDPOINT_URL_S3`,
    );
  }
  const { files } = RunManifest.parse(JSON.parse(text));
  await makeOutputFolder(folder);
  const found = (await readdir(folder)).filter((name) => name !== 'tls' && name !== 'logs');
  if (found.includes(RUN_PLAN_FILE))
    throw new UsageError('FOLDER_NOT_EMPTY', `${folder} holds a run already: name another folder`);
  for (const file of files) {
    if (file.name === RUN_PLAN_FILE) continue;
    await fetchFile(from, RUN_PREFIX + file.name, join(folder, file.name), file);
  }
  const step = await fetchNewestCheckpoint(from, folder, say);
  if (step !== undefined) await fetchJournal(from, step, folder);
  const plan = files.find(({ name }) => name === RUN_PLAN_FILE);
  if (plan !== undefined)
    await fetchFile(from, RUN_PREFIX + plan.name, join(folder, plan.name), plan);
  await syncFolder(folder);
  return step ?? 0;
}

/**
 * Brings the newest checkpoint that is whole; what is damaged is passed over, by name.
 * @throws StorageError
 */
export async function fetchNewestCheckpoint(
  from: RunStore,
  folder: string,
  say: (line: string) => void,
): Promise<number | undefined> {
  const steps = [...(await listCheckpoints(from))].filter(([, files]) => isComplete(files));
  for (const [step] of steps.reverse()) {
    try {
      await fetchCheckpoint(from, step, folder);
      return step;
    } catch (error) {
      const isDamage =
        error instanceof StorageError &&
        ['STORED_CHECKPOINT_DAMAGED', 'NOT_FOUND'].includes(error.code);
      if (!isDamage) throw error;
      say(`the checkpoint of step ${step} is passed over: ${error.message}`);
    }
  }
  return undefined;
}

async function fetchCheckpoint(from: RunStore, step: number, folder: string): Promise<void> {
  const manifest = await readStoredManifest(from, step);
  const path = join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step));
  try {
    for (const file of manifest.files)
      await fetchFile(from, checkpointPrefix(step) + file.name, join(path, file.name), file);
    await mkdir(path, { recursive: true });
    await syncFolder(path);
    await writeFileDurably(
      join(path, MANIFEST_FILE),
      `${JSON.stringify(manifest, undefined, 2)}\n`,
    );
    await syncFolder(join(folder, CHECKPOINTS_FOLDER));
  } catch (error) {
    await rm(path, { recursive: true, force: true });
    throw error;
  }
}

/** Its records are checked by whoever opens it. */
async function fetchJournal(from: RunStore, step: number, folder: string): Promise<void> {
  const target = join(folder, JOURNAL_FILE);
  let packed: Readable;
  try {
    packed = await from.store.stream(journalPath(step));
  } catch (error) {
    // A checkpoint is enough to go on; the ledger then begins with it.
    if (error instanceof StorageError && error.code === 'NOT_FOUND') return;
    throw error;
  }
  await pipeline(packed, createGunzip(), createWriteStream(`${target}.tmp`));
  await rename(`${target}.tmp`, target);
}

/** @throws StorageError STORED_CHECKPOINT_DAMAGED where it is not what the manifest lists */
async function fetchFile(
  { root, store }: RunStore,
  path: string,
  target: string,
  { sizeBytes, sha256 }: ManifestFile,
): Promise<void> {
  await mkdir(dirname(target), { recursive: true });
  const temporary = `${target}.tmp-${process.pid}`;
  const hash = createHash('sha256');
  const handle = await open(temporary, 'w', 0o644);
  try {
    let numBytes = 0;
    if (sizeBytes > 0) {
      for await (const chunk of (await store.stream(path)) as AsyncIterable<Buffer>) {
        numBytes += chunk.length;
        if (numBytes > sizeBytes) break;
        hash.update(chunk);
        await handle.writeFile(chunk);
      }
    }
    if (numBytes !== sizeBytes || hash.digest('hex') !== sha256)
      throw damaged(
        root,
        path,
        `has not the ${sizeBytes} bytes and the SHA-256 that its manifest lists`,
      );
    await handle.sync();
    await handle.close();
    await rename(temporary, target);
  } catch (error) {
    await handle.close().catch(() => undefined); // closed already where the rename failed
    await rm(temporary, { force: true });
    throw error;
  }
}
