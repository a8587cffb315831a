import * as tf from '@tensorflow/tfjs-core';

type Attrs = Record<string, unknown>;
type GradFunc = (
  dy: tf.Tensor,
  saved: tf.Tensor[],
  attrs: Attrs,
) => ReturnType<tf.GradConfig['gradFunc']>;

/**
 * Replaces the gradients of tfjs 4.22 that fail: those that forget to sum over broadcast axes (maximum, minimum,
 * squaredDifference, batched matMul), that permute axes wrongly (cumsum), that call chained ops, which tfjs-core alone
 * does not have (prod, gather with batch axes), that take the only gradient of an unstack or split for a list, or that are as
 * many slices as there are copies, and of four axes at most (tile); and that of comparisons, which is none: a condition
 * of `where` may depend on what is differentiated. Those of sum and mean are computed as they were, but
 * make no ones on the host, as many as the sum has terms.
 */
export function repairGradients(): void {
  replace(tf.Maximum, extremeGradient(tf.greaterEqual, tf.less), ['a', 'b']);
  replace(tf.Minimum, extremeGradient(tf.lessEqual, tf.greater), ['a', 'b']);
  replace(tf.SquaredDifference, squaredDifferenceGradient, ['a', 'b']);
  replace(tf.BatchMatMul, matMulGradient, ['a', 'b']);
  replace(tf.Cumsum, cumsumGradient, ['x']);
  replace(tf.Prod, prodGradient, ['x']);
  replace(tf.GatherV2, gatherGradient, ['x', 'indices']);
  replace(tf.Tile, tileGradient, ['x']);
  replace(tf.Sum, sumGradient, ['x']);
  replace(tf.Mean, meanGradient, ['x']);
  for (const name of COMPARISONS) replace(name, noGradient, ['a', 'b']);
  tf.registerGradient({
    kernelName: tf.Unpack,
    gradFunc: (dys, _saved, attrs) => ({
      value: () => tf.stack(listOf(dys), (attrs as { axis: number }).axis),
    }),
  });
  tf.registerGradient({
    kernelName: tf.SplitV,
    gradFunc: (dys, _saved, attrs) => ({
      x: () => tf.concat(listOf(dys), (attrs as { axis: number }).axis),
    }),
  });
}

function replace(kernelName: string, gradFunc: GradFunc, inputsToSave: string[]): void {
  tf.registerGradient({
    kernelName,
    inputsToSave,
    gradFunc: (dy, saved, attrs) => gradFunc(dy as tf.Tensor, saved, attrs),
  });
}

function listOf(dys: tf.Tensor | tf.Tensor[]): tf.Tensor[] {
  return Array.isArray(dys) ? dys : [dys];
}

const COMPARISONS = [tf.Greater, tf.GreaterEqual, tf.Less, tf.LessEqual, tf.Equal, tf.NotEqual];

const noGradient: GradFunc = (_dy, [a, b]) => ({
  a: () => tf.zeros(a!.shape),
  b: () => tf.zeros(b!.shape),
});

type Comparison = (a: tf.Tensor, b: tf.Tensor) => tf.Tensor;

/** dy goes to the input that was chosen; to `a` where both are equal. */
function extremeGradient(takesA: Comparison, takesB: Comparison): GradFunc {
  return (dy, [a, b]) => ({
    a: () => sumToShape(tf.mul(dy, tf.cast(takesA(a!, b!), 'float32')), a!.shape),
    b: () => sumToShape(tf.mul(dy, tf.cast(takesB(a!, b!), 'float32')), b!.shape),
  });
}

const squaredDifferenceGradient: GradFunc = (dy, [a, b]) => {
  const gradient = () => tf.mul(dy, tf.mul(tf.sub(a!, b!), 2));
  return {
    a: () => sumToShape(gradient(), a!.shape),
    b: () => sumToShape(tf.neg(gradient()), b!.shape),
  };
};

/** Each term gets what the sum gets. */
const sumGradient: GradFunc = (dy, [x], attrs) => ({
  x: () => tf.mul(keptAxes(dy, x!, attrs), tf.fill(x!.shape, 1)),
});

const meanGradient: GradFunc = (dy, [x], attrs) => ({
  x: () =>
    tf.div(tf.mul(keptAxes(dy, x!, attrs), tf.fill(x!.shape, 1)), x!.size / Math.max(1, dy.size)),
});

/** With size 1 in place of the axes that were summed over. */
function keptAxes(dy: tf.Tensor, x: tf.Tensor, attrs: Attrs): tf.Tensor {
  const axes = tf.util.parseAxisParam(attrs['axis'] as number | number[], x.shape);
  return tf.reshape(
    dy,
    x.shape.map((size, axis) => (axes.includes(axis) ? 1 : size)),
  );
}

