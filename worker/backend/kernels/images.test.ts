import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openTestEngines } from '../test/engines.ts';
import type { TestEngines } from '../test/engines.ts';
import { assertSame, int, normal, positive, toInt } from '../test/kernel-cases.ts';
import type { Case } from '../test/kernel-cases.ts';

const IMAGE = normal(2, 6, 7, 3);
const VOLUME = normal(1, 4, 5, 6, 2);
const as4D = (x: tf.Tensor) => x as tf.Tensor4D;
const as5D = (x: tf.Tensor) => x as tf.Tensor5D;

const CONVOLUTIONS: readonly Case[] = [
  ...(
    [
      [1, 'same', 1],
      [2, 'same', 1],
      [2, 'valid', 1],
      [1, 'same', 2],
      [[1, 2], 2, 1],
    ] as const
  ).flatMap(([strides, pad, dilations]): Case[] => [
    {
      name: `conv2d, strides ${String(strides)}, ${pad}, dilations ${dilations}`,
      inputs: [IMAGE, normal(3, 2, 3, 4)],
      fn: (x, w) =>
        tf.conv2d(as4D(x), as4D(w), strides as [number, number], pad, 'NHWC', dilations),
      gradient: dilations === 1, // tfjs refuses others
    },
    {
      name: `depthwiseConv2d, strides ${String(strides)}, ${pad}, dilations ${dilations}`,
      inputs: [IMAGE, normal(3, 3, 3, 2)],
      fn: (x, w) =>
        tf.depthwiseConv2d(as4D(x), as4D(w), strides as [number, number], pad, 'NHWC', dilations),
      gradient: dilations === 1,
    },
  ]),
  {
    name: 'conv2d, channels first',
    inputs: [normal(2, 3, 6, 7), normal(3, 2, 3, 4)],
    fn: (x, w) => tf.conv2d(as4D(x), as4D(w), 2, 'same', 'NCHW'),
    gradient: false,
  },
  {
    name: 'conv2dTranspose',
    inputs: [normal(2, 3, 4, 2), normal(3, 3, 5, 2)],
    fn: (x, w) => tf.conv2dTranspose(as4D(x), as4D(w), [2, 6, 8, 5], 2, 'same'),
  },
  {
    name: 'conv3d',
    inputs: [VOLUME, normal(2, 3, 3, 2, 3)],
    fn: (x, w) => tf.conv3d(as5D(x), as5D(w), [1, 2, 1], 'same'),
  },
  {
    name: 'conv3dTranspose',
    inputs: [normal(1, 2, 3, 3, 2), normal(2, 3, 3, 4, 2)],
    fn: (x, w) => tf.conv3dTranspose(as5D(x), as5D(w), [1, 4, 6, 6, 4], 2, 'same'),
    gradient: false,
  },
  ...(['linear', 'relu', 'relu6', 'elu', 'sigmoid'] as const).map((activation): Case => ({
    name: `fused conv2d, ${activation}`,
    inputs: [IMAGE, normal(3, 3, 3, 4), normal(4)],
    fn: (x, w, bias) =>
      tf.fused.conv2d({ x: as4D(x), filter: as4D(w), strides: 1, pad: 'same', bias, activation }),
    gradient: false,
  })),
  {
    name: 'fused depthwiseConv2d, prelu',
    inputs: [IMAGE, normal(3, 3, 3, 1), normal(3), normal(3)],
    fn: (x, w, bias, preluActivationWeights) =>
      tf.fused.depthwiseConv2d({
        x: as4D(x),
        filter: as4D(w),
        strides: 1,
        pad: 'same',
        bias,
        activation: 'prelu',
        preluActivationWeights,
      }),
    gradient: false,
  },
  {
    name: 'separableConv2d',
    inputs: [IMAGE, normal(3, 3, 3, 2), normal(1, 1, 6, 4)],
    fn: (x, depthwise, pointwise) =>
      tf.separableConv2d(as4D(x), as4D(depthwise), as4D(pointwise), 1, 'same'),
  },
];

