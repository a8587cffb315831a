import { access, readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';

import * as z from 'zod';

import { digestFile } from './durable-file.ts';
import { messageOf, VideoloomError } from './errors.ts';

/** Folder of all checkpoints, inside the run folder. */
export const CHECKPOINTS_FOLDER = 'checkpoints';
/** Written last: a checkpoint without a valid one does not exist. */
export const MANIFEST_FILE = 'manifest.json';

const FOLDER_NAME = /^step-(\d{8,15})$/;

/** Name of the folder of the checkpoint after `step`: `step-00000500`. */
export function checkpointFolderName(step: number): string {
  return `step-${String(step).padStart(8, '0')}`;
}

/** Step of a folder so named; undefined for any other name. */
export function checkpointStepOf(folderName: string): number | undefined {
  const digits = FOLDER_NAME.exec(folderName)?.[1];
  const step = Number(digits);
  return digits !== undefined && checkpointFolderName(step) === folderName ? step : undefined;
}

/** A file's name relative to the checkpoint's folder: plain segments, so that nothing outside of it is named. */
export const CheckpointFileName = z
  .string()
  .max(255)
  .regex(/^[A-Za-z0-9_][A-Za-z0-9._-]*(\/[A-Za-z0-9_][A-Za-z0-9._-]*)*$/);

const OWN_FILE =
  /^((model|optimizer)-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json|manifest\.json)(\.tmp-\d+)?$/;

/** Whether a file in a checkpoint's folder is one that this program writes there, whole or not. */
export function isCheckpointFile(name: string): boolean {
  return OWN_FILE.test(name);
}

/** What `manifest.json` holds. */
export const CheckpointManifest = z.object({
  formatVersion: z.literal(1),
  runId: z.string(),
  /** The committed step whose state this is. */
  step: z.int().min(1),
  /** Generation that committed it. */
  generation: z.int().min(1),
  /** Samples consumed since the start of the run: the position in the sample order to go on from. */
  dataPosition: z.int().min(0),
  seed: z.int().min(0),
  configDigest: z.string(),
  datasetDigest: z.string(),
  files: z.array(
    z.object({
      name: CheckpointFileName,
      sizeBytes: z.int().min(0),
      sha256: z.string().regex(/^[0-9a-f]{64}$/),
    }),
  ),
  /** When it was completed, ISO 8601. */
  time: z.string(),
});
export type CheckpointManifest = z.infer<typeof CheckpointManifest>;

/**
 * Whether a checkpoint's folder has been completed: its manifest is written last.
 * @throws VideoloomError CHECKPOINT_UNREADABLE
 */
export async function hasManifest(folder: string): Promise<boolean> {
  const path = join(folder, MANIFEST_FILE);
  try {
    await access(path);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw checkpointUnreadable(path, error);
  }
}

/**
 * Reads the manifest of a checkpoint's folder; does not read the files that it lists.
 * @throws VideoloomError CHECKPOINT_INVALID, CHECKPOINT_UNREADABLE
 */
export async function readManifest(folder: string): Promise<CheckpointManifest> {
  const path = join(folder, MANIFEST_FILE);
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    if (isMissing(error)) return '';
    throw checkpointUnreadable(path, error);
  });
  try {
    return CheckpointManifest.parse(JSON.parse(text));
  } catch (error) {
    throw new VideoloomError(
      'CHECKPOINT_INVALID',
      `${path} is no valid manifest: ${messageOf(error).replaceAll(/\s+/g, ' ')}. ` +
        'Use an older checkpoint, or copy this one again from where it is whole.',
      { cause: error },
    );
  }
}

/** {@link verifyCheckpoint} for that of a run's step. */
export function verifyStep(
  runFolder: string,
  { step, runId }: { readonly step: number; readonly runId: string },
): Promise<CheckpointManifest> {
  return verifyCheckpoint(join(runFolder, CHECKPOINTS_FOLDER, checkpointFolderName(step)), runId);
}

/**
 * Reads a checkpoint whole and compares it with its manifest; sizes first, so that a missing or cut file shows before
 * gigabytes are read.
 * @param runId the run that it has to belong to
 * @throws VideoloomError CHECKPOINT_INVALID or CHECKPOINT_UNREADABLE, naming the file
 */
export async function verifyCheckpoint(folder: string, runId: string): Promise<CheckpointManifest> {
  const manifest = await readManifest(folder);
  if (manifest.runId !== runId)
    throw invalidCheckpoint(folder, `belongs to run ${manifest.runId}, not to ${runId}`);
  if (manifest.step !== checkpointStepOf(basename(folder)))
    throw invalidCheckpoint(folder, `says that it is of step ${manifest.step}`);
  const unreadable = (name: string, cause: unknown): VideoloomError =>
    isMissing(cause)
      ? invalidCheckpoint(folder, `file ${name} cannot be read: ${messageOf(cause)}`)
      : checkpointUnreadable(join(folder, name), cause);
  for (const { name, sizeBytes } of manifest.files) {
    const { size } = await stat(join(folder, name)).catch((error: unknown) => {
      throw unreadable(name, error);
    });
    if (size !== sizeBytes)
      throw invalidCheckpoint(folder, `file ${name} has ${size} bytes instead of ${sizeBytes}`);
  }
  for (const { name, sha256 } of manifest.files) {
    const found = await digestFile(join(folder, name)).catch((error: unknown) => {
      throw unreadable(name, error);
    });
    if (found.sha256 !== sha256)
      throw invalidCheckpoint(folder, `file ${name} has another SHA-256 than listed`);
  }
  return manifest;
}

/** What says that nothing is there, or something else; a file system that is away or refuses says nothing of a file. */
function isMissing(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR', 'EISDIR'].includes((error as NodeJS.ErrnoException).code ?? '');
}

/** That nothing is known of a checkpoint, which may well be whole. */
function checkpointUnreadable(path: string, cause: unknown): VideoloomError {
  return new VideoloomError(
    'CHECKPOINT_UNREADABLE',
    `${path} cannot be read: ${messageOf(cause)}. The checkpoint may be whole, so the run does not go on without it: mend ` +
      'what keeps it from being read and try again, or move its folder away to go on from an older one.',
    { cause, retryable: true },
  );
}

/** That a checkpoint cannot be used. */
export function invalidCheckpoint(folder: string, why: string): VideoloomError {
  return new VideoloomError(
    'CHECKPOINT_INVALID',
    `checkpoint ${folder}: ${why}. It is passed over; an older one, if there is any, is used instead.`,
  );
}

/** Step of the newest folder with a manifest; its files are checked by whoever loads them. */
export async function newestCheckpointStep(runFolder: string): Promise<number | undefined> {
  const folder = join(runFolder, CHECKPOINTS_FOLDER);
  const names = await readdir(folder).catch((): string[] => []);
  const steps = names.map(checkpointStepOf).filter((step) => step !== undefined);
  for (const step of steps.sort((a, b) => b - a)) {
    if (await hasManifest(join(folder, checkpointFolderName(step)))) return step;
  }
  return undefined;
}