/** For C = A B: dA = dC B^T, dB = A^T dC, each transposed where the input was, and summed over broadcast batch axes. */
const matMulGradient: GradFunc = (dy, [a, b], attrs) => {
  const { transposeA, transposeB } = attrs as unknown as tf.BatchMatMulAttrs;
  return {
    a: () =>
      sumToShape(
        transposeA ? tf.matMul(b!, dy, transposeB, true) : tf.matMul(dy, b!, false, !transposeB),
        a!.shape,
      ),
    b: () =>
      sumToShape(
        transposeB ? tf.matMul(dy, a!, true, transposeA) : tf.matMul(a!, dy, !transposeA, false),
        b!.shape,
      ),
  };
};

const cumsumGradient: GradFunc = (dy, _saved, attrs) => {
  const { axis, exclusive, reverse } = attrs as unknown as tf.CumsumAttrs;
  return { x: () => tf.cumsum(dy, axis, exclusive, !reverse) };
};

/** The product of the others, from both sides, so that zeros are no trouble. */
const prodGradient: GradFunc = (dy, [x], attrs) => {
  const { axis } = attrs as unknown as tf.ProdAttrs;
  const axes = tf.util.parseAxisParam(axis, x!.shape);
  const kept = x!.shape.map((_, a) => a).filter((a) => !axes.includes(a));
  const order = [...kept, ...axes];
  return {
    x: () => {
      const permuted = tf.transpose(x!, order);
      const count = axes.reduce((product, a) => product * x!.shape[a]!, 1);
      const flat = tf.reshape(permuted, [-1, count]);
      const others = tf.mul(tf.cumprod(flat, 1, true, false), tf.cumprod(flat, 1, true, true));
      const gradient = tf.mul(tf.reshape(dy, [-1, 1]), others);
      return tf.transpose(tf.reshape(gradient, permuted.shape), inverse(order));
    },
  };
};

/** The sum over all copies. */
const tileGradient: GradFunc = (dy, [x], attrs) => {
  const { reps } = attrs as unknown as tf.TileAttrs;
  return {
    x: () => {
      let sums = dy;
      for (const [axis, count] of reps.entries()) {
        if (count === 1) continue;
        const size = x!.shape[axis]!;
        const shape = [...x!.shape.slice(0, axis), ...sums.shape.slice(axis)];
        const outer = shape.slice(0, axis).reduce((a, b) => a * b, 1);
        sums = tf.sum(tf.reshape(sums, [outer, count, size, -1]), 1);
        sums = tf.reshape(sums, shape.with(axis, size));
      }
      return tf.reshape(sums, x!.shape);
    },
  };
};

/** Adds each gathered entry's gradient into the entry that it came from. */
const gatherGradient: GradFunc = (dy, [x, indices], attrs) => {
  const { axis, batchDims } = attrs as unknown as tf.GatherV2Attrs;
  const [dimension] = tf.util.parseAxisParam(axis, x!.shape) as [number];
  const numBatchAxes = batchDims < 0 ? batchDims + indices!.rank : batchDims;
  const sizeOf = (from: number, to?: number) =>
    x!.shape.slice(from, to).reduce((product, size) => product * size, 1);
  const [batch, outer] = [sizeOf(0, numBatchAxes), sizeOf(numBatchAxes, dimension)];
  const [numEntries, inner] = [x!.shape[dimension]!, sizeOf(dimension + 1)];
  const numIndices = indices!.size / batch;
  return {
    x: () => {
      const perIndex = tf.transpose(
        tf.reshape(dy, [batch, outer, numIndices, inner]),
        [0, 2, 1, 3],
      );
      const offsets = tf.mul(tf.range(0, batch, 1, 'int32'), tf.scalar(numEntries, 'int32'));
      // As the forward pass reads what is out of range, where it does not refuse it.
      const read = tf.clipByValue(tf.reshape(indices!, [batch, numIndices]), 0, numEntries - 1);
      const rows = tf.add(read, tf.reshape(offsets, [-1, 1]));
      const sums = tf.unsortedSegmentSum(
        tf.reshape(perIndex, [batch * numIndices, outer * inner]),
        tf.reshape(rows, [-1]),
        batch * numEntries,
      );
      const perOuter = tf.transpose(
        tf.reshape(sums, [batch, numEntries, outer, inner]),
        [0, 2, 1, 3],
      );
      return tf.reshape(perOuter, x!.shape);
    },
    indices: () => indices!,
  };
};

/** Sums over the axes that broadcasting added or stretched. */
function sumToShape(gradient: tf.Tensor, shape: number[]): tf.Tensor {
  const axes = tf.broadcast_util.getReductionAxes(shape, gradient.shape);
  return tf.reshape(axes.length === 0 ? gradient : tf.sum(gradient, axes), shape);
}

function inverse(permutation: readonly number[]): number[] {
  return permutation.map((_, axis) => permutation.indexOf(axis));
}