const POOLS: readonly Case[] = [
  ...(['same', 'valid', 1] as const).flatMap((pad): Case[] => [
    { name: `maxPool, ${pad}`, inputs: [IMAGE], fn: (x) => tf.maxPool(as4D(x), 3, 2, pad) },
    {
      name: `avgPool, ${pad}`,
      inputs: [IMAGE],
      fn: (x) => tf.avgPool(as4D(x), [3, 2], 2, pad),
      gradient: pad === 'valid', // see below
    },
  ]),
  { name: 'maxPool3d', inputs: [VOLUME], fn: (x) => tf.maxPool3d(as5D(x), 2, 2, 'same') },
  { name: 'avgPool3d', inputs: [VOLUME], fn: (x) => tf.avgPool3d(as5D(x), 2, 2, 'valid') },
  {
    name: 'maxPoolWithArgmax',
    inputs: [IMAGE],
    fn: (x) => {
      const { result, indexes } = tf.maxPoolWithArgmax(as4D(x), 3, 2, 'same', true);
      return { result: result!, indexes: indexes! };
    },
    gradient: false,
  },
  {
    name: 'maxPool of ties',
    inputs: [int(2, 1, 6, 6, 2)],
    fn: (x) => tf.grad((y: tf.Tensor) => tf.maxPool(as4D(y), 2, 1, 'valid'))(tf.cast(x, 'float32')),
    gradient: false,
  },
  {
    name: 'dilation2d',
    inputs: [IMAGE, normal(2, 3, 3)],
    fn: (x, w) => tf.dilation2d(as4D(x), w as tf.Tensor3D, [1, 2], 'same'),
  },
  {
    name: 'dilation2d, dilations 2',
    inputs: [IMAGE, normal(2, 2, 3)],
    fn: (x, w) => tf.dilation2d(as4D(x), w as tf.Tensor3D, 1, 'valid', 2),
  },
  {
    name: 'localResponseNormalization',
    inputs: [normal(1, 2, 3, 7)],
    fn: (x) => tf.localResponseNormalization(as4D(x), 2, 1, 0.5, 0.75),
  },
];

const { image } = tf;
const SIZES = [
  [9, 11],
  [4, 3],
  [1, 14],
] as const;
const IMAGES: readonly Case[] = [
  ...SIZES.flatMap(([rows, columns]) =>
    [false, true].flatMap((alignCorners): Case[] => [
      {
        name: `resizeBilinear to ${rows} x ${columns}, alignCorners ${alignCorners}`,
        inputs: [normal(2, 5, 5, 3)],
        fn: (x) => image.resizeBilinear(as4D(x), [rows, columns], alignCorners),
      },
      {
        name: `resizeNearestNeighbor to ${rows} x ${columns}, alignCorners ${alignCorners}`,
        inputs: [normal(1, 5, 5, 3)], // of more images tfjs-backend-cpu mixes up the gradients
        fn: (x) => image.resizeNearestNeighbor(as4D(x), [rows, columns], alignCorners),
      },
    ]),
  ),
  {
    name: 'resizes with half pixel centres',
    inputs: [IMAGE],
    fn: (x) => [
      image.resizeBilinear(as4D(x), [9, 4], false, true),
      image.resizeNearestNeighbor(as4D(x), [9, 4], false, true),
    ],
    gradient: false, // tfjs-backend-cpu ignores them in it
  },
  ...(['bilinear', 'nearest'] as const).flatMap((method): Case[] => [
    {
      name: `cropAndResize, ${method}`,
      inputs: [IMAGE, positive(4, 4), int(2, 4)],
      fn: (x, boxes, of) =>
        image.cropAndResize(
          as4D(x),
          boxes as tf.Tensor2D,
          toInt(of) as tf.Tensor1D,
          [3, 4],
          method,
          0.5,
        ),
      gradient: false,
    },
    ...(['constant', 'reflect', 'wrap', 'nearest'] as const).map((fillMode): Case => ({
      name: `transform, ${method}, ${fillMode}`,
      inputs: [normal(1, 6, 7, 2)],
      fn: (x) =>
        image.transform(
          as4D(x),
          tf.tensor2d([[0.8, 0.3, -1.2, -0.2, 1.1, 1.7, 0.01, 0.02]]),
          method,
          fillMode,
          0.25,
          [8, 9],
        ),
      gradient: false,
    })),
  ]),
  {
    name: 'rotateWithOffset and flipLeftRight',
    inputs: [normal(2, 8, 9, 4)],
    fn: (x) => [
      image.rotateWithOffset(as4D(x), Math.PI / 5, [1, 2, 3], [0.25, 0.75]),
      image.rotateWithOffset(as4D(x), -1, 0.5),
      image.flipLeftRight(as4D(x)),
    ],
    gradient: false,
  },
];

