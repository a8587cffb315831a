/** Layers whose gradients are written out: what they are, and what the compiled program keeps for them. */
import assert from 'node:assert/strict';
import { dirname } from 'node:path';
import { test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine, type Engine, type EngineOptions } from '../backend/engine.ts';
import { LEAST_LOOPED_LAYERS, repeatLayers } from '../layer-loop.ts';
import { pluginCacheDir } from '../pjrt/plugin.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import { formulaTensor } from '../test/formula-weights.ts';
import { gelu } from './activations.ts';
import { dotProductAttention } from './dot-product-attention.ts';
import { layerNorm } from './norm.ts';

/** Sizes for which attention's weights are large enough to be computed again. */
const [BATCH, HEADS, GROUPS, LENGTH, WIDTH] = [2, 4, 2, 520, 8];
const MEBIBYTE = 2 ** 20;

/** One engine at a time: tfjs knows its backends by name. */
async function withEngine<T>(
  options: Partial<EngineOptions>,
  body: (engine: Engine) => Promise<T>,
): Promise<T> {
  const pluginPath = await cpuPlugin();
  const cacheDir = dirname(pluginCacheDir(process.env));
  const engine = await openEngine({ engine: 'xla', pluginPath, cacheDir, ...options });
  try {
    return await body(engine);
  } finally {
    engine.close();
  }
}

function assertClose(found: ArrayLike<number>, wanted: ArrayLike<number>, tolerance: number): void {
  assert.equal(found.length, wanted.length);
  let worst = 0;
  for (let i = 0; i < found.length; i++)
    worst = Math.max(worst, Math.abs(found[i]! - wanted[i]!) / (1 + Math.abs(wanted[i]!)));
  assert.ok(worst < tolerance, `off by ${worst}`);
}

test('the gradient of GELU is the slope of its formula', async () => {
  const formula = (x: number): number =>
    0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
  const at = Float32Array.from({ length: 241 }, (_, i) => (i - 120) / 10);
  const [y, slope] = await withEngine({}, async (engine) => {
    const run = engine.compile((x: tf.Tensor) => ({ y: gelu(x), slope: tf.grad(gelu)(x) }), {
      name: 'gelu',
    });
    const found = await run(engine.upload(at, [at.length]));
    return [await found.y.data(), await found.slope.data()];
  });
  const step = 1e-4;
  const slopes = Float64Array.from(at, (x) => (formula(x + step) - formula(x - step)) / (2 * step));
  assertClose(y, Float64Array.from(at, formula), 1e-6);
  assertClose(slope, slopes, 1e-6);
});

test('the gradients of a layer norm are the slopes of its formula', async () => {
  const [rows, width, epsilon] = [3, 7, 1e-5];
  const formula = (x: ArrayLike<number>, weights: ArrayLike<number>): number => {
    let sum = 0;
    for (let row = 0; row < rows; row++) {
      const own = Array.from({ length: width }, (_, i) => x[row * width + i]!);
      const mean = own.reduce((a, b) => a + b) / width;
      const variance = own.reduce((a, b) => a + (b - mean) ** 2, 0) / width;
      for (const [i, value] of own.entries())
        sum +=
          ((value - mean) / Math.sqrt(variance + epsilon)) * scale![i]! * weights[row * width + i]!;
    }
    return sum;
  };
  const [x, weights, scale, found] = await withEngine({}, async (engine) => {
    const inputs = [
      ...['x', 'weights'].map((name) => formulaTensor(name, [rows, width], { scale: 2 })),
      formulaTensor('scale', [width], { scale: 0.5, mean: 1 }),
    ];
    const run = engine.compile(
      (given: tf.Tensor, cotangent: tf.Tensor, scale: tf.Tensor) => {
        const params = { scale, offset: tf.zeros([width]) };
        return tf.grad((input: tf.Tensor) => layerNorm(params, input, epsilon))(given, cotangent);
      },
      { name: 'layer-norm' },
    );
    const gradient = await run(inputs[0]!, inputs[1]!, inputs[2]!);
    return [...inputs, gradient].map((tensor) => Float64Array.from(tensor.dataSync()));
  });
  const step = 1e-5;
  const slopes = x!.map((value, i) => {
    const moved = (by: number): number => formula(x!.with(i, value + by), weights!);
    return (moved(step) - moved(-step)) / (2 * step);
  });
  assertClose(found!, slopes, 1e-5);
});

