import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import {
  CheckpointFileName,
  checkpointFolderName,
  checkpointStepOf,
  MANIFEST_FILE,
  readManifest,
} from '../proto/checkpoint-manifest.ts';
import type { CheckpointManifest } from '../proto/checkpoint-manifest.ts';
import { digestFile, syncFolder, writeFileDurably } from '../proto/durable-file.ts';
import { messageOf, VideoloomError } from '../proto/errors.ts';

/** Told of each checkpoint that is passed over, with the reason. */
export type OnInvalid = (folder: string, error: VideoloomError) => void;

/**
 * The manifest of the newest checkpoint of run `runId` in `folder` whose files all have their listed size and SHA-256;
 * undefined when there is none. Newer ones that are damaged are passed over, by name.
 */
export async function findCheckpoint(
  folder: string,
  runId: string,
  onInvalid: OnInvalid,
): Promise<CheckpointManifest | undefined> {
  for (const step of (await stepsIn(folder)).reverse()) {
    const path = join(folder, checkpointFolderName(step));
    try {
      if (!(await hasManifest(path))) continue;
      return await verifyCheckpoint(path, runId);
    } catch (error) {
      if (!(error instanceof VideoloomError)) throw error;
      onInvalid(path, error);
    }
  }
  return undefined;
}

/**
 * Reads a checkpoint whole and compares it with its manifest.
 * @throws VideoloomError CHECKPOINT_INVALID, naming the file
 */
export async function verifyCheckpoint(path: string, runId: string): Promise<CheckpointManifest> {
  const manifest = await readManifest(path);
  if (manifest.runId !== runId) {
    throw invalid(path, `belongs to run ${manifest.runId}, not to ${runId}`);
  }
  if (manifest.step !== checkpointStepOf(path.slice(dirname(path).length + 1))) {
    throw invalid(path, `says that it is of step ${manifest.step}`);
  }
  for (const { name, sizeBytes, sha256 } of manifest.files) {
    const found = await digestFile(join(path, name)).catch((error: unknown) => {
      throw invalid(path, `file ${name} cannot be read: ${messageOf(error)}`);
    });
    if (found.sizeBytes !== sizeBytes) {
      throw invalid(path, `file ${name} has ${found.sizeBytes} bytes instead of ${sizeBytes}`);
    }
    if (found.sha256 !== sha256)
      throw invalid(path, `file ${name} has another SHA-256 than listed`);
  }
  return manifest;
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
      throw invalid(path, `a worker reports a file called ${JSON.stringify(name)}`);
    }
    if (names.has(name)) throw invalid(path, `two workers report a file called ${name}`);
    names.add(name);
    const found = await stat(join(path, name)).catch((error: unknown) => {
      throw invalid(
        path,
        `file ${name} of a worker is not seen from the coordinator (${messageOf(error)}); the run folder must be shared`,
      );
    });
    if (found.size !== sizeBytes) {
      throw invalid(
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

/**
 * Removes all but the newest `keep` checkpoints, after the newest has been read back whole. Gives the steps removed.
 * @throws VideoloomError CHECKPOINT_INVALID when the newest is damaged; nothing is removed then
 */
export async function pruneCheckpoints(
  folder: string,
  runId: string,
  keep: number,
): Promise<number[]> {
  const complete: number[] = [];
  for (const step of await stepsIn(folder)) {
    if (await hasManifest(join(folder, checkpointFolderName(step)))) complete.push(step);
  }
  const surplus = complete.slice(0, Math.max(0, complete.length - keep));
  if (surplus.length === 0) return [];
  await verifyCheckpoint(join(folder, checkpointFolderName(complete.at(-1)!)), runId);
  for (const step of surplus) {
    const path = join(folder, checkpointFolderName(step));
    // The manifest goes first: what is half removed is no checkpoint.
    await rm(join(path, MANIFEST_FILE));
    await syncFolder(path);
    await rm(path, { recursive: true });
  }
  return surplus;
}

/** Makes the folder for checkpoints and removes those in it that an earlier process did not complete. Gives their steps. */
export async function removeUnfinished(folder: string): Promise<number[]> {
  await mkdir(folder, { recursive: true });
  const removed: number[] = [];
  for (const step of await stepsIn(folder)) {
    const path = join(folder, checkpointFolderName(step));
    if (await hasManifest(path)) continue;
    await rm(path, { recursive: true });
    removed.push(step);
  }
  return removed;
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

async function hasManifest(path: string): Promise<boolean> {
  return stat(join(path, MANIFEST_FILE)).then(
    () => true,
    () => false,
  );
}

function invalid(path: string, why: string): VideoloomError {
  return new VideoloomError(
    'CHECKPOINT_INVALID',
    `checkpoint ${path}: ${why}. It is passed over; an older one, if there is any, is used instead.`,
  );
}