describe('image kernels of the xla engine agree with tfjs-backend-cpu', () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  for (const [index, testCase] of [...CONVOLUTIONS, ...POOLS, ...IMAGES].entries()) {
    it(testCase.name, () => assertSame(engines, testCase, index));
  }

  // tfjs-backend-cpu divides by the window's size where the average is over fewer entries.
  it('the gradient of an average over windows that reach beyond the image is its derivative', async () => {
    const { xla } = engines;
    const sum = (x: tf.Tensor, weights: tf.Tensor) =>
      tf.sum(tf.mul(tf.avgPool(as4D(x), 3, 2, 'same'), weights));
    const step = xla.compile(
      (x: tf.Tensor, weights: tf.Tensor) => ({
        value: sum(x, weights),
        gradient: tf.grad((y: tf.Tensor) => sum(y, weights))(x),
      }),
      { name: 'average' },
    );
    const values = Float32Array.from({ length: 20 }, (_, i) => Math.sin(i));
    const weights = xla.upload(Float32Array.of(1, -2, 3, 0.5, 4, -1), [1, 2, 3, 1]);
    const at = async (data: Float32Array) => step(xla.upload(data, [1, 4, 5, 1]), weights);
    const gradient = await (await at(values)).gradient.data();
    for (const [index, partial] of gradient.entries()) {
      // Linear in x: a step of 1 is exact but for rounding.
      const moved = values.slice();
      moved[index]! += 1;
      const [above] = await (await at(moved)).value.data();
      const [here] = await (await at(values)).value.data();
      assert(Math.abs(above! - here! - partial) < 1e-5, `at ${index}: ${partial}`);
    }
  });

  // tfjs-backend-cpu ignores half pixel centres here, and mixes up the images of a batch.
  for (const resize of [image.resizeBilinear, image.resizeNearestNeighbor]) {
    it(`the gradient of ${resize.name} is its transpose, also with half pixel centres`, async () => {
      const { xla } = engines;
      const products = xla.compile(
        (x: tf.Tensor, dy: tf.Tensor) => {
          const resized = (y: tf.Tensor) => resize(as4D(y), [7, 3], false, true);
          const gradient = tf.grad(resized)(x, dy);
          return [tf.sum(tf.mul(resized(x), dy)), tf.sum(tf.mul(x, gradient))];
        },
        { name: 'transpose' },
      );
      const values = (size: number) =>
        Float32Array.from({ length: size }, (_, i) => Math.sin(i * i));
      const x = xla.upload(values(2 * 4 * 5 * 3), [2, 4, 5, 3]);
      const results = await products(x, xla.upload(values(2 * 7 * 3 * 3), [2, 7, 3, 3]));
      const [forward, backward] = await Promise.all(results.map((result) => result.data()));
      assert(Math.abs(forward![0]! - backward![0]!) < 1e-4, `${forward![0]!}, ${backward![0]!}`);
    });
  }
});
