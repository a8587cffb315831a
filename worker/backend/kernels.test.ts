import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openTestEngines } from './test/engines.ts';
import type { TestEngines } from './test/engines.ts';
import {
  assertClose,
  assertSame,
  bool,
  draw,
  int,
  normal,
  positive,
  toInt,
} from './test/kernel-cases.ts';
import type { Case, Input } from './test/kernel-cases.ts';

type T = tf.Tensor;
type Unary = (x: T) => T;
type Binary = (a: T, b: T) => T;

const X = normal(3, 4, 5);
const unary = (fns: Record<string, Unary>, input = X, more: Partial<Case> = {}): Case[] =>
  Object.entries(fns).map(([name, fn]) => ({ name, inputs: [input], fn, ...more }));
const binary = (fns: Record<string, Binary>, inputs: readonly Input[], more: Partial<Case> = {}) =>
  Object.entries(fns).map(([name, fn]) => ({
    name: `${name} of [${inputs.map(({ shape }) => shape.join()).join('] and [')}]`,
    inputs,
    fn: fn,
    ...more,
  }));

const { abs, neg, sign, square, relu, relu6, sqrt, rsqrt, exp, expm1, log, log1p } = tf;
const { tanh, sigmoid, erf, sin, cos, tan, reciprocal, softplus, elu, selu, step } = tf;
const { add, sub, mul, div, maximum, minimum, squaredDifference, mod } = tf;
const { equal, notEqual, greater, greaterEqual, less, lessEqual } = tf;

