import { createHash } from 'node:crypto';
import { compareNames, type TensorData, type TensorForm } from './format.ts';

/**
 * SHA-256 (hex) of named tensors: for each, in the order of the names, the line `name dtype extent,extent\n` and the
 * row-major little-endian bytes. Equal for equal bits, whoever holds them.
 */
export function weightsSha256(tensors: ReadonlyMap<string, TensorData>): string {
  const hash = createHash('sha256');
  for (const [name, tensor] of sortedByName(tensors)) {
    hash.update(digestLine(name, tensor));
    hash.update(tensor.data);
  }
  return hash.digest('hex');
}

/** What goes before a tensor's bytes. */
export function digestLine(name: string, { dtype, shape }: Omit<TensorForm, 'data'>): string {
  return `${JSON.stringify(name)} ${dtype} ${shape.join()}\n`;
}

function sortedByName(tensors: ReadonlyMap<string, TensorData>): [string, TensorData][] {
  return [...tensors].sort(([a], [b]) => compareNames(a, b));
}