/** Output and gradients of attention of {@link BATCH} sequences in double precision, by query, key and value. */
function attentionInScalars(
  [query, key, value, cotangent]: readonly ArrayLike<number>[],
  present: ArrayLike<number>,
): Float64Array[] {
  const queries = BATCH * HEADS * LENGTH * WIDTH;
  const keys = BATCH * GROUPS * LENGTH * WIDTH;
  const [output, dQuery] = [new Float64Array(queries), new Float64Array(queries)];
  const [dKey, dValue] = [new Float64Array(keys), new Float64Array(keys)];
  const scale = 1 / Math.sqrt(WIDTH);
  for (let head = 0; head < BATCH * HEADS; head++) {
    const batch = Math.floor(head / HEADS);
    const group = batch * GROUPS + Math.floor((head % HEADS) / (HEADS / GROUPS));
    for (let i = 0; i < LENGTH; i++) {
      const row = (head * LENGTH + i) * WIDTH;
      const products = (a: ArrayLike<number>, b: ArrayLike<number>): Float64Array =>
        Float64Array.from({ length: LENGTH }, (_, j) => {
          const other = (group * LENGTH + j) * WIDTH;
          let sum = 0;
          for (let w = 0; w < WIDTH; w++) sum += a[row + w]! * b[other + w]!;
          return sum;
        });
      const exponentials = products(query!, key!).map((x, j) =>
        present[batch * LENGTH + j]! === 0 ? 0 : Math.exp(x * scale),
      );
      const total = exponentials.reduce((a, b) => a + b);
      const weights = exponentials.map((x) => x / total);
      const dWeights = products(cotangent!, value!);
      const mean = weights.reduce((sum, weight, j) => sum + weight * dWeights[j]!, 0);
      for (const [j, weight] of weights.entries()) {
        const other = (group * LENGTH + j) * WIDTH;
        const dScore = weight * (dWeights[j]! - mean) * scale;
        for (let w = 0; w < WIDTH; w++) {
          output[row + w]! += weight * value![other + w]!;
          dQuery[row + w]! += dScore * key![other + w]!;
          dKey[other + w]! += dScore * query![row + w]!;
          dValue[other + w]! += weight * cotangent![row + w]!;
        }
      }
    }
  }
  return [output, dQuery, dKey, dValue];
}

const attentionInputs = (): tf.Tensor[] => [
  ...['query', 'key', 'value', 'cotangent'].map((name, i) =>
    formulaTensor(name, [BATCH, i % 3 === 0 ? HEADS : GROUPS, LENGTH, WIDTH], { scale: 1 }),
  ),
  // Which keys there are: the second sequence is the shorter.
  tf.tensor(
    Array.from({ length: BATCH * LENGTH }, (_, i) => (i >= BATCH * LENGTH - 100 ? 0 : 1)),
    [BATCH, 1, 1, LENGTH],
  ),
];

const RESULTS = ['output', 'query', 'key', 'value'] as const;

