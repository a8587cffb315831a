/**
 * The one order in which gradients are added, whoever adds them: a binary tree over the microbatch index,
 * node(start, size) = node(start, size/2) + node(start + size/2, size/2), each sum rounded to f32. Any contiguous range of
 * microbatches is a few whole nodes of that tree, so workers exchange node sums and never change the order.
 */
import assert from 'node:assert/strict';
import { VECTOR_PADDING_BYTES, type SumPrecision, type VectorMemory } from './vector-memory.ts';

/** A node of the tree: microbatches [start, start + size), size a power of two that divides start. */
export interface TreeNode {
  readonly start: number;
  readonly size: number;
}

/** A node and the sum of its microbatches' gradients. */
export interface GradientBlock extends TreeNode {
  readonly sum: Float32Array;
  /** Where the sum lies: what is added to it is best there too. */
  readonly memory?: VectorMemory;
}

/** A contiguous range of microbatches. */
export interface MicrobatchRange {
  readonly firstMicrobatch: number;
  readonly numMicrobatches: number;
}

/** The range of worker `rank`: cuts at floor(rank * M / W). */
export function microbatchRange(
  rank: number,
  worldSize: number,
  numMicrobatches: number,
): MicrobatchRange {
  const cut = (at: number) => Math.floor((at * numMicrobatches) / worldSize);
  return { firstMicrobatch: cut(rank), numMicrobatches: cut(rank + 1) - cut(rank) };
}

/** The fewest tree nodes that make up a range, by start. */
export function blocksOf({ firstMicrobatch, numMicrobatches }: MicrobatchRange): TreeNode[] {
  const blocks: TreeNode[] = [];
  const end = firstMicrobatch + numMicrobatches;
  for (let start = firstMicrobatch; start < end;) {
    let size = 1;
    while (start % (2 * size) === 0 && start + 2 * size <= end) size *= 2;
    blocks.push({ start, size });
    start += size;
  }
  return blocks;
}

/** Vectors of a {@link GradientAccumulator} for ranges of at most `numMicrobatches`. */
export function accumulatorVectors(numMicrobatches: number): number {
  // One for each power of two up to the range, one more since a range need not be aligned, one to fill next.
  return 2 * Math.ceil(Math.log2(Math.max(2, numMicrobatches))) + 1;
}

/** Bytes of {@link accumulatorVectors}, padded. */
export function accumulatorBytes(numElements: number, numMicrobatches: number): number {
  return accumulatorVectors(numMicrobatches) * (4 * numElements + VECTOR_PADDING_BYTES);
}

/**
 * Sums the gradients of a range of microbatches as they come, in index order, and keeps only the open nodes' sums:
 * O(log range) vectors, reused by every step. In bfloat16 every gradient and the sum of every node is rounded to it, to
 * nearest, ties to even, so that what workers exchange has been rounded alike whoever computed it: each of the
 * 1 + log2(microbatches) roundings changes a value by 2^-9 of it at most.
 */
export class GradientAccumulator {
  readonly #memory: VectorMemory;
  readonly #numElements: number;
  readonly #precision: SumPrecision;
  readonly #free: Float32Array[] = [];
  #blocks: GradientBlock[] = [];
  #range: MicrobatchRange = { firstMicrobatch: 0, numMicrobatches: 0 };
  #next = 0;

  constructor(numElements: number, memory: VectorMemory, precision: SumPrecision = 'float32') {
    this.#memory = memory;
    this.#precision = precision;
    this.#numElements = numElements;
  }

  /** Starts a step. The blocks of the step before lose their meaning. */
  begin(range: MicrobatchRange): void {
    for (const { sum } of this.#blocks) this.#free.push(sum);
    this.#blocks = [];
    this.#range = range;
    this.#next = range.firstMicrobatch;
  }

  /** A vector to write the next gradient into: giving it to `push` spares a copy. */
  slot(): Float32Array {
    if (this.#free.length === 0) this.#free.push(this.#memory.allocate(this.#numElements));
    return this.#free.at(-1)!;
  }

  /** Adds the next microbatch's gradient. The caller keeps a `gradient` that is not the `slot`. */
  push(gradient: Float32Array): void {
    const { firstMicrobatch, numMicrobatches } = this.#range;
    assert(gradient.length === this.#numElements, 'a gradient has as many elements as the model');
    assert(this.#next < firstMicrobatch + numMicrobatches, 'the range is full');
    const memory = this.#memory;
    let node: GradientBlock = { start: this.#next++, size: 1, sum: gradient, memory };
    for (
      let left = this.#blocks.at(-1);
      left?.size === node.size && left.start % (2 * node.size) === 0;
      left = this.#blocks.at(-1)
    ) {
      memory.sum(this.#precision, left.sum, left.sum, node.sum); // rounds the gradient as well
      if (node.size > 1) this.#free.push(node.sum);
      node = { start: left.start, size: 2 * node.size, sum: left.sum, memory };
      this.#blocks.pop();
    }
    if (node.sum === gradient) {
      const own = this.slot();
      if (this.#precision === 'bfloat16') memory.round(own, gradient);
      else if (own !== gradient) own.set(gradient);
      this.#free.pop();
      node = { ...node, sum: own };
    }
    this.#blocks.push(node);
  }

  /** The sums of the range, valid until the next `begin`. */
  blocks(): readonly GradientBlock[] {
    assert(
      this.#next === this.#range.firstMicrobatch + this.#range.numMicrobatches,
      'every microbatch of the range has been pushed',
    );
    return this.#blocks;
  }
}
