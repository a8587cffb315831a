import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { BACKEND_NAME } from '../backend.ts';
import type { Engine, TensorTree } from '../engine.ts';
import { EngineError } from '../errors.ts';
import { openTestEngines } from '../test/engines.ts';
import type { TestEngines } from '../test/engines.ts';
import {
  assertClose,
  assertSame,
  bool,
  int,
  normal,
  positive,
  toInt,
} from '../test/kernel-cases.ts';
import type { Case } from '../test/kernel-cases.ts';

const hasCode = (error: unknown, code: string) =>
  error instanceof EngineError && error.code === code;
const complexOf = (x: tf.Tensor, y: tf.Tensor) => tf.complex(x, y);
const parts = (z: tf.Tensor) => [tf.real(z), tf.imag(z)];

const CASES: readonly Case[] = [
  ...Object.entries({
    acos: tf.acos,
    asin: tf.asin,
    asinh: tf.asinh,
    atan: tf.atan,
    atanh: tf.atanh,
    cosh: tf.cosh,
    sinh: tf.sinh,
  }).map(([name, fn]): Case => ({
    name,
    inputs: [normal(3, 4)],
    fn: (x) => fn(tf.mul(tf.tanh(x), 0.9)),
  })),
  { name: 'acosh', inputs: [positive(3, 4)], fn: (x) => tf.acosh(tf.add(x, 1)) },
  {
    name: 'spaceToBatchND and batchToSpaceND',
    inputs: [normal(2, 4, 6, 3)],
    fn: (x) => {
      const batch = tf.spaceToBatchND(
        x,
        [2, 3],
        [
          [1, 1],
          [0, 3],
        ],
      );
      const space = tf.batchToSpaceND(
        batch,
        [2, 3],
        [
          [1, 0],
          [0, 2],
        ],
      );
      return { batch, space };
    },
  },
  {
    name: 'depthToSpace',
    inputs: [normal(2, 2, 3, 8)],
    fn: (x) => tf.depthToSpace(x as tf.Tensor4D, 2),
    gradient: false,
  },
  { name: 'diag', inputs: [normal(2, 3)], fn: (x) => tf.diag(x), gradient: false },
  ...(['ij,jk->ik', 'ij,kj->ki', 'ij,ij->', 'ij,ij->i'] as const).map((equation): Case => ({
    name: `einsum ${equation}`,
    inputs: [normal(4, 4), normal(4, 4)],
    fn: (a, b) => tf.einsum(equation, a, b),
    gradient: false,
  })),
  {
    name: 'einsum bijc->cb',
    inputs: [normal(2, 3, 4, 5)],
    fn: (x) => tf.einsum('bijc->cb', x),
    gradient: false,
  },
  {
    name: 'einsum bnqd,bknd->bqnk',
    inputs: [normal(2, 3, 4, 5), normal(2, 6, 3, 5)],
    fn: (a, b) => tf.einsum('bnqd,bknd->bqnk', a, b),
    gradient: false,
  },
  {
    name: 'topk',
    inputs: [normal(3, 4, 9)],
    fn: (x) => ({ ...tf.topk(x, 4) }),
    gradient: false,
  },
  {
    name: 'topk of ties',
    inputs: [int(4, 3, 9)],
    fn: (x) => ({ ...tf.topk(x, 6) }),
    gradient: false,
  },
  {
    name: 'lowerBound and upperBound',
    inputs: [int(10, 3, 7), int(12, 3, 5)],
    fn: (x, values) => {
      const sorted = tf.cumsum(x, 1);
      const wanted = tf.mul(values, tf.scalar(3, 'int32'));
      return [tf.lowerBound(sorted, wanted), tf.upperBound(sorted, wanted)];
    },
    gradient: false,
  },
  {
    name: 'bincount and denseBincount',
    inputs: [int(9, 20), positive(20), int(9, 3, 20), positive(3, 20)],
    fn: (x, weights, rows, rowWeights) => [
      tf.bincount(toInt(x) as tf.Tensor1D, weights as tf.Tensor1D, 7),
      tf.bincount(toInt(x) as tf.Tensor1D, tf.tensor1d([]), 9),
      tf.denseBincount(toInt(rows) as tf.Tensor2D, rowWeights as tf.Tensor2D, 7),
      tf.denseBincount(toInt(rows) as tf.Tensor2D, tf.tensor2d([], [0, 0]), 9, true),
    ],
    gradient: false,
  },
  {
    name: 'sparseToDense',
    inputs: [normal(3)],
    fn: (x) =>
      tf.sparseToDense(
        tf.tensor2d(
          [
            [0, 1],
            [2, 3],
            [3, 0],
          ],
          [3, 2],
          'int32',
        ),
        x,
        [4, 5],
        tf.scalar(0.5),
      ),
    gradient: false,
  },
  {
    name: 'bitwiseAnd',
    inputs: [int(200, 4, 5), int(200, 4, 5)],
    fn: (a, b) => tf.bitwiseAnd(toInt(a), toInt(b)),
    gradient: false,
  },
  {
    name: 'complex numbers: arithmetic, layout, absolute values',
    inputs: [normal(3, 4), normal(3, 4)],
    fn: (x, y) => {
      const [a, b] = [complexOf(x, y), complexOf(y, tf.neg(x))];
      return {
        product: parts(tf.mul(a, b)),
        sum: parts(tf.add(a, b)),
        difference: parts(tf.sub(a, b)),
        moved: parts(tf.concat([tf.transpose(a), tf.reshape(b, [4, 3])], 1)),
        magnitude: tf.abs(a),
        cast: parts(tf.cast(x, 'complex64')),
        zeros: parts(tf.zerosLike(a)),
      };
    },
    gradient: false,
  },
  {
    name: 'fft and its relatives',
    inputs: [normal(3, 12), normal(3, 12)],
    fn: (x, y) => ({
      fft: parts(tf.fft(complexOf(x, y))),
      ifft: parts(tf.ifft(complexOf(x, y))),
      rfft: parts(tf.rfft(x)),
      irfft: tf.irfft(tf.rfft(x)),
      stft: parts(tf.signal.stft(tf.reshape<tf.Rank.R1>(x, [36]), 8, 4)),
    }),
    gradient: false,
  },
  {
    name: 'argMax and argMin of NaN and of infinities alone, and of NaN among numbers',
    inputs: [normal(3, 4)],
    fn: (x) =>
      [NaN, -Infinity, Infinity].flatMap((value) => {
        const all = tf.fill([3, 4], value);
        const later = tf.concat([x, all, x], 1);
        return [all, later].flatMap((y) => [tf.argMax(y, 1), tf.argMin(y, 1)]);
      }),
    gradient: false,
  },
  {
    name: 'where of two types',
    inputs: [bool(3, 4), int(9, 3, 4), normal(3, 4)],
    fn: (c, a, b) => [tf.where(c, a, b), tf.where(c, b, a), tf.where(c, c, a), tf.where(c, b, c)],
    gradient: false,
  },
  {
    name: 'cumsum and cumprod of an empty axis, and beside one',
    inputs: [normal(2, 0), normal(0, 2)],
    fn: (x, y) => [x, y].flatMap((z) => [tf.cumsum(z, 1), tf.cumprod(z, 1)]),
    gradient: false,
  },
  {
    name: 'max and min with NaN',
    inputs: [normal(6, 40)],
    fn: (x) => {
      const holed = tf.where(tf.greater(x, 2), tf.mul(x, NaN), x);
      return [tf.max(holed, 1), tf.min(holed, 0), tf.maximum(0, holed), tf.minimum(holed, 0)];
    },
    gradient: false,
  },
];

