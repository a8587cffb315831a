import { mkdir, readdir, rename, rm, rmdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import {
  CheckpointFileName,
  checkpointFolderName,
  checkpointStepOf,
  hasManifest,
  invalidCheckpoint,
  isCheckpointFile,
  MANIFEST_FILE,
  readManifest,
  verifyCheckpoint,
} from '../proto/checkpoint-manifest.ts';
import type { CheckpointManifest } from '../proto/checkpoint-manifest.ts';
import { syncFolder, writeFileDurably } from '../proto/durable-file.ts';
import { messageOf, VideoloomError } from '../proto/errors.ts';

/** Told of each checkpoint that is passed over, with the reason. */
export type OnInvalid = (step: number, error: VideoloomError) => void | Promise<void>;

/**
 * The manifest of the newest checkpoint of run `runId` in `folder` whose files all have their listed size and SHA-256;
 * undefined when there is none. Newer ones that are damaged are passed over, by name.
 * @param read what reads a checkpoint's folder, where its files are looked at later
 * @throws VideoloomError CHECKPOINT_UNREADABLE
 */
export async function findCheckpoint(
  folder: string,
  runId: string,
  onInvalid: OnInvalid,
  read: typeof verifyCheckpoint = verifyCheckpoint,
): Promise<CheckpointManifest | undefined> {
  for (const step of (await stepsIn(folder)).reverse()) {
    const path = join(folder, checkpointFolderName(step));
    try {
      if (!(await hasManifest(path))) continue;
      return await read(path, runId);
    } catch (error) {
      if (!(error instanceof VideoloomError) || error.code === 'CHECKPOINT_UNREADABLE') throw error;
      await onInvalid(step, error);
    }
  }
  return undefined;
}

/**
 * Makes the files that workers have put into a checkpoint's folder a checkpoint: checks that they are there, writes the
 * manifest, durably. Gives the size of all files.
 * @throws VideoloomError CHECKPOINT_INVALID
 */
export async function completeCheckpoint(
  folder: string,
  manifest: CheckpointManifest,
): Promise<number> {
  const path = join(folder, checkpointFolderName(manifest.step));
  const folders = new Set([path]);
  let total = 0;
  const names = new Set<string>();
  for (const { name, sizeBytes } of manifest.files) {
    if (!CheckpointFileName.safeParse(name).success || name === MANIFEST_FILE) {
      throw invalidCheckpoint(path, `a worker reports a file called ${JSON.stringify(name)}`);
    }
    if (names.has(name)) throw invalidCheckpoint(path, `two workers report a file called ${name}`);
    names.add(name);
    const found = await stat(join(path, name)).catch((error: unknown) => {
      throw invalidCheckpoint(
        path,
        `file ${name} of a worker is not seen from the coordinator (${messageOf(error)}); the run folder must be shared`,
      );
    });
    if (found.size !== sizeBytes) {
      throw invalidCheckpoint(
        path,
        `file ${name} has ${found.size} bytes, but its worker has reported ${sizeBytes}`,
      );
    }
    folders.add(dirname(join(path, name)));
    total += sizeBytes;
  }
  for (const each of folders) await syncFolder(each);
  await writeFileDurably(join(path, MANIFEST_FILE), `${JSON.stringify(manifest, undefined, 2)}\n`);
  await syncFolder(folder);
  return total;
}

/** Which checkpoints are kept. */
export interface Retention {
  /** At most this many. */
  readonly keep: number;
  /** None that was completed longer ago; undefined sets no limit. The newest always stays. */
  readonly maxAgeMs: number | undefined;
}

/**
 * Steps of the checkpoints that are not kept, ascending; none before the newest one has been read back whole.
 * @throws VideoloomError CHECKPOINT_INVALID when the newest is damaged
 */
export async function surplusCheckpoints(
  folder: string,
  runId: string,
  { keep, maxAgeMs = Infinity, now }: Retention & { readonly now: Date },
): Promise<number[]> {
  const complete: number[] = [];
  for (const step of await stepsIn(folder)) {
    if (await hasManifest(pathOf(folder, step))) complete.push(step);
  }
  const older = complete.slice(0, -1);
  const surplus: number[] = [];
  for (const [index, step] of older.entries()) {
    const isBeyond = index < complete.length - keep;
    if (isBeyond || now.getTime() - (await completedMs(pathOf(folder, step))) > maxAgeMs)
      surplus.push(step);
  }
  if (surplus.length > 0) await verifyCheckpoint(pathOf(folder, complete.at(-1)!), runId);
  return surplus;
}

/**
 * Removes a complete checkpoint: what its manifest lists and what else this program writes. Other files, and then the
 * folder, stay; gives their names.
 */
export async function removeCheckpoint(folder: string, step: number): Promise<string[]> {
  const path = pathOf(folder, step);
  // Without a readable manifest, what has our names.
  const { files } = await readManifest(path).catch(() => ({ files: [] }));
  // The manifest goes first: what is half removed is no checkpoint.
  await rm(join(path, MANIFEST_FILE));
  await syncFolder(path);
  for (const { name } of files) await rm(join(path, name), { force: true });
  return removeOwnFiles(path);
}

/**
 * Removes what was begun before `step` and never completed, and what lies beside the files of checkpoint `step`. Files
 * that this program does not write stay.
 */
export async function removeLeftovers(folder: string, step: number): Promise<void> {
  for (const begun of await stepsIn(folder)) {
    const path = pathOf(folder, begun);
    if (begun < step && !(await hasManifest(path))) await removeOwnFiles(path);
  }
  const { files } = await readManifest(pathOf(folder, step));
  await removeOwnFiles(pathOf(folder, step), new Set([MANIFEST_FILE, ...files.map((f) => f.name)]));
}

/** A checkpoint folder without a manifest. */
export interface Unfinished {
  readonly step: number;
  /** What stays of it, and where; undefined when all of it is removed. */
  readonly kept: string | undefined;
}

/**
 * Makes the folder for checkpoints and removes those in it that an earlier process did not complete. One of
 * `completed`, whose manifest is gone, is damaged: it is set aside, as is what holds files of somebody else.
 */
export async function removeUnfinished(
  folder: string,
  completed: ReadonlySet<number>,
): Promise<Unfinished[]> {
  await mkdir(folder, { recursive: true });
  const unfinished: Unfinished[] = [];
  for (const step of await stepsIn(folder)) {
    const path = pathOf(folder, step);
    if (await hasManifest(path)) continue;
    const isOwn = !completed.has(step) && (await readdir(path)).every(isCheckpointFile);
    if (isOwn) await rm(path, { recursive: true });
    unfinished.push({ step, kept: isOwn ? undefined : await setAside(folder, step) });
  }
  return unfinished;
}

/** Those of `completed` that have no folder any more: it was removed by hand, or the run was brought from elsewhere. */
export async function missingCheckpoints(
  folder: string,
  completed: ReadonlySet<number>,
): Promise<number[]> {
  const steps = new Set(await stepsIn(folder));
  return [...completed].filter((step) => !steps.has(step)).sort((a, b) => a - b);
}

/** Gives a damaged checkpoint another name, so that its step can be written anew; gives the new path. */
export async function setAside(folder: string, step: number): Promise<string> {
  const taken = new Set(await readdir(folder));
  const name = `damaged-${checkpointFolderName(step)}`;
  let free = name;
  for (let number = 2; taken.has(free); number++) free = `${name}-${number}`;
  await rename(pathOf(folder, step), join(folder, free));
  await syncFolder(folder);
  return join(folder, free);
}

/** Removes the files of this program that are not in `keep`, then the folder if it is empty; gives what is left. */
async function removeOwnFiles(path: string, keep = new Set<string>()): Promise<string[]> {
  const left: string[] = [];
  for (const name of await readdir(path)) {
    if (isCheckpointFile(name) && !keep.has(name)) await rm(join(path, name), { force: true });
    else left.push(name);
  }
  if (left.length === 0) await rmdir(path);
  return left;
}

/** When a checkpoint was completed. One whose manifest cannot be read has no age: it is not removed for it. */
async function completedMs(path: string): Promise<number> {
  const manifest = await readManifest(path).catch(() => undefined);
  const time = manifest === undefined ? NaN : Date.parse(manifest.time);
  return Number.isNaN(time) ? Infinity : time;
}

function pathOf(folder: string, step: number): string {
  return join(folder, checkpointFolderName(step));
}

/** Steps that have a folder, ascending. Anything whose name is not of our pattern is not ours to judge. */
async function stepsIn(folder: string): Promise<number[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  });
  return entries
    .filter((entry) => entry.isDirectory())
    .flatMap(({ name }) => checkpointStepOf(name) ?? [])
    .sort((a, b) => a - b);
}
