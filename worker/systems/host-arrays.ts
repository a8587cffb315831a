import { packPixels } from '../tokens/pixels.ts';
import type { HostArray, Row } from './system.ts';

/** Zeros, int32, of a shape. */
export function intArray(...shape: number[]): HostArray & { readonly data: Int32Array } {
  return { data: new Int32Array(sizeOf(shape)), shape };
}

/** Zeros, float32, of a shape. */
export function floatArray(...shape: number[]): HostArray & { readonly data: Float32Array } {
  return { data: new Float32Array(sizeOf(shape)), shape };
}

/** The frames of all rows, four bytes in an int32, [B, bytes / 4]; `normalizePixels` takes them. */
export function packedFrames(rows: readonly Row[]): HostArray {
  const size = rows[0]!.frames.length;
  const bytes = new Uint8Array(rows.length * size);
  for (const [i, { frames }] of rows.entries()) bytes.set(frames, i * size);
  return { data: packPixels(bytes), shape: [rows.length, size / 4] };
}

/** What counts of a list: the values whose weight is not 0. */
export function countedOf(values: HostArray, weights: HostArray): number[] {
  return [...values.data].filter((_, i) => weights.data[i] !== 0);
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
