import * as tf from '@tensorflow/tfjs-core';
import { VideoloomError } from '../proto/errors.ts';
import { applyPasses, type TracedPasses } from './traced-passes.ts';
import { leavesOf, withLeaves, type Stacked, type TensorTree } from './tree.ts';

/** Equal layers, one after another: what a backend needs to make one loop of them. */
export interface LayerStack {
  /** For messages. */
  readonly name: string;
  /** From [carried, ...shared, ...own] to what the next layer gets as carried. Reads no other traced tensor. */
  readonly layer: (inputs: readonly tf.Tensor[]) => tf.Tensor;
  readonly carried: tf.Tensor;
  readonly shared: readonly tf.Tensor[];
  /** The layers' own tensors, [layers, ...]; without any, there is one layer, which has nothing of its own. */
  readonly own: readonly tf.Tensor[];
  /** The backward pass computes the layer again instead of keeping what it needs of it. */
  readonly remat: boolean;
}

/** Equal layers of which each makes something beside what it hands on; without gradients. */
export interface LayerScan {
  readonly name: string;
  /** From [carried, ...shared, ...own] to [what the next layer gets as carried, ...what this layer makes]. */
  readonly layer: (inputs: readonly tf.Tensor[]) => readonly tf.Tensor[];
  readonly carried: tf.Tensor;
  readonly shared: readonly tf.Tensor[];
  /** The layers' own tensors, [layers, ...]. */
  readonly own: readonly tf.Tensor[];
}

/** What a tfjs backend has beside its kernels if it compiles whole programs. */
interface LayerTracingBackend {
  /** Undefined while nothing is being traced. */
  traceLayers?(stack: LayerStack): TracedPasses | undefined; // gradients of [carried, ...shared, ...own]
  /** The last carried, and what the layers made, [layers, ...]. Undefined while nothing is being traced. */
  scanLayers?(scan: LayerScan): tf.Tensor[] | undefined;
}

/** Fewer layers are built one after another: compilers see more of them there, and programs are small anyway. */
export const LEAST_LOOPED_LAYERS = 5;

/**
 * x after equal layers. A program that is compiled has the size of one layer whatever their number, and its backward
 * pass keeps of each layer the products of matrices and computes the rest again; with `remat` it keeps the layer's
 * input alone, for the price of another forward pass. Tensors that the layers use beside x and their own parameters
 * are passed as `shared`.
 */
export function repeatLayers<P extends TensorTree>(
  layers: Stacked<P>,
  x: tf.Tensor,
  layer: (params: P, x: tf.Tensor, shared: readonly tf.Tensor[]) => tf.Tensor,
  { shared = [], remat = false }: { shared?: readonly tf.Tensor[]; remat?: boolean } = {},
): tf.Tensor {
  const form = layers['*'];
  const own = leavesOf(form).map(([, tensor]) => tensor);
  const numLayers = own[0]!.shape[0];
  /** On [x, ...shared, ...own of one layer]. */
  const flat = ([first, ...rest]: readonly tf.Tensor[]): tf.Tensor =>
    layer(withLeaves(form, rest.slice(shared.length)), first!, rest.slice(0, shared.length));
  if (numLayers >= LEAST_LOOPED_LAYERS) {
    const stack = { name: 'a repeated layer', layer: flat, carried: x, shared, own, remat };
    const looped = differentiated(stack);
    if (looped !== undefined) return looped;
  }
  const rows = own.map((tensor) => tf.unstack(tensor));
  const apply = remat ? (inputs: tf.Tensor[]) => rematerialized(flat, inputs) : flat;
  return Array.from({ length: numLayers }, (_, i) => rows.map((row) => row[i]!)).reduce(
    (state, params) => apply([state, ...shared, ...params]),
    x,
  );
}

/**
 * x after equal layers, and what each of them made, stacked: [layers, ...]. For inference: there is no gradient
 * through a compiled one. Tensors that the layers use beside x and their own are passed as `shared`.
 */
export function scanLayers<P extends TensorTree, M extends Readonly<Record<string, tf.Tensor>>>(
  layers: Stacked<P>,
  x: tf.Tensor,
  layer: (
    params: P,
    x: tf.Tensor,
    shared: readonly tf.Tensor[],
  ) => { readonly output: tf.Tensor; readonly made: M },
  { shared = [] }: { readonly shared?: readonly tf.Tensor[] } = {},
): { output: tf.Tensor; made: M } {
  const form = layers['*'];
  const own = leavesOf(form).map(([, tensor]) => tensor);
  const numLayers = own[0]!.shape[0];
  let names: string[] = [];
  const flat = ([first, ...rest]: readonly tf.Tensor[]): tf.Tensor[] => {
    const params = withLeaves(form, rest.slice(shared.length));
    const { output, made } = layer(params, first!, rest.slice(0, shared.length));
    names = Object.keys(made);
    return [output, ...Object.values(made)];
  };
  const named = ([output, ...made]: readonly tf.Tensor[]): { output: tf.Tensor; made: M } => ({
    output: output!,
    made: Object.fromEntries(names.map((name, i) => [name, made[i]!])) as M,
  });
  if (numLayers >= LEAST_LOOPED_LAYERS) {
    const scan = { name: 'a repeated layer', layer: flat, carried: x, shared, own };
    const scanned = (tf.backend() as LayerTracingBackend).scanLayers?.(scan);
    if (scanned !== undefined) {
      const given = [x, ...shared, ...own];
      return named(scanned.map((tensor) => withoutGradient(tensor, given)));
    }
  }
  const rows = own.map((tensor) => tf.unstack(tensor));
  const made: tf.Tensor[][] = [];
  let state = x;
  for (let i = 0; i < numLayers; i++) {
    const [next, ...others] = flat([state, ...shared, ...rows.map((row) => row[i]!)]);
    state = next!;
    made.push(others);
  }
  return named([state, ...names.map((_, k) => tf.stack(made.map((others) => others[k]!)))]);
}

/**
 * `fn(inputs)` whose backward pass computes it again instead of keeping what it needs: memory for time. All tensors
 * that `fn` reads are passed as inputs. Source: Chen et al. 2016, arXiv:1604.06174.
 */
export function rematerialized(
  fn: (inputs: readonly tf.Tensor[]) => tf.Tensor,
  inputs: readonly tf.Tensor[],
): tf.Tensor {
  const [carried, ...shared] = inputs as [tf.Tensor, ...tf.Tensor[]];
  const stack = { name: 'a recomputed function', layer: fn, carried, shared, own: [] };
  return differentiated({ ...stack, remat: true }) ?? fn(inputs);
}

/** `made`, which was computed from `inputs`: a gradient through it is refused instead of being left out. */
function withoutGradient(made: tf.Tensor, inputs: readonly tf.Tensor[]): tf.Tensor {
  const run = tf.customGrad((...given) => {
    (given.at(-1) as tf.GradSaveFunc)([]);
    return {
      value: made.clone(),
      gradFunc: () => {
        throw new VideoloomError(
          'SCAN_HAS_NO_GRADIENT',
          'a gradient is asked for through scanLayers, which has none in a program: use repeatLayers.',
        );
      },
    };
  });
  return run(...inputs);
}

/** Undefined where the backend has no programs, or none is being traced. */
function differentiated(stack: LayerStack): tf.Tensor | undefined {
  const traced = (tf.backend() as LayerTracingBackend).traceLayers?.(stack);
  if (traced === undefined) return undefined;
  return applyPasses(traced, [stack.carried, ...stack.shared, ...stack.own]);
}
