import type * as tf from '@tensorflow/tfjs-core';
import type { Sample } from '../../video/index/sample.ts';
import type { ObjectiveSums } from '../losses/cross-entropy.ts';
import type { TensorTree } from '../tree.ts';
import type { Initializer } from '../initializer.ts';

/** One host array of a batch, a row a clip. Those whose name ends in `Weights` say what counts. */
export interface HostArray {
  readonly data: Int32Array | Float32Array;
  readonly shape: readonly number[];
}

/** A microbatch as the program takes it, and what the sums over it are to be divided by. */
export interface HostBatch {
  readonly arrays: Readonly<Record<string, HostArray>>;
  /** Number of counted predictions by objective. */
  readonly counts: Readonly<Record<string, number>>;
  /** Tokens that carry content (no padding). */
  readonly numTokens: number;
}

/** A decoded clip, its sample, and what keys its randomness. */
export interface Row {
  readonly sample: Sample;
  /** Row of the sample in its split. */
  readonly number: number;
  readonly epoch: number;
  /** [windows, frames a window, H, W, 3] uint8, flat. */
  readonly frames: Uint8Array;
}

/** A question put to held-out clips; the answer is one of some classes, and the best constant one gives chance. */
export interface HeldOutTask {
  readonly name: string;
  /** The objective whose predictions are counted. */
  readonly objective: string;
  readonly numClasses: number;
  assemble(rows: readonly Row[]): HostBatch;
  /** The right answers that a batch asks for. */
  labels(batch: HostBatch): number[];
}

/** What one row showed to the model and what it answered. */
export interface Explained {
  readonly words: readonly { readonly text: string; readonly guess?: string }[];
  /** One entry a window of frames; `guess` tells whether a hidden one was named right. */
  readonly windows: readonly { readonly guess?: boolean }[];
}

/** A video-language model with its losses: what the training loop knows of it. */
export interface VideoLanguageSystem<P extends TensorTree = TensorTree> {
  readonly name: string;
  /** Objectives with their weights in the total loss. */
  readonly objectives: Readonly<Record<string, number>>;
  readonly heldOutTasks: readonly HeldOutTask[];
  init(initializer: Initializer): P;
  /** Arrays that the program takes but does not train. */
  readonly frozen: Readonly<Record<string, HostArray>>;
  /** Whether weight decay applies to a parameter; of stacked layers, `shape` is that of one. */
  decays(path: string, shape: readonly number[]): boolean;
  /** A training microbatch; a pure function of rows and the run's seed. */
  assemble(rows: readonly Row[]): HostBatch;
  /** Rows with something hidden, to look at what the model makes of them. */
  readonly look: {
    assemble(rows: readonly Row[]): HostBatch;
    /** The most likely id at each hidden position; one tensor a modality, of any names. */
    guess(params: P, frozen: TensorTree, batch: TensorTree): Record<string, tf.Tensor>;
    explain(batch: HostBatch, guesses: Readonly<Record<string, ArrayLike<number>>>): Explained[];
  };
  /** Sums over a microbatch by objective. */
  sums(params: P, frozen: TensorTree, batch: TensorTree): Record<string, ObjectiveSums>;
}
