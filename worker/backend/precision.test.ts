import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../proto/random.ts';
import { LEAST_LOOPED_LAYERS, repeatLayers } from '../layer-loop.ts';
import { pluginCacheDir } from '../pjrt/plugin.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import { openEngine, type Engine } from './engine.ts';

/** The nearest bfloat16, ties to even. */
function toBfloat16(value: number): number {
  const bits = new DataView(new ArrayBuffer(4));
  bits.setFloat32(0, value);
  const word = bits.getUint32(0);
  bits.setUint32(0, (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000);
  return bits.getFloat32(0);
}

/** A compiler may keep a result in float32 where nothing stores it. Distance between neighbouring bfloat16 numbers, relative. */
const ULP = 2 ** -7;

async function openBfloat16(): Promise<Engine> {
  const pluginPath = await cpuPlugin();
  const cacheDir = path.dirname(pluginCacheDir(process.env));
  const options = { engine: 'xla', pluginPath, cacheDir, precision: 'bfloat16' } as const;
  return openEngine(options);
}

test('under bfloat16 products round their operands; sums inside them and all else are float32', async () => {
  const engine = await openBfloat16();
  try {
    const [rows, inner, columns] = [3, 257, 2];
    const rng = openRng(3, 'precision');
    const draw = (length: number): Float32Array =>
      Float32Array.from({ length }, () => rng.normal());
    const [a, b] = [draw(rows * inner), draw(inner * columns)];
    const run = engine.compile(
      (x: tf.Tensor, y: tf.Tensor) => ({
        product: tf.matMul(x as tf.Tensor2D, y as tf.Tensor2D),
        sum: tf.sum(x),
        scaled: tf.mul(x, 1 / 3),
        gradient: tf.grad((given: tf.Tensor) =>
          tf.sum(tf.matMul(given as tf.Tensor2D, y as tf.Tensor2D)),
        )(x),
      }),
      { name: 'precision' },
    );
    const inputs = [engine.upload(a, [rows, inner]), engine.upload(b, [inner, columns])] as const;
    const { product, sum, scaled, gradient } = await run(...inputs);
    assert.equal(product.dtype, 'float32');
    const found = await product.data();
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        let exact = 0;
        for (let k = 0; k < inner; k++)
          exact += toBfloat16(a[i * inner + k]!) * toBfloat16(b[k * columns + j]!);
        const got = found[i * columns + j]!;
        assert.ok(Math.abs(got - exact) <= ULP * Math.abs(exact) + 1e-4, `${got} for ${exact}`);
      }
    }
    const total = a.reduce((x, y) => x + y, 0);
    assert.ok(Math.abs((await sum.data())[0]! - total) < 1e-4, 'sums are float32');
    assert.equal((await scaled.data())[0], Math.fround(a[0]! * Math.fround(1 / 3)));
    const first = b[0]! + b[1]!;
    const near = (await gradient.data())[0]!;
    assert.ok(Math.abs(near - first) <= 2 * ULP * (Math.abs(b[0]!) + Math.abs(b[1]!)));
    const { mlir } = (await run.lower(...inputs))!;
    assert.match(mlir, /dot_general.*tensor<3x257xbf16>, tensor<257x2xbf16>\) -> tensor<3x2xbf16>/);
  } finally {
    engine.close();
  }
});

test('the gradient of a resized image is float32 under bfloat16', async () => {
  const engine = await openBfloat16();
  try {
    const rng = openRng(7, 'resize');
    const [from, to] = [3, 7];
    const dy = Float32Array.from({ length: to * to }, () => rng.normal());
    const run = engine.compile(
      (image: tf.Tensor, late: tf.Tensor) =>
        tf.grad((x: tf.Tensor) => tf.image.resizeNearestNeighbor(x as tf.Tensor3D, [to, to]))(
          image,
          late,
        ),
      { name: 'resize' },
    );
    const image = engine.upload(new Float32Array(from * from), [from, from, 1]);
    const found = await (await run(image, engine.upload(dy, [to, to, 1]))).data();
    const exact = new Float64Array(from * from);
    const source = (i: number): number => Math.floor((i * from) / to);
    for (let i = 0; i < to; i++)
      for (let j = 0; j < to; j++) exact[source(i) * from + source(j)]! += dy[i * to + j]!;
    for (const [i, value] of exact.entries())
      assert.ok(Math.abs(found[i]! - value) < 1e-5, `${found[i]} for ${value}`);
  } finally {
    engine.close();
  }
});

