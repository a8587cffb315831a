import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import {
  checkpointFolderName,
  CheckpointManifest,
  CHECKPOINTS_FOLDER,
  isCheckpointFile,
  MANIFEST_FILE,
  readManifest,
} from '../../proto/checkpoint-manifest.ts';
import { digestFile } from '../../proto/durable-file.ts';
import { parseRunPlan, readRunPlan, RUN_PLAN_FILE } from '../../proto/run-plan.ts';
import { StorageError } from '../../video/storage/store.ts';
import { readRunFileNames } from './run-files.ts';
import {
  checkpointPrefix,
  checkSameRun,
  isComplete,
  journalPath,
  journalStepOf,
  JOURNALS_PREFIX,
  listCheckpoints,
  readIfThere,
  RUN_PREFIX,
  RunManifest,
  type RunStore,
  type StoredCheckpointFile,
} from './run-store.ts';

/** Name of the journal inside a run folder. */
export const JOURNAL_FILE = 'journal.jsonl';

/**
 * Puts what `prepare` made into the store, its manifest last; what is there already stays.
 * @throws StorageError; VideoloomError STORE_HOLDS_OTHER_RUN
 */
export async function copyRunFiles(
  folder: string,
  to: RunStore,
  signal?: AbortSignal,
): Promise<void> {
  const plan = await readRunPlan(folder);
  const there = await readIfThere(to, RUN_PREFIX + RUN_PLAN_FILE, signal);
  if (there !== undefined)
    checkSameRun(to.root, parseRunPlan(there, `${to.root}/${RUN_PREFIX}${RUN_PLAN_FILE}`), plan);
  const files: RunManifest['files'] = [];
  for (const name of await readRunFileNames(folder))
    files.push({ name, ...(await digestFile(join(folder, name))) });
  const manifest: RunManifest = { formatVersion: 1, runId: plan.runId, files };
  const text = `${JSON.stringify(manifest, undefined, 2)}\n`;
  const known = await readIfThere(to, RUN_PREFIX + MANIFEST_FILE, signal);
  if (known === text) return;
  const before = known === undefined ? [] : RunManifest.parse(JSON.parse(known)).files;
  for (const file of files) {
    const isThere = before.some(({ name, sha256 }) => name === file.name && sha256 === file.sha256);
    if (isThere) continue;
    await to.writer.putFile(
      RUN_PREFIX + file.name,
      { ...file, path: join(folder, file.name) },
      signal,
    );
  }
  await to.writer.put(RUN_PREFIX + MANIFEST_FILE, Buffer.from(text), signal);
}

/** What became of a checkpoint that was to be copied. */
export type CopyOutcome = 'copied' | 'there already' | 'gone from the disk';

/**
 * Puts a checkpoint and the journal into the store, the manifest last. `done` are paths that an earlier attempt put, and
 * gets those of this one.
 * @throws StorageError; VideoloomError CHECKPOINT_INVALID
 */
export async function copyCheckpoint(
  folder: string,
  step: number,
  to: RunStore,
  { done = new Set(), signal }: { readonly done?: Set<string>; readonly signal?: AbortSignal } = {},
): Promise<CopyOutcome> {
  const local = join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step));
  const prefix = checkpointPrefix(step);
  const isHere = (): Promise<boolean> =>
    stat(join(local, MANIFEST_FILE)).then(
      () => true,
      () => false,
    );
  if (!(await isHere())) return 'gone from the disk';
  try {
    const text = await readFile(join(local, MANIFEST_FILE));
    const { files } = await readManifest(local);
    const known = await readIfThere(to, prefix + MANIFEST_FILE, signal);
    if (known === text.toString()) return 'there already';
    // It counts no longer while its files are replaced.
    if (known !== undefined) await to.writer.remove(prefix + MANIFEST_FILE, signal);
    await copyJournal(folder, step, to, signal);
    for (const file of files) {
      const path = prefix + file.name;
      if (done.has(path)) continue;
      await to.writer.putFile(path, { ...file, path: join(local, file.name) }, signal);
      const { sizeBytes } = await to.store.stat(path, signal);
      if (sizeBytes !== file.sizeBytes)
        throw new StorageError(
          'STORAGE_FAILED',
          `${to.root}/${path} has ${sizeBytes} bytes there, and ${file.sizeBytes} were sent`,
          { retryable: true },
        );
      done.add(path);
    }
    await to.writer.put(prefix + MANIFEST_FILE, text, signal);
    return 'copied';
  } catch (error) {
    // The coordinator removes old checkpoints when newer ones are whole.
    if (!(await isHere())) return 'gone from the disk';
    throw error;
  }
}

