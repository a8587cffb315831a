import * as tf from '@tensorflow/tfjs-core';
import { VideoloomError } from '../proto/errors.ts';

/**
 * Plain objects and arrays with tensors as leaves. A leaf's path joins the keys on its way with `/`:
 * `blocks/3/attention/qkv/kernel`. Checkpoints, weight decay and reports all name a tensor by its path.
 */
export type TensorTree = tf.Tensor | readonly TensorTree[] | { readonly [key: string]: TensorTree };

/**
 * Equal layers as one tree: a leaf holds that tensor of all layers, [layers, ...], and has `*` in its path where a
 * layer's number stands: `blocks/*\/attention/qkv/kernel`. Programs over it have the size of one layer.
 */
export type Stacked<P extends TensorTree> = { readonly '*': P };

/**
 * The tensors in a leaf by the names that checkpoints and people use, `blocks/3/attention/qkv/kernel`: one a layer, in
 * order, of a stacked leaf; else the leaf itself.
 */
export function partsOf(
  path: string,
  shape: readonly number[],
): { readonly name: string; readonly shape: readonly number[] }[] {
  const keys = path.split('/');
  const at = keys.indexOf('*');
  if (at < 0) return [{ name: path, shape }];
  const [numLayers, ...own] = shape as [number, ...number[]];
  return Array.from({ length: numLayers }, (_, layer) => ({
    name: keys.with(at, String(layer)).join('/'),
    shape: own,
  }));
}

/** The leaves in the order of the tree's own keys, each with its path. */
export function leavesOf(tree: TensorTree, prefix = ''): [path: string, tensor: tf.Tensor][] {
  if (tree instanceof tf.Tensor) return [[prefix, tree]];
  const entries: [string, TensorTree][] = Array.isArray(tree)
    ? (tree as readonly TensorTree[]).map((child, index) => [String(index), child])
    : Object.entries(tree as Record<string, TensorTree>);
  return entries.flatMap(([key, child]) =>
    leavesOf(child, prefix === '' ? key : `${prefix}/${key}`),
  );
}

/** A tree of the same form with every leaf replaced. */
export function mapTree<T extends TensorTree>(
  tree: T,
  change: (tensor: tf.Tensor, path: string) => tf.Tensor,
  prefix = '',
): T {
  if (tree instanceof tf.Tensor) return change(tree, prefix) as T;
  const below = (key: string, child: TensorTree): TensorTree =>
    mapTree(child, change, prefix === '' ? key : `${prefix}/${key}`);
  if (Array.isArray(tree)) {
    return (tree as readonly TensorTree[]).map((child, i) =>
      below(String(i), child),
    ) as unknown as T;
  }
  return Object.fromEntries(
    Object.entries(tree as Record<string, TensorTree>).map(([key, child]) => [
      key,
      below(key, child),
    ]),
  ) as T;
}

/** A tree of the same form from leaves in {@link leavesOf}'s order. */
export function withLeaves<T extends TensorTree>(tree: T, leaves: readonly tf.Tensor[]): T {
  let next = 0;
  return mapTree(tree, () => leaves[next++]!);
}

export function disposeTree(tree: TensorTree): void {
  for (const [, tensor] of leavesOf(tree)) tensor.dispose();
}

export function numElements(tree: TensorTree): number {
  return leavesOf(tree).reduce((sum, [, tensor]) => sum + tensor.size, 0);
}

/**
 * A tree of the same form from the tensors that {@link partsOf} names, checked against it.
 *
 * @throws VideoloomError `STATE_MISMATCH` when a name is missing, left over or of another shape.
 */
export function fillTree<T extends TensorTree, S extends { readonly shape: readonly number[] }>(
  tree: T,
  source: ReadonlyMap<string, S>,
  make: (parts: readonly S[], shape: readonly number[]) => tf.Tensor,
): T {
  const wanted = new Set(
    leavesOf(tree).flatMap(([path, { shape }]) => partsOf(path, shape).map(({ name }) => name)),
  );
  const extra = [...source.keys()].find((name) => !wanted.has(name));
  if (extra !== undefined) throw mismatch(`holds ${extra}, which the model does not have`);
  return mapTree(tree, (tensor, path) => {
    const parts = partsOf(path, tensor.shape).map(({ name, shape }) => {
      const found = source.get(name);
      if (found === undefined) throw mismatch(`lacks ${name}`);
      if (found.shape.join() !== shape.join()) {
        throw mismatch(
          `has ${name} of shape [${found.shape.join()}], the model wants [${shape.join()}]`,
        );
      }
      return found;
    });
    return make(parts, tensor.shape);
  });
}

function mismatch(what: string): VideoloomError {
  return new VideoloomError(
    'STATE_MISMATCH',
    `the saved state ${what}; it belongs to another model or config: resume with the config it was made with`,
  );
}
