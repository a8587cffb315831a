import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { readManifest, type CheckpointManifest } from '../../proto/checkpoint-manifest.ts';
import { messageOf } from '../../proto/errors.ts';
import { CheckpointError } from './checkpoint-error.ts';
import { SafetensorsInvalid, type TensorData } from './format.ts';
import { hashedRead } from './hashed-read.ts';
import { readSafetensorsStream } from './stream.ts';

type ManifestFile = CheckpointManifest['files'][number];

/**
 * All tensors of a checkpoint, however many workers wrote it. Each file is read once: what is returned is what was hashed.
 * @param dir the checkpoint's folder, with its `manifest.json`
 * @param onProgress called for each piece that was read
 * @throws VideoloomError CHECKPOINT_INVALID (no valid manifest), CHECKPOINT_UNREADABLE, CHECKPOINT_INCOMPLETE (a file is missing) or
 * CHECKPOINT_CORRUPT (a file is not the one that was written)
 */
export async function loadCheckpoint(
  dir: string,
  onProgress?: () => void,
): Promise<Map<string, TensorData>> {
  const { files } = await readManifest(dir);
  // Sizes first: a missing or cut file shows before gigabytes are read.
  for (const file of files) await checkSize(dir, file);
  const tensors = new Map<string, TensorData>();
  for (const file of files) {
    for (const [name, tensor] of await readVerified(dir, file, onProgress)) {
      if (tensors.has(name))
        throw corrupt(dir, file, `it has the tensor "${name}", which another file has too`);
      tensors.set(name, tensor);
    }
  }
  return tensors;
}

async function checkSize(dir: string, file: ManifestFile): Promise<void> {
  let size: number;
  try {
    ({ size } = await stat(join(dir, file.name)));
  } catch (error) {
    throw unreadable(dir, file, error);
  }
  if (size !== file.sizeBytes)
    throw corrupt(dir, file, `it has ${size} bytes, the manifest says ${file.sizeBytes}`);
}

/** The tensors of a file, none where it is no safetensors file, once its hash has been found right. */
async function readVerified(
  dir: string,
  file: ManifestFile,
  onProgress: (() => void) | undefined,
): Promise<Map<string, TensorData>> {
  const hash = createHash('sha256');
  const chunks = hashedRead(join(dir, file.name), hash, onProgress);
  let tensors = new Map<string, TensorData>();
  let invalid: SafetensorsInvalid | undefined;
  try {
    try {
      if (file.name.endsWith('.safetensors')) tensors = await readSafetensorsStream(chunks);
    } catch (error) {
      if (!(error instanceof SafetensorsInvalid)) throw error;
      invalid = error;
    }
    // To the end, whatever was wrong: the hash tells damage on the disk from a file that was never valid.
    while ((await chunks.next()).done !== true);
  } catch (error) {
    throw unreadable(dir, file, error);
  } finally {
    await chunks.return();
  }
  const sha256 = hash.digest('hex');
  if (sha256 !== file.sha256) {
    throw corrupt(dir, file, `its SHA-256 is ${sha256}, the manifest says ${file.sha256}`, invalid);
  }
  if (invalid !== undefined) throw corrupt(dir, file, invalid.message, invalid);
  return tensors;
}

function unreadable(dir: string, { name }: ManifestFile, cause: unknown): CheckpointError {
  return new CheckpointError(
    'CHECKPOINT_INCOMPLETE',
    `${join(dir, name)} cannot be read: ${messageOf(cause)}. Use an older checkpoint, or copy this one again`,
    cause,
  );
}

function corrupt(
  dir: string,
  { name }: ManifestFile,
  what: string,
  cause?: unknown,
): CheckpointError {
  return new CheckpointError(
    'CHECKPOINT_CORRUPT',
    `${join(dir, name)} is damaged: ${what}. Use an older checkpoint, or copy this one again from where it is whole`,
    cause,
  );
}