/** The journal is appended to meanwhile: what is there now is compressed and put. */
async function copyJournal(
  folder: string,
  step: number,
  to: RunStore,
  signal: AbortSignal | undefined,
): Promise<void> {
  const source = join(folder, JOURNAL_FILE);
  const { size } = await stat(source).catch(() => ({ size: 0 }));
  if (size === 0) return;
  const packed = join(tmpdir(), `videoloom-journal-${process.pid}-${step}.gz`);
  try {
    await pipeline(
      createReadStream(source, { end: size - 1 }),
      createGzip({ level: 1 }),
      createWriteStream(packed),
      ...(signal === undefined ? [] : [{ signal }]),
    );
    await to.writer.putFile(
      journalPath(step),
      { path: packed, ...(await digestFile(packed)) },
      signal,
    );
  } finally {
    await rm(packed, { force: true });
  }
}

/** Which copies are kept. */
export interface CopyRetention {
  readonly keep: number;
  readonly keepHours: number | undefined;
}

/**
 * Removes copies that are not kept, and what was begun before the newest and never completed; nothing before the newest
 * was read back whole. Gives the steps of the checkpoints that were removed.
 * @throws StorageError; STORED_CHECKPOINT_DAMAGED when the newest copy is not what was put
 */
export async function pruneCopies(
  to: RunStore,
  { keep, keepHours }: CopyRetention,
  { now = new Date(), signal }: { readonly now?: Date; readonly signal?: AbortSignal } = {},
): Promise<number[]> {
  const all = await listCheckpoints(to, signal);
  const complete = [...all].filter(([, files]) => isComplete(files)).map(([step]) => step);
  const newest = complete.at(-1);
  if (newest === undefined) return [];
  const surplus: number[] = [];
  for (const [index, step] of complete.slice(0, -1).entries()) {
    const isBeyond = index < complete.length - keep;
    if (isBeyond || (await ageHours(to, step, now, signal)) > (keepHours ?? Infinity))
      surplus.push(step);
  }
  const unfinished = [...all.keys()].filter((step) => step < newest && !complete.includes(step));
  if (surplus.length + unfinished.length === 0) return [];
  await verifyCopy(to, newest, signal);
  for (const step of [...surplus, ...unfinished]) await removeCopy(to, all.get(step)!, signal);
  const kept = new Set([...complete].filter((step) => !surplus.includes(step)));
  for await (const { path } of to.store.list(signal)) {
    const step = path.startsWith(JOURNALS_PREFIX) ? journalStepOf(path) : undefined;
    if (step !== undefined && step < newest && !kept.has(step))
      await to.writer.remove(path, signal);
  }
  return surplus;
}

/** Files of this program; others stay, as they do on disk. The manifest goes first. */
async function removeCopy(
  to: RunStore,
  files: readonly StoredCheckpointFile[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const own = files.filter(({ name }) => isCheckpointFile(name));
  const manifestFirst = own.sort(
    (a, b) => Number(b.name === MANIFEST_FILE) - Number(a.name === MANIFEST_FILE),
  );
  for (const { path } of manifestFirst) await to.writer.remove(path, signal);
}

async function ageHours(
  to: RunStore,
  step: number,
  now: Date,
  signal: AbortSignal | undefined,
): Promise<number> {
  const { time } = await readStoredManifest(to, step, signal);
  const ms = now.getTime() - Date.parse(time);
  return Number.isNaN(ms) ? 0 : ms / 3_600_000;
}

/** @throws StorageError STORED_CHECKPOINT_DAMAGED */
export async function readStoredManifest(
  { root, store }: RunStore,
  step: number,
  signal?: AbortSignal,
): Promise<CheckpointManifest> {
  const path = checkpointPrefix(step) + MANIFEST_FILE;
  const bytes = await store.read(path, { ...(signal === undefined ? {} : { signal }) });
  try {
    const manifest = CheckpointManifest.parse(JSON.parse(Buffer.from(bytes).toString('utf8')));
    if (manifest.step === step) return manifest;
  } catch {
    // Told below, as any other thing that it may be.
  }
  throw damaged(root, path, `is no manifest of step ${step}`);
}

async function verifyCopy(
  from: RunStore,
  step: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { files } = await readStoredManifest(from, step, signal);
  for (const { name, sizeBytes, sha256 } of files) {
    const path = checkpointPrefix(step) + name;
    const hash = createHash('sha256');
    let numBytes = 0;
    const stream = await from.store.stream(path, signal === undefined ? {} : { signal });
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      hash.update(chunk);
      numBytes += chunk.length;
    }
    if (numBytes !== sizeBytes || hash.digest('hex') !== sha256)
      throw damaged(from.root, path, 'is not what was put there');
  }
}

export function damaged(root: string, path: string, why: string): StorageError {
  return new StorageError(
    'STORED_CHECKPOINT_DAMAGED',
    `${root}/${path} ${why}. An older checkpoint there, if there is any, is used instead; older ones are kept`,
  );
}
