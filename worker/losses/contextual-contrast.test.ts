import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../../proto/random.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../backend/engine.ts';
import { llipSimilarities } from '../models/llip.ts';
import { contextualSigmoidSums } from './contextual-contrast.ts';

const SEED = 5;
const [ROWS, TOKENS, WIDTH, HEADS, EMBEDDING] = [7, 3, 4, 2, 3];
const SIZES = { numHeads: HEADS, temperature: 1.5 };
/** Rows 1 and 4 have one caption; of pictures 2 and 5 another row's is known to be true too. */
const IDS = [0, 1, 2, 3, 1, 5, 6];
const KNOWN = IDS.map((id, row) => [id, row === 2 ? 6 : row === 5 ? 1 : id]);

/** All that a comparison is of, as flat numbers. */
type Numbers = Record<
  'keys' | 'values' | 'queries' | 'texts' | 'output' | 'logScale' | 'bias',
  number[]
>;
const SHAPES: Record<keyof Numbers, number[]> = {
  keys: [ROWS, TOKENS, WIDTH],
  values: [ROWS, TOKENS, WIDTH],
  queries: [ROWS, WIDTH],
  texts: [ROWS, EMBEDDING],
  output: [WIDTH, EMBEDDING],
  logScale: [],
  bias: [],
};
const NAMES = Object.keys(SHAPES) as (keyof Numbers)[];

const rng = openRng(SEED, 'numbers');
const numbers = Object.fromEntries(
  NAMES.map((name) => {
    const size = SHAPES[name].reduce((a, b) => a * b, 1);
    return [name, Array.from({ length: size }, () => Math.fround(rng.normal()))];
  }),
) as Numbers;

/** The similarity of a picture to a text, in scalars. */
function similarity({ keys, values, queries, texts, output }: Numbers, i: number, j: number) {
  const headWidth = WIDTH / HEADS;
  const mixed = Array.from({ length: WIDTH }, (_, m) => {
    const head = Math.floor(m / headWidth);
    const weights = Array.from({ length: TOKENS }, (_token, k) => {
      let product = 0;
      for (let d = head * headWidth; d < (head + 1) * headWidth; d++)
        product += keys[(i * TOKENS + k) * WIDTH + d]! * queries[j * WIDTH + d]!;
      return Math.exp(product / SIZES.temperature);
    });
    const total = weights.reduce((a, b) => a + b);
    return weights.reduce(
      (sum, weight, k) => sum + (weight / total) * values[(i * TOKENS + k) * WIDTH + m]!,
      0,
    );
  });
  const seen = Array.from({ length: EMBEDDING }, (_, e) =>
    mixed.reduce((sum, value, m) => sum + value * output[m * EMBEDDING + e]!, 0),
  );
  const length = Math.hypot(...seen);
  return seen.reduce((sum, value, e) => sum + (value / length) * texts[j * EMBEDDING + e]!, 0);
}

function lossInScalars(of: Numbers): number {
  let sum = 0;
  for (let i = 0; i < ROWS; i++)
    for (let j = 0; j < ROWS; j++) {
      const sign = KNOWN[i]!.includes(IDS[j]!) ? 1 : -1;
      const logit = Math.exp(of.logScale[0]!) * similarity(of, i, j) + of.bias[0]!;
      sum += Math.log(1 + Math.exp(-sign * logit));
    }
  return sum;
}

