/** What a worker and the process that sums for it tell each other. */
import type { KeyValueQuestion } from '../pjrt/key-value.ts';
import type { NamedValues } from '../pjrt/named-values.ts';
import type { DeviceSumPlan } from './device-sum.ts';

/** Where the shared vectors are in the process that sums: behind the standard streams and the IPC channel. */
export const VECTORS_DESCRIPTOR = 4;

export interface SumOrder {
  readonly plan: DeviceSumPlan;
  readonly pluginPath: string;
  readonly clientOptions: NamedValues;
  /** Of the shared vectors: one for each block that a worker may bring, and one for the sum. */
  readonly memoryBytes: number;
}

export type ToSumProcess =
  | { readonly kind: 'open'; readonly order: SumOrder }
  | { readonly kind: 'sum'; readonly numBlocks: number }
  | {
      readonly kind: 'answer';
      readonly id: number;
      readonly value?: Uint8Array | undefined;
      readonly error?: { readonly code: string; readonly message: string };
    };

export type ToWorker =
  | { readonly kind: 'ask'; readonly id: number; readonly question: KeyValueQuestion }
  | { readonly kind: 'summed' }
  | { readonly kind: 'failed'; readonly message: string };

/** One of the vectors in shared memory. */
export function vectorOf(memory: Uint8Array, index: number, numElements: number): Float32Array {
  const start = memory.byteOffset + index * strideOf(numElements);
  return new Float32Array(memory.buffer as ArrayBuffer, start, numElements);
}

/** Bytes from one vector to the next. */
export function strideOf(numElements: number): number {
  return Math.ceil((4 * numElements) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
}

const ALIGNMENT_BYTES = 4096;
