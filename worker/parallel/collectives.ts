import type { GradientBlock, MicrobatchRange } from './tree-sum.ts';
import type { VectorMemory } from './vector-memory.ts';

/** A member of a generation, as the coordinator tells it. */
export interface MeshMember extends MicrobatchRange {
  readonly rank: number;
  readonly workerId: string;
  /** host:port where the member accepts tensor connections. */
  readonly tensorAddress: string;
}

/** A version of the membership: the ranks are 0 to members.length - 1, the ranges cut the global batch. */
export interface MeshGeneration {
  readonly number: number;
  readonly members: readonly MeshMember[];
}

/**
 * What workers do together. Every worker calls the same operations in the same order; an error ends the generation,
 * and everything after it is refused until `configure` opens the next.
 */
export interface Collectives {
  /** host:port that peers connect to. */
  readonly address: string;

  /** Bytes sent and received so far, heading included, and added in shared memory: a sign that the sum goes on. */
  readonly movedBytes: number;

  /**
   * Memory for the gradients of a model: vectors in it are summed fastest, and where the workers of a host share memory
   * they are not sent at all. To be asked for once, before the first `configure`, which fills it with zeros each time.
   * @param numMicrobatches the most that an accumulator in it takes in a step
   */
  memoryFor(numElements: number, numMicrobatches: number): VectorMemory;

  /**
   * Joins a generation: ends what is pending of the one before (GENERATION_CHANGED) and connects to all members.
   * @throws {MeshError} PEER_LOST, PEER_REFUSED, PEER_TIMEOUT or GENERATION_CHANGED
   */
  configure(generation: MeshGeneration): Promise<void>;

  /**
   * Sum of the gradients of all microbatches, with `tree` the same bits for every number of workers, [numElements].
   * Valid until the next call or `configure`; with one worker it is the block's own memory. When it fails, the others may
   * still read the blocks: they must stay as they are until `configure`.
   */
  allReduce(
    step: number,
    blocks: readonly GradientBlock[],
    /** Of the gradient; needed where `blocks` is empty because there are more workers than microbatches. */
    numElements?: number,
  ): Promise<Float32Array>;

  /** Every worker's values, by rank. `name` says what they are; workers may differ in length. At most 128 Ki values. */
  allGather(step: number, name: string, values: Float64Array): Promise<Float64Array[]>;

  /**
   * Every worker's part of one vector, put where it belongs: received in place, in chunks, whatever its size.
   * @param vector where the own part lies already, and all parts on return
   * @param parts by rank, elements of the vector; the same on all workers
   */
  allGatherInto(
    step: number,
    name: string,
    vector: Float32Array,
    parts: readonly { readonly start: number; readonly end: number }[],
  ): Promise<void>;

  /** Returns when every worker has called it. */
  barrier(step: number, name: string): Promise<void>;

  /** Rejects what is pending with GENERATION_CHANGED and closes the connections, until `configure`. */
  abort(reason: string): void;

  close(): Promise<void>;
}
