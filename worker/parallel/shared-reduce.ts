/**
 * The gradient sum between workers of one host, through memory that they share: each adds its slice, right where the
 * others have their gradients, into the one result. Sockets carry only who is ready and who has finished; by them a peer
 * that dies is seen, and by the system calls what was written before a frame is seen after it.
 *
 * Nobody writes a slice of the result before all have said that they are ready, which they do once they need the result
 * before no more; nobody changes a gradient before all have finished.
 */
import type { ReducePlan } from './tree-reduce.ts';
import { FRAME_KIND, type FrameHeader } from './frame.ts';
import { MeshError } from './mesh-errors.ts';
import type { Exchange, OutgoingFrame } from './mesh.ts';
import type { SharedGroup } from './shared-group.ts';
import type { GradientBlock } from './tree-sum.ts';
import type { SumPrecision, VectorMemory } from './vector-memory.ts';

/** Elements that are added in one go, through all levels of the tree: in the cache. */
const CHUNK_ELEMENTS = 16_384;
/** Elements after which the event loop gets its turn: some milliseconds. */
const TURN_ELEMENTS = 4 * 1024 * 1024;

export interface SharedReduceOptions {
  readonly group: SharedGroup;
  readonly memory: VectorMemory;
  /** For partial sums. */
  readonly staging: Float32Array;
  readonly precision: SumPrecision;
  /** Told of what was added: there is nothing else to see of a long sum. */
  readonly onAdded: (bytes: number) => void;
}

/** The exchange of one step. The sum is in `group.result` once it has run. */
export class SharedReduceExchange implements Exchange {
  readonly name: string;
  readonly step: number;
  readonly #plan: ReducePlan;
  readonly #options: SharedReduceOptions;
  readonly #blocks: readonly GradientBlock[];
  /** Where the own blocks lie: what the others are told. */
  readonly #offsets: Uint8Array;
  /** By number of the staged block: this worker's slice of it. */
  readonly #staged: Float32Array[] = [];
  #numReady = 0;
  #finished = false;
  /** By rank: frames handed out. */
  readonly #handedOut: number[];
  #advance: () => boolean = () => false;

  constructor(
    step: number,
    plan: ReducePlan,
    options: SharedReduceOptions,
    blocks: readonly GradientBlock[],
  ) {
    const { group, memory } = options;
    this.name = `shared gradient[${group.result.length}]`;
    this.step = step;
    this.#plan = plan;
    this.#options = options;
    this.#blocks = blocks;
    const offsets = blocks.map(({ sum }) => {
      const offset = memory.offsetOf(sum);
      if (offset === undefined) throw outside();
      return offset;
    });
    this.#offsets = new Uint8Array(Float64Array.from(offsets).buffer);
    this.#handedOut = plan.slices.map(() => 0);
  }

  start(advance: () => boolean): void {
    this.#advance = advance;
  }

  numOutgoing(): number {
    return 2;
  }

  numIncoming(): number {
    return 2;
  }

  next(rank: number): OutgoingFrame | undefined {
    const handedOut = this.#handedOut[rank]!;
    if (handedOut === 1 && !this.#finished) return undefined;
    this.#handedOut[rank] = handedOut + 1;
    return handedOut === 0
      ? { kind: FRAME_KIND.part, chunk: 0, payload: this.#offsets }
      : { kind: FRAME_KIND.sum, chunk: 0, payload: new Uint8Array(0) };
  }

  place(rank: number, { kind, length }: FrameHeader): Uint8Array {
    const expected = kind === FRAME_KIND.part ? 8 * this.#plan.leaves[rank]!.length : 0;
    if (length !== expected) {
      throw new MeshError(
        'COLLECTIVE_MISMATCH',
        `rank ${rank} brings other blocks to step ${this.step} than rank ${this.#plan.rank} expects: run all workers ` +
          'with one config and one release',
        { rank },
      );
    }
    return new Uint8Array(length);
  }

  received(rank: number, { kind }: FrameHeader, payload: Uint8Array): void {
    if (kind !== FRAME_KIND.part) return;
    const offsets = new Float64Array(payload.buffer as ArrayBuffer);
    for (const [index, { staged }] of this.#plan.leaves[rank]!.entries()) {
      this.#staged[staged!] = this.#options.group.sliceOf(rank, offsets[index]!);
    }
    if (++this.#numReady === this.#plan.worldSize - 1) this.#add(0);
  }

  /** Adds the own slice from an element on. */
  #add(from: number): void {
    const { start, end } = this.#plan.slices[this.#plan.rank]!;
    const length = end - start;
    const until = Math.min(length, from + TURN_ELEMENTS);
    for (let at = from; at < until; at += CHUNK_ELEMENTS) {
      this.#addChunk(at, Math.min(at + CHUNK_ELEMENTS, until));
    }
    this.#options.onAdded((until - from) * Float32Array.BYTES_PER_ELEMENT);
    if (until === length) {
      this.#finished = true;
      return;
    }
    setImmediate(() => {
      // Another generation may have begun meanwhile: then this memory is no longer ours to write.
      if (!this.#advance()) return;
      this.#add(until);
      if (this.#finished) this.#advance();
    });
  }

  /** Elements from `at` to `end` of the own slice, through the whole tree. */
  #addChunk(at: number, end: number): void {
    const { plan, blocks, options } = {
      ...{ plan: this.#plan, blocks: this.#blocks, options: this.#options },
    };
    const { memory, group, staging, precision } = options;
    const { start } = plan.slices[plan.rank]!;
    const finished = group.result.subarray(start + at, start + end);
    const partial: Float32Array[] = [];
    const viewOf = (operand: { own: number } | { staged: number }): Float32Array => {
      if ('own' in operand) return blocks[operand.own]!.sum.subarray(start + at, start + end);
      return partial[operand.staged] ?? this.#staged[operand.staged]!.subarray(at, end);
    };
    if (plan.only !== undefined) finished.set(viewOf(plan.only));
    for (const { left, right, target } of plan.additions) {
      const operands = [viewOf(left), viewOf(right)] as const;
      let sum = finished;
      if (target !== 'result') {
        const place = target.staged * CHUNK_ELEMENTS;
        sum = partial[target.staged] = staging.subarray(place, place + end - at);
      }
      memory.sum(precision, sum, ...operands);
    }
  }
}

function outside(): MeshError {
  return new MeshError(
    'NO_SHARED_MEMORY',
    'a gradient does not lie in the memory that Collectives.memoryFor gave: make the GradientAccumulator with it',
  );
}