const CASES: readonly Case[] = [
  ...unary({
    abs,
    neg,
    square,
    relu,
    relu6,
    exp,
    expm1,
    tanh,
    sigmoid,
    erf,
    sin,
    cos,
    softplus,
    elu,
    selu,
  }),
  ...unary({ sign, ceil: tf.ceil, floor: tf.floor, round: tf.round, step }),
  ...unary({ isNaN: tf.isNaN, isInf: tf.isInf, isFinite: tf.isFinite }, X, { gradient: false }),
  ...unary({ leakyRelu: (x) => tf.leakyRelu(x, 0.1), clip: (x) => tf.clipByValue(x, -0.5, 0.5) }),
  ...unary({ sqrt, rsqrt, log, log1p, reciprocal, tan }, positive(3, 4, 5)),
  ...unary({ gelu: (x) => tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1)) }),

  ...binary({ add, sub, mul, div, maximum, minimum, squaredDifference }, [
    normal(3, 4),
    normal(3, 4),
  ]),
  ...binary({ add, sub, mul, maximum, minimum, squaredDifference }, [
    normal(2, 1, 4),
    normal(3, 1),
  ]),
  ...binary({ div, pow: (a, b) => tf.pow(a, b) }, [positive(3, 4), positive(4)]),
  ...binary({ mul, add }, [normal(), normal(2, 3)]),
  ...binary({ mod, floorDiv: (a, b) => tf.floorDiv(a, b) }, [normal(5, 6), normal(6)], {
    gradient: false,
  }),
  {
    name: 'mod of a tiny number, and by infinity',
    inputs: [X],
    fn: () => [mod(-1e-20, 1), mod(1e-20, -1), mod(5, -Infinity), mod(5, Infinity)],
    gradient: false,
  },
  {
    name: 'clip of integers at bounds beyond them',
    inputs: [int(40, 5, 6)],
    fn: (x) => [tf.clipByValue(x, -Infinity, 3), tf.clipByValue(x, -1e10, 1e10)],
    gradient: false,
  },
  ...binary(
    { add, sub, mul, maximum, floorDiv: (a, b) => tf.floorDiv(tf.sub(a, 20), tf.sub(b, 20.5)) },
    [int(40, 5, 6), int(40, 6)],
    { gradient: false },
  ),
  ...binary(
    { equal, notEqual, greater, greaterEqual, less, lessEqual },
    [int(3, 4, 5), int(3, 5)],
    {
      gradient: false,
    },
  ),
  ...binary({ greater, lessEqual }, [normal(4, 5), normal(4, 5)], { gradient: false }),
  ...binary(
    { logicalAnd: tf.logicalAnd, logicalOr: tf.logicalOr, logicalXor: tf.logicalXor },
    [bool(4, 5), bool(5)],
    { gradient: false },
  ),
  { name: 'logicalNot', inputs: [bool(4, 5)], fn: (x) => tf.logicalNot(x), gradient: false },
  { name: 'addN', inputs: [X, X, X], fn: (...xs) => tf.addN(xs) },
  { name: 'prelu', inputs: [X, normal(5)], fn: (x, alpha) => tf.prelu(x, alpha) },
  {
    name: 'where',
    inputs: [bool(3, 4), normal(3, 4), normal(3, 4)],
    fn: (c, a, b) => tf.where(c, a, b),
  },
  {
    name: 'where, broadcast',
    inputs: [bool(3, 1), normal(3, 4), normal(4)],
    fn: (c, a, b) => tf.where(c, a, b),
  },

  ...unary({
    'reshape to [-1, 10]': (x) => tf.reshape(x, [-1, 10]),
    'expandDims at -1': (x) => tf.expandDims(x, -1),
    'expandDims at 1': (x) => tf.expandDims(x, 1),
    squeeze: (x) => tf.squeeze(tf.reshape(x, [3, 1, 20])),
    transpose: (x) => tf.transpose(x, [2, 0, 1]),
    'transpose of all': (x) => tf.transpose(x),
    slice: (x) => tf.slice(x, [1, 0, 2], [2, -1, 3]),
    'slice of rank 1': (x) => tf.slice(x, 1),
    broadcastTo: (x) => tf.broadcastTo(tf.slice(x, [0, 1, 0], [3, 1, 5]), [2, 3, 6, 5]),
    'stack in the middle': (x) => tf.stack([x, tf.neg(x)], 1),
    concat: (x) => tf.concat([x, tf.square(x), tf.slice(x, [0, 0, 0], [3, 2, 5])], 1),
    'concat at -1': (x) => tf.concat([x, x], -1),
    pad: (x) =>
      tf.pad(
        x,
        [
          [1, 0],
          [0, 2],
          [3, 1],
        ],
        0.5,
      ),
    'mirrorPad, reflect': (x) =>
      tf.mirrorPad(
        x,
        [
          [1, 0],
          [0, 2],
          [3, 1],
        ],
        'reflect',
      ),
    'mirrorPad, symmetric': (x) =>
      tf.mirrorPad(
        x,
        [
          [1, 0],
          [0, 2],
          [3, 1],
        ],
        'symmetric',
      ),
    tile: (x) => tf.tile(x, [2, 1, 3]),
    reverse: (x) => tf.reverse(x, [0, 2]),
    clone: (x) => tf.clone(x),
  }),
  ...unary(
    {
      stridedSlice: (x) => tf.stridedSlice(x, [0, 1, 0], [3, 4, 5], [2, 1, 3]),
      'stridedSlice backwards': (x) => tf.stridedSlice(x, [2, 0, 4], [0, 4, 0], [-1, 2, -2]),
      'stridedSlice with shrink mask': (x) =>
        tf.stridedSlice(x, [1, 2, 1], [2, 4, 5], [1, 1, 1], 0, 0, 0, 0, 1),
    },
    X,
    { gradient: false },
  ),
  { name: 'unstack', inputs: [X], fn: (x) => tf.unstack(x, 1) },
  { name: 'unstack of one', inputs: [normal(1, 4)], fn: (x) => tf.unstack(x, 0) },
  { name: 'split', inputs: [normal(4, 6)], fn: (x) => tf.split(x, 3, 1) },
  { name: 'split by sizes', inputs: [normal(4, 6)], fn: (x) => tf.split(x, [1, 3, 2], -1) },

  ...unary({
    sum: (x) => tf.sum(x),
    'sum of axis 1': (x) => tf.sum(x, 1),
    'sum of two axes, kept': (x) => tf.sum(x, [0, -1], true),
    mean: (x) => tf.mean(x),
    'mean of axis -1, kept': (x) => tf.mean(x, -1, true),
    max: (x) => tf.max(x, 1),
    'max, kept': (x) => tf.max(x, [0, 2], true),
    min: (x) => tf.min(x, -1),
    cumsum: (x) => tf.cumsum(x, 1),
    'cumsum, exclusive': (x) => tf.cumsum(x, 2, true),
    'cumsum, reverse': (x) => tf.cumsum(x, 0, false, true),
    'cumsum, exclusive and reverse': (x) => tf.cumsum(x, 1, true, true),
    logSumExp: (x) => tf.logSumExp(x, -1),
    moments: (x) => tf.moments(x, [0, 1]).variance,
    norm: (x) => tf.norm(x, 'euclidean', -1),
  }),
  ...unary({ prod: (x) => tf.prod(x, 1), 'prod of all': (x) => tf.prod(x) }, positive(2, 3)),
  ...unary({ argMax: (x) => tf.argMax(x, 1), argMin: (x) => tf.argMin(x, -1) }, X, {
    gradient: false,
  }),
  ...unary({ 'argMax of ties': (x) => tf.argMax(x, 1), sum: (x) => tf.sum(x, 0) }, int(2, 6, 7), {
    gradient: false,
  }),
  ...unary(
    { all: (x) => tf.all(x, 1), any: (x) => tf.any(x, 0), 'sum of booleans': (x) => tf.sum(x, 1) },
    bool(3, 2),
    { gradient: false },
  ),
  { name: 'cumprod', inputs: [positive(3, 4)], fn: (x) => tf.cumprod(x, 1), gradient: false },

  ...unary({
    softmax: (x) => tf.softmax(x),
    'softmax of large numbers': (x) => tf.softmax(tf.mul(x, 100)),
    logSoftmax: (x) => tf.logSoftmax(x),
    'logSoftmax of large numbers': (x) => tf.logSoftmax(tf.mul(x, 100)),
  }),
  {
    name: 'batchNorm',
    inputs: [normal(4, 5), normal(5), positive(5), normal(5), normal(5)],
    fn: (x, mean, variance, offset, scale) => tf.batchNorm(x, mean, variance, offset, scale, 1e-3),
  },

  ...[false, true].flatMap((transposeA) =>
    [false, true].flatMap((transposeB): Case[] => {
      const a = transposeA ? [4, 3] : [3, 4];
      const b = transposeB ? [5, 4] : [4, 5];
      const label = `${transposeA ? 'A transposed' : 'A'} ${transposeB ? 'B transposed' : 'B'}`;
      return [
        {
          name: `matMul, ${label}`,
          inputs: [normal(...a), normal(...b)],
          fn: (x, y) => tf.matMul(x, y, transposeA, transposeB),
        },
        {
          name: `matMul, batched, ${label}`,
          inputs: [normal(2, 3, ...a), normal(2, 3, ...b)],
          fn: (x, y) => tf.matMul(x, y, transposeA, transposeB),
        },
      ];
    }),
  ),
  // Long sums of transposed matrices are built in another way on a CPU, by which of the two is the smaller.
  ...[
    [3, 5],
    [5, 3],
  ].flatMap(([rows, columns]): Case[] => [
    {
      name: `matMul, A transposed, a long sum, [${rows}, ${columns}]`,
      inputs: [normal(300, rows!), normal(300, columns!)],
      fn: (x, y) => tf.matMul(x, y, true),
    },
    {
      name: `matMul, batched, A transposed, a long sum, [${rows}, ${columns}]`,
      inputs: [normal(2, 3, 300, rows!), normal(2, 3, 300, columns!)],
      fn: (x, y) => tf.matMul(x, y, true),
    },
  ]),
  {
    name: 'matMul, broadcast batch',
    inputs: [normal(1, 3, 4), normal(3, 4, 5)],
    fn: (a, b) => tf.matMul(a, b),
  },
  { name: 'dot', inputs: [normal(7), normal(7)], fn: (a, b) => tf.dot(a, b) },
  ...(['linear', 'relu', 'relu6', 'elu', 'sigmoid', 'leakyrelu'] as const).map(
    (activation): Case => ({
      name: `fused matMul, ${activation}`,
      inputs: [normal(3, 4), normal(4, 5), normal(5)],
      fn: (a, b, bias) => tf.fused.matMul({ a: a, b: b, bias: bias, activation }),
      // tfjs has no gradient for the rest, and under a tape it does not fuse.
      gradient: activation === 'linear' || activation === 'relu',
    }),
  ),

  { name: 'gather', inputs: [normal(7, 4), int(7, 5)], fn: (x, i) => tf.gather(x, toInt(i)) },
  {
    name: 'gather, repeated rows',
    inputs: [normal(3, 4), int(3, 20)],
    fn: (x, i) => tf.gather(x, toInt(i)),
  },
  {
    name: 'gather of a middle axis',
    inputs: [normal(3, 7, 4), int(7, 2, 5)],
    fn: (x, i) => tf.gather(x, toInt(i), 1),
  },
  {
    name: 'gather with a batch axis',
    inputs: [normal(3, 7, 4), int(7, 3, 2)],
    fn: (x, i) => tf.gather(x, toInt(i), 1, 1),
  },
  {
    name: 'gather with a batch axis, last axis',
    inputs: [normal(3, 7, 4), int(4, 3, 2)],
    fn: (x, i) => tf.gather(x, toInt(i), 2, 1),
  },
  {
    name: 'gatherND',
    inputs: [normal(4, 4, 3), int(4, 5, 2)],
    fn: (x, i) => tf.gatherND(x, toInt(i)),
    gradient: false,
  },
  {
    name: 'scatterND',
    inputs: [int(4, 6, 1), normal(6, 3)],
    fn: (i, u) => tf.scatterND(toInt(i), u, [4, 3]),
    gradient: false,
  },
  {
    name: 'tensorScatterUpdate',
    inputs: [normal(5, 3), normal(2, 3)],
    fn: (x, u) => tf.tensorScatterUpdate(x, tf.tensor2d([[3], [1]], [2, 1], 'int32'), u),
    gradient: false,
  },
  {
    name: 'unsortedSegmentSum',
    inputs: [normal(8, 3), int(4, 8)],
    fn: (x, i) => tf.unsortedSegmentSum(x, toInt(i) as tf.Tensor1D, 4),
  },
  {
    name: 'oneHot',
    inputs: [int(5, 3, 4)],
    fn: (i) => tf.oneHot(toInt(i), 5, 2, -1),
    gradient: false,
  },
  {
    name: 'cast to int32',
    inputs: [X],
    fn: (x) => tf.cast(tf.mul(x, 3), 'int32'),
    gradient: false,
  },
  { name: 'cast to bool', inputs: [int(2, 3, 4)], fn: (x) => tf.cast(x, 'bool'), gradient: false },
  {
    name: 'cast from bool',
    inputs: [bool(3, 4)],
    fn: (x) => tf.cast(x, 'float32'),
    gradient: false,
  },
  {
    name: 'creation: fill, range, linspace, zerosLike, onesLike, eye and constants',
    inputs: [X],
    fn: (x) => [
      tf.fill([2, 3], 1.5),
      tf.fill([2], 7, 'int32'),
      tf.fill([2], NaN, 'int32'),
      tf.range(2, 11, 3),
      tf.range(5, 0, -2, 'int32'),
      tf.linspace(-1, 1, 7),
      tf.zerosLike(x),
      tf.onesLike(x),
      tf.eye(20),
      tf.tensor([Math.fround(0.1), -0, 1e-42, 3e38]),
      tf.tensor([1, -2147483648, 7], [3], 'int32'),
      tf.tensor([true, false, true], [3], 'bool'),
      tf.add(x, tf.ones([3, 4, 5])),
    ],
    gradient: false,
  },
];