describe('the sigmoid loss of contextual pictures', () => {
  let engine: Engine;
  before(async () => {
    console.log(`seed ${SEED}`);
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    engine.close();
  });

  const tensors = (): tf.Tensor[] => NAMES.map((name) => tf.tensor(numbers[name], SHAPES[name]));
  const sumsOf = (given: readonly tf.Tensor[], chunk?: number) => {
    const [keys, values, queries, texts, output, logScale, bias] = given as [
      ...[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
    ];
    // Two numbers an id, neither of which tells them apart.
    const split = (ids: readonly number[]) => ids.map((id) => [id % 3, Math.floor(id / 3)]);
    const pairs = {
      ...{ keys, values, queries, texts },
      textIds: tf.tensor2d(split(IDS)),
      knownIds: tf.tensor3d(KNOWN.map(split)),
    };
    return contextualSigmoidSums(pairs, { output, scale: tf.exp(logScale), bias }, SIZES, chunk);
  };

  test('is its formula in scalars, and its gradient the differences of that, whole and in chunks', async () => {
    const right = IDS.filter((_, i) => {
      const scores = IDS.map((_id, j) => similarity(numbers, i, j));
      return KNOWN[i]!.includes(IDS[scores.indexOf(Math.max(...scores))]!);
    }).length;
    const difference = (name: keyof Numbers, at: number): number => {
      const step = 1e-4;
      const moved = (by: number): number =>
        lossInScalars({ ...numbers, [name]: numbers[name].with(at, numbers[name][at]! + by) });
      return (moved(step) - moved(-step)) / (2 * step);
    };
    const wanted = NAMES.map((name) => numbers[name].map((_, at) => difference(name, at)));
    // 1: seven chunks in a loop; 3: two, and one row that is left over.
    for (const chunk of [undefined, 3, 1]) {
      const program = engine.compile(
        (...given: tf.Tensor[]) => {
          const { lossSum, correct } = sumsOf(given, chunk);
          const lossOf = (...inputs: tf.Tensor[]): tf.Tensor => sumsOf(inputs, chunk).lossSum;
          return [lossSum, correct, ...tf.grads(lossOf)(given)];
        },
        { name: 'contextual gradients' },
      );
      const [lossSum, correct, ...gradients] = await program(...tensors());
      const loss = await lossSum!.data();
      assert.ok(Math.abs(loss[0]! / lossInScalars(numbers) - 1) < 1e-5, `chunk ${chunk}`);
      assert.equal((await correct!.data())[0], right);
      for (const [k, gradient] of gradients.entries())
        for (const [at, value] of (await gradient.data()).entries()) {
          const off = Math.abs(value - wanted[k]![at]!) / Math.max(1, Math.abs(wanted[k]![at]!));
          assert.ok(off < 1e-4, `chunk ${chunk}: ${NAMES[k]!} ${at} is off by ${off}`);
        }
    }
    assert.ok(right > 0 && right < ROWS, 'both answers occur');
  });

  test('is of each text alone: others change no bit of its column, and their order is that of the columns', async () => {
    const program = engine.compile(
      (...[keys, values, queries, texts, kernel]: tf.Tensor[]) =>
        llipSimilarities(
          { kernel: kernel! },
          { keys: keys!, values: values! },
          { queries: queries!, texts: texts! },
          SIZES,
        ),
      { name: 'similarities' },
    );
    const similarities = async (order: readonly number[], texts = order): Promise<number[][]> => {
      const [keys, values, queries, ends, output] = tensors() as [
        ...[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
      ];
      const given = [keys, values, tf.gather(queries, [...order]), tf.gather(ends, [...texts])];
      return (await program(...given, output).then((made) => made.array())) as number[][];
    };
    const plain = [0, 1, 2, 3, 4, 5, 6];
    const whole = await similarities(plain);
    const order = [3, 0, 6, 1, 5, 2, 4];
    const permuted = await similarities(order);
    assert.deepEqual(
      permuted,
      whole.map((row) => order.map((j) => row[j]!)),
    );
    const other = await similarities([0, 2, 2, 2, 2, 2, 2]);
    assert.deepEqual(
      other.map((row) => row[0]),
      whole.map((row) => row[0]),
    );
    // Mixed as another text asks for, a picture is another one, its own caption's pair too.
    const exchanged = await similarities([1, 0, 2, 3, 4, 5, 6], plain);
    for (const [i, row] of exchanged.entries())
      for (const [j, value] of row.entries())
        assert.equal(value === whole[i]![j], j > 1, `picture ${i}, text ${j}`);
  });
});