/** The inputs, and what attention and its gradients are of them; the mask is made within what is differentiated. */
async function attentionOn(engine: Engine): Promise<{
  readonly given: Float64Array[];
  readonly found: Float64Array[];
  readonly mlir: string | undefined;
}> {
  const run = engine.compile(
    (given: Record<string, tf.Tensor>): Record<(typeof RESULTS)[number], tf.Tensor> => {
      const [query, key, value, late, present] = Object.values(given) as [
        ...[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
      ];
      const forward = (...[q, k, v]: tf.Tensor[]): tf.Tensor =>
        dotProductAttention({ query: q!, key: k!, value: v!, bias: hiding(present) });
      const [dQuery, dKey, dValue] = tf.grads(forward)([query, key, value], late);
      return { output: forward(query, key, value), query: dQuery!, key: dKey!, value: dValue! };
    },
    { name: 'attention', shardings: { arguments: [() => [['data']]] } },
  );
  const inputs = attentionInputs();
  const given = Object.fromEntries(inputs.map((tensor, i) => [`x${i}`, tensor]));
  const found = await run(given);
  const lowered = await run.lower(given);
  const arrayOf = (tensor: tf.Tensor): Float64Array => Float64Array.from(tensor.dataSync());
  return {
    given: inputs.map(arrayOf),
    found: RESULTS.map((name) => arrayOf(found[name])),
    mlir: lowered?.mlir,
  };
}

function hiding(present: tf.Tensor): tf.Tensor {
  return tf.mul(tf.sub(present, 1), 1e9);
}

test('attention that computes its weights again has the gradients of the formula, heads in groups, keys masked', async () => {
  const alone = await withEngine({}, attentionOn);
  const several = await withEngine({ devices: 2, mesh: { data: 2 } }, attentionOn);
  const eager = await withEngine({ engine: 'cpu' }, attentionOn);
  const narrow = await withEngine({ precision: 'bfloat16' }, attentionOn);
  const wanted = attentionInScalars(alone.given, alone.given.at(-1)!);
  for (const [{ found, mlir }, tolerance] of [
    [alone, 1e-5],
    [several, 1e-5],
    [eager, 1e-5],
    [narrow, 0.03],
  ] as const) {
    if (mlir !== undefined) assert.match(mlir, /optimization_barrier/);
    for (const [i, values] of found.entries()) assertClose(values, wanted[i]!, tolerance);
  }
});

test('in a loop over layers, and in layers that keep nothing, such attention has the gradients of layers one by one', () =>
  withEngine({}, async (engine) => {
    const layers = LEAST_LOOPED_LAYERS;
    const scales = formulaTensor('scales', [layers, WIDTH], { scale: 0.3, mean: 1 });
    const [query, , , late, present] = attentionInputs() as [
      ...[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
    ];
    const layer = (scale: tf.Tensor, x: tf.Tensor, bias: tf.Tensor): tf.Tensor => {
      const own = tf.mul(x, scale);
      return tf.add(x, dotProductAttention({ query: own, key: own, value: own, bias }));
    };
    const looped =
      (remat: boolean) =>
      (all: tf.Tensor): tf.Tensor =>
        repeatLayers({ '*': all }, query, (scale, x, [bias]) => layer(scale, x, bias!), {
          shared: [hiding(present)],
          remat,
        });
    const unrolled = (all: tf.Tensor): tf.Tensor =>
      tf.unstack(all).reduce((x, scale) => layer(scale, x, hiding(present)), query);
    const [wanted, ...found] = await Promise.all(
      [unrolled, looped(false), looped(true)].map(async (forward) => {
        const run = engine.compile(
          (all: tf.Tensor, cotangent: tf.Tensor) => tf.grad(forward)(all, cotangent),
          { name: 'attention-layers' },
        );
        return (await run(scales, late)).data();
      }),
    );
    for (const gradient of found) assertClose(gradient, wanted!, 1e-4);
  }));

test('the backward pass keeps no weights of attention, and of a GELU its argument alone', () =>
  withEngine({}, async (engine) => {
    const [rows, width, layers] = [1024, 1024, 6];
    const bytes = 4 * rows * width;
    const kernels = Array.from({ length: layers }, (_, i) =>
      formulaTensor(`kernel${i}`, [width, width], { scale: 0.03 }),
    );
    const x = formulaTensor('x', [rows, width], { scale: 1 });
    const chain = engine.compile(
      (given: tf.Tensor, all: Record<string, tf.Tensor>) =>
        tf.grad((input: tf.Tensor) =>
          Object.values(all).reduce(
            (state, kernel) => gelu(tf.matMul(state as tf.Tensor2D, kernel as tf.Tensor2D)),
            input,
          ),
        )(given),
      { name: 'gelus' },
    );
    const lowered = await chain.lower(x, Object.fromEntries(kernels.map((k, i) => [`k${i}`, k])));
    // Without weights to learn, results are not needed again: an array a layer, and what the work takes.
    const kept = lowered!.memory.tempBytes / bytes;
    assert.ok(kept < layers + 4, `${kept} arrays for ${layers} layers`);

    const [batch, heads, length, each] = [2, 4, 1024, 32];
    const qkv = formulaTensor('qkv', [batch, heads, length, each], { scale: 1 });
    const attended = engine.compile(
      (given: tf.Tensor) =>
        tf.grad((input: tf.Tensor) =>
          Array.from({ length: layers }).reduce<tf.Tensor>(
            (state) => dotProductAttention({ query: state, key: state, value: state }),
            input,
          ),
        )(given),
      { name: 'attentions' },
    );
    const weightBytes = 4 * batch * heads * length * length;
    const { tempBytes } = (await attended.lower(qkv))!.memory;
    assert.ok(
      tempBytes < 4 * weightBytes,
      `${tempBytes / MEBIBYTE} MiB for ${layers} times ${weightBytes / MEBIBYTE} MiB of weights`,
    );
  }));