describe('array kernels of the xla engine agree with tfjs-backend-cpu', () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  for (const [index, testCase] of CASES.entries()) {
    it(testCase.name, () => assertSame(engines, testCase, index));
  }

  it('every kernel of tfjs-backend-cpu is there', () => {
    const names = (backend: string) => tf.getKernelsForBackend(backend).map((k) => k.kernelName);
    const own = new Set(names(BACKEND_NAME));
    assert.deepEqual(
      names('cpu').filter((name) => !own.has(name)),
      [],
    );
  });

  it('multinomial draws events as often as they are probable, and the same for a seed', async () => {
    const { xla } = engines;
    const draw = xla.compile(
      (logits: tf.Tensor) => [
        tf.multinomial(logits as tf.Tensor2D, 4000, 7),
        tf.multinomial(logits as tf.Tensor2D, 4000, 7),
        tf.multinomial(logits as tf.Tensor2D, 4000, 8),
      ],
      { name: 'draw' },
    );
    const logits = xla.upload(Float32Array.of(0, Math.log(2), -Infinity, 0), [1, 4]);
    const [first, again, other] = await Promise.all(
      (await draw(logits)).map((samples) => samples.data()),
    );
    assert.deepEqual(first, again);
    assert.notDeepEqual(first, other);
    const share = (event: number) => first!.filter((sample) => sample === event).length / 4000;
    // Four standard deviations.
    for (const [event, expected] of [0.25, 0.5, 0, 0.25].entries()) {
      assert(Math.abs(share(event) - expected) <= 0.032, `event ${event}: ${share(event)}`);
    }
  });
});

