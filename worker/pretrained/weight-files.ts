/** How the files of a model's weights are called: one, or several with an index. Source: transformers, save_pretrained. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

export const SINGLE_FILE = 'model.safetensors';
export const INDEX_FILE = 'model.safetensors.index.json';

const ANY = /^model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/;

/** @param index from 0 */
export function weightFileName(index: number, count: number): string {
  const digits = (number: number): string => String(number).padStart(5, '0');
  return count === 1 ? SINGLE_FILE : `model-${digits(index + 1)}-of-${digits(count)}.safetensors`;
}

/**
 * Removes older weights of another number of files, which would be read in place of those that were written. Several
 * files without an index are a checkpoint's and stay: so the new index is written after this.
 */
export async function removeOtherWeights(
  folder: string,
  written: readonly string[],
): Promise<void> {
  const names = await readdir(folder);
  const older = names.filter((name) =>
    names.includes(INDEX_FILE) ? ANY.test(name) : name === SINGLE_FILE,
  );
  for (const name of older) if (!written.includes(name)) await rm(join(folder, name));
}
