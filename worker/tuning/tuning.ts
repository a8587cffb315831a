/** What ways to adapt a language model that itself stays as it is have in common. */
import type { Initializer } from '../initializer.ts';
import type { Decoder } from '../models/decoder.ts';
import type { PartKind } from '../part-kind.ts';
import type { TensorTree } from '../tree.ts';

/** The model that is adapted. */
export interface TunedModel {
  /** Its parameters' paths and shapes. */
  readonly form: TensorTree;
  readonly decoder: Decoder<TensorTree>;
  /** Heads of its keys and values. */
  readonly keyValueHeads: number;
}

export interface Tuning<P extends TensorTree = TensorTree> {
  /** What is trained in place of the model. */
  init(init: Initializer): P;
  /** What `adapted` needs beside it and is never trained, by name: the same on every worker, in no checkpoint. */
  readonly fixed: Readonly<Record<string, FixedArray>>;
  /** The model's parameters with what is trained among them, as {@link decoder} takes them. */
  adapted(params: TensorTree, own: P, fixed: TensorTree): TensorTree;
  readonly decoder: Decoder<TensorTree>;
  /** What tells two of the same shapes apart. */
  readonly kind: PartKind;
}

export interface FixedArray {
  readonly data: Float32Array;
  readonly shape: readonly number[];
}
