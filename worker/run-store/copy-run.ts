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

/** How often files of a checkpoint are put that are gone again: what others remove is not fought over. */
const MAX_ROUNDS = 3;

/** What became of a checkpoint that was to be copied. */
export type CopyOutcome = 'copied' | 'there already' | 'gone from the disk';

/**
 * Puts a checkpoint and the journal into the store, the manifest last, and looks whether all of it is there then: other
 * workers copy other steps meanwhile, and remove old ones. `done` are paths that an earlier attempt put, and gets those
 * of this one.
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
    const isSame = known === text.toString();
    if (isSame && (await lackingOf(to, step, files, signal)).length === 0) return 'there already';
    // It counts no longer while its files are replaced.
    if (known !== undefined) await to.writer.remove(prefix + MANIFEST_FILE, signal);
    await copyJournal(folder, step, to, signal);
    let lacking = files.filter(({ name }) => !done.has(prefix + name));
    for (let round = 1; round <= MAX_ROUNDS; round++) {
      for (const file of lacking) {
        const path = prefix + file.name;
        await to.writer.putFile(path, { ...file, path: join(local, file.name) }, signal);
        done.add(path);
      }
      lacking = await lackingOf(to, step, files, signal);
      if (lacking.length > 0) continue;
      await to.writer.put(prefix + MANIFEST_FILE, text, signal);
      lacking = await lackingOf(to, step, files, signal);
      if (lacking.length === 0) return 'copied';
      // Without its files it would be taken for a checkpoint, and older ones be removed for it.
      await to.writer.remove(prefix + MANIFEST_FILE, signal);
    }
    for (const { name } of lacking) done.delete(prefix + name);
    throw new StorageError(
      'STORAGE_FAILED',
      `${to.root}/${prefix}${lacking[0]!.name} is not there as it was sent, after ${MAX_ROUNDS} attempts: another ` +
        'program may remove files there',
      { retryable: true },
    );
  } catch (error) {
    // The coordinator removes old checkpoints when newer ones are whole.
    if (!(await isHere())) return 'gone from the disk';
    throw error;
  }
}

/** The files of a checkpoint that the store has not, or not in their sizes. */
async function lackingOf(
  to: RunStore,
  step: number,
  files: CheckpointManifest['files'],
  signal: AbortSignal | undefined,
): Promise<CheckpointManifest['files']> {
  return lackingAmong((await listCheckpoints(to, signal)).get(step) ?? [], files);
}

function lackingAmong(
  listed: readonly StoredCheckpointFile[],
  files: CheckpointManifest['files'],
): CheckpointManifest['files'] {
  const sizes = new Map(listed.map(({ name, sizeBytes }) => [name, sizeBytes]));
  return files.filter(({ name, sizeBytes }) => sizes.get(name) !== sizeBytes);
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
 * Removes copies that are not kept, and older ones that were begun and never completed; nothing before the newest copy
 * was read back whole. An unfinished one behind all that is removed may still be under way: another worker copies it.
 * Gives the steps of the checkpoints that were removed.
 * @throws StorageError; STORED_CHECKPOINT_DAMAGED when the newest copy is not what was put
 */
export async function pruneCopies(
  to: RunStore,
  { keep, keepHours }: CopyRetention,
  { now = new Date(), signal }: { readonly now?: Date; readonly signal?: AbortSignal } = {},
): Promise<number[]> {
  const all = await listCheckpoints(to, signal);
  const complete: CheckpointManifest[] = [];
  for (const [step, files] of all) {
    const manifest = await wholeManifest(to, step, files, signal);
    if (manifest !== undefined) complete.push(manifest);
  }
  const surplus = complete
    .slice(0, -1)
    .filter(
      ({ time }, index) =>
        index < complete.length - keep || ageHours(time, now) > (keepHours ?? Infinity),
    )
    .map(({ step }) => step);
  const newestSurplus = surplus.at(-1);
  if (newestSurplus === undefined) return [];
  const kept = new Set(complete.map(({ step }) => step).filter((step) => !surplus.includes(step)));
  const isRemoved = (step: number): boolean => step <= newestSurplus && !kept.has(step);
  await verifyCopy(to, complete.at(-1)!, signal);
  for (const [step, files] of all) if (isRemoved(step)) await removeCopy(to, step, files, signal);
  for await (const { path } of to.store.list(signal)) {
    const step = path.startsWith(JOURNALS_PREFIX) ? journalStepOf(path) : undefined;
    if (step !== undefined && isRemoved(step)) await to.writer.remove(path, signal);
  }
  return surplus;
}

/** The manifest of a copy whose files are all there; undefined for any other copy. */
async function wholeManifest(
  to: RunStore,
  step: number,
  listed: readonly StoredCheckpointFile[],
  signal: AbortSignal | undefined,
): Promise<CheckpointManifest | undefined> {
  if (!isComplete(listed)) return undefined;
  try {
    const manifest = await readStoredManifest(to, step, signal);
    return lackingAmong(listed, manifest.files).length === 0 ? manifest : undefined;
  } catch (error) {
    // Another worker may have removed it since it was listed.
    const isUnfit =
      error instanceof StorageError &&
      ['STORED_CHECKPOINT_DAMAGED', 'NOT_FOUND'].includes(error.code);
    if (isUnfit) return undefined;
    throw error;
  }
}

/** Files of this program; others stay, as they do on disk. */
async function removeCopy(
  to: RunStore,
  step: number,
  files: readonly StoredCheckpointFile[],
  signal: AbortSignal | undefined,
): Promise<void> {
  // First, and also where none was listed: one that was put since would stand there without its files.
  await to.writer.remove(checkpointPrefix(step) + MANIFEST_FILE, signal);
  for (const { name, path } of files)
    if (name !== MANIFEST_FILE && isCheckpointFile(name)) await to.writer.remove(path, signal);
}

function ageHours(time: string, now: Date): number {
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
  { step, files }: CheckpointManifest,
  signal: AbortSignal | undefined,
): Promise<void> {
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
