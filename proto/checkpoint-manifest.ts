import { access, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { z } from 'zod';

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
 * Reads the manifest of a checkpoint's folder; does not read the files that it lists.
 * @throws VideoloomError CHECKPOINT_INVALID
 */
export async function readManifest(folder: string): Promise<CheckpointManifest> {
  const path = join(folder, MANIFEST_FILE);
  try {
    return CheckpointManifest.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch (error) {
    throw new VideoloomError(
      'CHECKPOINT_INVALID',
      `${path} is no valid manifest: ${messageOf(error).replaceAll(/\s+/g, ' ')}. ` +
        'Use an older checkpoint, or copy this one again from where it is whole.',
      { cause: error },
    );
  }
}

/** Step of the newest folder with a manifest; its files are checked by whoever loads them. */
export async function newestCheckpointStep(runFolder: string): Promise<number | undefined> {
  const folder = join(runFolder, CHECKPOINTS_FOLDER);
  const names = await readdir(folder).catch((): string[] => []);
  const steps = names.map(checkpointStepOf).filter((step) => step !== undefined);
  for (const step of steps.sort((a, b) => b - a)) {
    const manifest = join(folder, checkpointFolderName(step), MANIFEST_FILE);
    const exists = await access(manifest).then(
      () => true,
      () => false,
    );
    if (exists) return step;
  }
  return undefined;
}