describe('kernels of the xla engine agree with tfjs-backend-cpu', () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  for (const [index, testCase] of CASES.entries()) {
    it(testCase.name, async () => {
      await assertSame(engines, testCase, index);
    });
  }

  it('run one at a time outside compiled functions, with the same results', async () => {
    const { xla } = engines;
    await tf.setBackend('xla');
    const a = xla.upload(draw(normal(3, 4), 1), [3, 4]);
    const b = tf.tensor2d([1, 2, 3, 4, 5, 6, 7, 8], [4, 2]);
    const before = tf.memory().numTensors;
    const y = tf.tidy(() => tf.softmax(tf.matMul(a as tf.Tensor2D, b)));
    const g = tf.tidy(() =>
      tf.grad((x: tf.Tensor) => tf.sum(tf.exp(tf.matMul(x as tf.Tensor2D, b))))(a),
    );
    const [actualY, actualG] = [await y.data(), await g.data()];
    tf.dispose([y, g]);
    assert.equal(tf.memory().numTensors, before);
    const expected = engines.cpu.compile(
      (x: tf.Tensor, w: tf.Tensor) => ({
        y: tf.softmax(tf.matMul(x as tf.Tensor2D, w as tf.Tensor2D)),
        g: tf.grad((z: tf.Tensor) => tf.sum(tf.exp(tf.matMul(z as tf.Tensor2D, w as tf.Tensor2D))))(
          x,
        ),
      }),
      { name: 'expected' },
    );
    const aCpu = engines.cpu.upload(draw(normal(3, 4), 1), [3, 4]);
    const bCpu = engines.cpu.upload(Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8), [4, 2]);
    const want = await expected(aCpu, bCpu);
    assertClose(actualY, await want.y.data(), 2e-5, 'y');
    assertClose(actualG, await want.g.data(), 2e-5, 'g');
  });

  it('hand the products of a backward pass their operands as the CPU reads them', async () => {
    const { xla } = engines;
    const [rows, inner, columns] = [512, 6, 4];
    const step = xla.compile(
      (x: tf.Tensor, w: tf.Tensor) =>
        tf.grad((given: tf.Tensor) => tf.sum(tf.square(tf.matMul(x as tf.Tensor2D, given))))(w),
      { name: 'step' },
    );
    const x = xla.upload(draw(normal(rows, inner), 1), [rows, inner]);
    const w = xla.upload(draw(normal(inner, columns), 2), [inner, columns]);
    const { mlir } = (await step.lower(x, w))!;
    assert.equal(mlir.match(/dot_general/g)?.length, 2);
    assert.doesNotMatch(mlir, /lhs_contracting_dimensions = \[0\]/);
    assert.match(mlir, /LayoutConstraint/);
    tf.dispose([x, w]);
  });
});