test('gradients of long sums are of their operands type under bfloat16, on either side', async () => {
  const engine = await openBfloat16();
  try {
    const rng = openRng(5, 'precision');
    for (const [rows, inner, columns] of [
      [300, 2, 3], // long enough for a product that is handed its operands transposed
      [300, 3, 2],
    ] as const) {
      const draw = (length: number): Float32Array =>
        Float32Array.from({ length }, () => rng.normal());
      const [a, b, dy] = [draw(rows * inner), draw(inner * columns), draw(rows * columns)];
      const run = engine.compile(
        (x: tf.Tensor, y: tf.Tensor, late: tf.Tensor) =>
          tf.mul(
            tf.grad((kernel: tf.Tensor) => tf.matMul(x as tf.Tensor2D, kernel as tf.Tensor2D))(
              y,
              late,
            ),
            1, // f32 with f32
          ),
        { name: 'long-sums' },
      );
      const gradient = await run(
        engine.upload(a, [rows, inner]),
        engine.upload(b, [inner, columns]),
        engine.upload(dy, [rows, columns]),
      );
      assert.equal(gradient.dtype, 'float32');
      const found = await gradient.data();
      for (let i = 0; i < inner; i++) {
        for (let j = 0; j < columns; j++) {
          let exact = 0;
          for (let k = 0; k < rows; k++)
            exact += toBfloat16(a[k * inner + i]!) * toBfloat16(dy[k * columns + j]!);
          const got = found[i * columns + j]!;
          assert.ok(Math.abs(got - exact) <= ULP * Math.abs(exact) + 1e-3, `${got} for ${exact}`);
        }
      }
    }
  } finally {
    engine.close();
  }
});

test('layers in a loop have under bfloat16 the gradients of layers one by one', async () => {
  const engine = await openBfloat16();
  try {
    const [layers, width, rows] = [LEAST_LOOPED_LAYERS, 4, 2];
    const rng = openRng(4, 'precision');
    const draw = (length: number): Float32Array =>
      Float32Array.from({ length }, () => rng.normal());
    const layer = (kernel: tf.Tensor, x: tf.Tensor): tf.Tensor =>
      tf.tanh(tf.matMul(x as tf.Tensor2D, kernel as tf.Tensor2D));
    const gradientOf = (forward: (kernels: tf.Tensor, x: tf.Tensor) => tf.Tensor) =>
      engine.compile(
        (kernels: tf.Tensor, x: tf.Tensor) =>
          tf.grad((given: tf.Tensor) => tf.sum(forward(given, x)))(kernels),
        { name: 'layers' },
      );
    const looped = gradientOf((kernels, x) =>
      repeatLayers({ '*': { kernels } }, x, (own, state) => layer(own.kernels, state)),
    );
    const apart = gradientOf((kernels, x) =>
      tf.unstack(kernels).reduce((state, kernel) => layer(kernel, state), x),
    );
    const inputs = [
      engine.upload(draw(layers * width * width), [layers, width, width]),
      engine.upload(draw(rows * width), [rows, width]),
    ] as const;
    const [found, expected] = [await looped(...inputs), await apart(...inputs)];
    const [values, wanted] = [await found.data(), await expected.data()];
    const largest = Math.max(...Array.from(wanted, Math.abs));
    for (const [i, value] of values.entries())
      assert.ok(Math.abs(value - wanted[i]!) <= 4 * ULP * largest, `${value} for ${wanted[i]!}`);
  } finally {
    engine.close();
  }
});