describe('outside of compiled functions', () => {
  let engines: TestEngines;
  let xla: Engine;
  before(async () => {
    engines = await openTestEngines();
    ({ xla } = engines);
    await tf.setBackend(BACKEND_NAME);
  });
  after(() => {
    engines.close();
  });

  it('values can be read at once', () => {
    tf.tidy(() => {
      const y = tf.softmax(tf.tensor2d([[1, 2, 3]]));
      assertClose(y.dataSync(), [0.09003057, 0.24472848, 0.66524094], 1e-6, 'softmax');
      assert.equal(tf.sum(y).arraySync(), 1);
      assert.match(y.toString(), /0.0900306, 0.2447285, 0.66524/);
    });
  });

  it('a reshaped tensor shares the elements, also as an argument that is donated', async () => {
    const x = tf.tensor1d([1, 2, 3, 4, 5, 6]);
    const before = tf.memory();
    const y = tf.reshape(tf.expandDims(x), [2, 3]);
    const { numTensors, numDataBuffers } = tf.memory();
    assert.equal(numTensors, before.numTensors + 2);
    assert.equal(numDataBuffers, before.numDataBuffers);
    assert.deepEqual(tf.matMul(y as tf.Tensor2D, y as tf.Tensor2D, false, true).arraySync(), [
      [14, 32],
      [32, 77],
    ]);
    const double = xla.compile((z: tf.Tensor) => tf.mul(z, 2), { name: 'double', donate: [0] });
    const doubled = await double(y);
    assert.deepEqual(doubled.shape, [2, 3]);
    assert.deepEqual([...(await doubled.data())], [2, 4, 6, 8, 10, 12]);
    assert.deepEqual([...x.dataSync()], [1, 2, 3, 4, 5, 6]);
  });

  it('ops whose shapes depend on values, and strings, run on the host', () => {
    const { values, indices } = tf.unique(tf.tensor1d([3, 1, 3, 2]));
    assert.deepEqual(values.arraySync(), [3, 1, 2]);
    assert.deepEqual(indices.arraySync(), [0, 1, 0, 2]);
    const words = tf.tensor1d(['a', 'bc', 'd']);
    const texts: unknown = tf.concat([tf.slice(words, 1), words]).dataSync();
    assert.deepEqual(texts, ['bc', 'd', 'a', 'bc', 'd']);
    assert.deepEqual(tf.reshape(words, [3, 1]).shape, [3, 1]);
  });

  it('an index outside is refused, naming op and index', () => {
    const x = tf.tensor1d([1, 2, 3]);
    const isRefused = (error: unknown) =>
      hasCode(error, 'XLA_INDEX_OUT_OF_RANGE') && /GatherV2: the index value 3/.test(String(error));
    assert.throws(() => tf.gather(x, tf.tensor1d([0, 3], 'int32')), isRefused);
  });

  it('programs of ops are kept apart by what JSON does not tell apart', () => {
    const fills = [NaN, Infinity, -Infinity, 0, -0].map(
      (value) => tf.fill([1], value).dataSync()[0],
    );
    assert.deepEqual(fills, [NaN, Infinity, -Infinity, 0, -0]);
  });

  const inTrace = (name: string, fn: (x: tf.Tensor, i: tf.Tensor) => TensorTree) => {
    it(`${name} in a compiled function is refused, with the way round`, async () => {
      const traced = xla.compile(fn, { name: 'refused' });
      const [x, i] = [tf.tensor1d([1, 2, 2]), tf.tensor1d([0, 1, 1], 'int32')];
      await assert.rejects(
        async () => traced(x, i),
        (error) =>
          hasCode(error, 'XLA_HOST_OP_IN_TRACE') &&
          /while refused was being compiled.*outside of the compiled function/s.test(String(error)),
      );
    });
  };
  inTrace('unique', (x) => tf.unique(x).values);
  inTrace('nonMaxSuppression', (x) =>
    tf.image.nonMaxSuppression(tf.ones([3, 4]), x as tf.Tensor1D, 2),
  );
  inTrace('sparseSegmentSum', (x, i) =>
    tf.sparse.sparseSegmentSum(x, tf.tensor1d([0, 1, 2], 'int32'), i as tf.Tensor1D),
  );
  inTrace('stringNGrams', (_, splits) => {
    const words = tf.tensor1d(['a', 'b', 'c']);
    return tf.string.stringNGrams(words, splits, '-', [2], '', '', 0, false)['nGramsSplits']!;
  });

  it('a host op on constants may be part of a compiled function', async () => {
    const fn = xla.compile((x: tf.Tensor) => tf.mul(x, tf.unique(tf.tensor1d([2, 2])).values), {
      name: 'constants',
    });
    assert.deepEqual([...(await (await fn(tf.tensor1d([3]))).data())], [6]);
  });

  it('reading in a compiled function is refused, naming the op', async () => {
    const fn = xla.compile((x: tf.Tensor) => tf.scalar(tf.square(x).dataSync()[0]!), {
      name: 'reads',
    });
    await assert.rejects(
      async () => fn(tf.tensor1d([3])),
      (error) => hasCode(error, 'XLA_READ_IN_TRACE') && /result of Square/.test(String(error)),
    );
  });
});
