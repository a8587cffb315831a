/** NF-ResNet against the released code's formulas, written out in scalars; gradients against differences of these. */
import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openEngine } from '../backend/engine.ts';
import { openInitializer } from '../initializer.ts';
import { leavesOf, withLeaves } from '../tree.ts';
import { initNfResNet, nfResNet, type NfResNetParams } from './nf-resnet.ts';

const SIZES = { channels: 3, width: 2, blocks: [2, 2] };
const [HEIGHT, WIDTH] = [10, 12];

/** Rows, columns, channels. */
type Picture = number[][][];
interface Values {
  readonly shape: readonly number[];
  readonly data: number[];
}
type Table = ReadonlyMap<string, Values>;

const mapped = (x: Picture, change: (value: number) => number): Picture =>
  x.map((row) => row.map((pixel) => pixel.map(change)));
const relu = (x: Picture): Picture => mapped(x, (value) => Math.max(value, 0) * 1.7139588594436646);

/** Where a window begins, and how many there are: as many in front as behind, or one less (TensorFlow's SAME). */
function windows(length: number, size: number, stride: number): { count: number; from: number } {
  const count = Math.ceil(length / stride);
  const padding = Math.max((count - 1) * stride + size - length, 0);
  return { count, from: -Math.floor(padding / 2) };
}

/** WSConv2D of nfnets/base.py. */
function convolved(table: Table, path: string, x: Picture, stride = 1): Picture {
  const { shape, data } = table.get(`${path}/kernel`)!;
  const [size, , numIn, numOut] = shape as [number, number, number, number];
  const [gain, bias] = [table.get(`${path}/gain`)!.data, table.get(`${path}/bias`)!.data];
  const fanIn = size * size * numIn;
  const weights = Array.from({ length: numOut }, (_, out) => {
    const own = Array.from({ length: fanIn }, (__, i) => data[i * numOut + out]!);
    const mean = own.reduce((a, b) => a + b, 0) / fanIn;
    const variance = own.reduce((sum, value) => sum + (value - mean) ** 2, 0) / fanIn;
    const scale = gain[out]! / Math.sqrt(Math.max(variance * fanIn, 1e-4));
    return own.map((value) => value * scale - mean * scale);
  });
  const down = windows(x.length, size, stride);
  const across = windows(x[0]!.length, size, stride);
  return Array.from({ length: down.count }, (_, i) =>
    Array.from({ length: across.count }, (__, j) =>
      weights.map((own, out) => {
        let sum = bias[out]!;
        for (let a = 0; a < size; a++)
          for (let b = 0; b < size; b++) {
            const pixel = x[down.from + i * stride + a]?.[across.from + j * stride + b];
            for (let c = 0; c < numIn; c++)
              sum += (pixel?.[c] ?? 0) * own[(a * size + b) * numIn + c]!;
          }
        return sum;
      }),
    ),
  );
}

function pooled(x: Picture): Picture {
  const [down, across] = [windows(x.length, 3, 2), windows(x[0]!.length, 3, 2)];
  return Array.from({ length: down.count }, (_, i) =>
    Array.from({ length: across.count }, (__, j) =>
      x[0]![0]!.map((___, channel) => {
        let most = -Infinity;
        for (let a = 0; a < 3; a++)
          for (let b = 0; b < 3; b++) {
            const value = x[down.from + 2 * i + a]?.[across.from + 2 * j + b]?.[channel];
            if (value !== undefined) most = Math.max(most, value);
          }
        return most;
      }),
    ),
  );
}

/** NF_ResNet of nfnets/nf_resnet.py, one picture: a vector. */
function expected(table: Table, image: Picture): number[] {
  let out = pooled(convolved(table, 'root', image, 2));
  let expectedStd = 1;
  for (const [stage, count] of SIZES.blocks.entries()) {
    for (let k = 0; k < count; k++) {
      const at = `stages/${stage}/${k}`;
      const beta = 1 / expectedStd;
      const stride = stage > 0 && k === 0 ? 2 : 1;
      const entered = mapped(relu(out), (value) => value * beta);
      const shortcut = k === 0 ? convolved(table, `${at}/shortcut`, entered, stride) : out;
      let own = convolved(table, `${at}/narrow`, entered);
      own = convolved(table, `${at}/middle`, relu(own), stride);
      own = convolved(table, `${at}/wide`, relu(own));
      const gain = table.get(`${at}/gain`)!.data[0]!;
      out = own.map((row, i) =>
        row.map((pixel, j) =>
          pixel.map((value, channel) => value * gain * 0.2 + shortcut[i]![j]![channel]!),
        ),
      );
      if (k === 0) expectedStd = 1;
      expectedStd = Math.sqrt(expectedStd ** 2 + 0.2 ** 2);
    }
  }
  const active = relu(out).flat();
  return active[0]!.map((_, channel) =>
    active.reduce((sum, pixel) => sum + pixel[channel]! / active.length, 0),
  );
}

void describe('NF-ResNet', () => {
  let params: NfResNetParams;
  let table: Map<string, { shape: readonly number[]; data: number[] }>;
  let images: tf.Tensor;
  before(async () => {
    await openEngine({ engine: 'cpu', cacheDir: '' });
    const drawn = initNfResNet(SIZES, openInitializer(3), 'vision');
    // Gains and biases as they are drawn hide what they are multiplied by and added to.
    const leaves = leavesOf(drawn).map(([path, tensor], i) =>
      /(gain|bias)$/.test(path)
        ? tf.add(
            tensor,
            tf.mul(tf.sin(tf.reshape(tf.range(i, i + tensor.size), tensor.shape)), 0.7),
          )
        : tensor,
    );
    params = withLeaves(drawn, leaves);
    table = new Map(
      leavesOf(params).map(([path, tensor]) => [
        path,
        { shape: tensor.shape, data: [...tensor.dataSync()] },
      ]),
    );
    const size = 2 * HEIGHT * WIDTH * 3;
    images = tf.reshape(tf.sin(tf.mul(tf.range(0, size), 1.3)), [2, HEIGHT, WIDTH, 3]);
  });

  void it('is that of the released code, with SkipInit, known deviations and standardised weights', () => {
    const states = nfResNet(params, images).arraySync() as number[][];
    const pictures = images.arraySync() as unknown as Picture[];
    for (const [b, picture] of pictures.entries()) {
      const own = expected(table, picture);
      assert.equal(states[b]!.length, 2 * 2 * 4);
      for (const [k, value] of own.entries())
        assert.ok(
          Math.abs(states[b]![k]! - value) < 1e-4,
          `${b}, ${k}: ${states[b]![k]}, ${value}`,
        );
    }
  });

  void it('its gradient is that of the formulas', () => {
    const picture = (images.arraySync() as unknown as Picture[])[0]!;
    const first = tf.slice(images, 0, 1);
    const leaves = leavesOf(params);
    const sum = (...own: tf.Tensor[]): tf.Scalar =>
      tf.sum(tf.square(nfResNet(withLeaves(params, own), first)));
    const gradients = tf.grads(sum)(leaves.map(([, leaf]) => leaf));
    const value = (): number => expected(table, picture).reduce((total, x) => total + x * x, 0);
    for (const [i, [path]] of leaves.entries()) {
      const { data } = table.get(path)!;
      const at = i % data.length;
      const was = data[at]!;
      const step = 1e-5;
      data[at] = was + step;
      const above = value();
      data[at] = was - step;
      const below = value();
      data[at] = was;
      const [found, wanted] = [gradients[i]!.dataSync()[at]!, (above - below) / (2 * step)];
      assert.ok(
        Math.abs(found - wanted) < 2e-3 * Math.max(1, Math.abs(wanted)),
        `${path}: ${found}, ${wanted}`,
      );
    }
  });

  void it('begins as its shortcuts: what a block adds counts from its first step on', () => {
    const drawn = initNfResNet(SIZES, openInitializer(4), 'vision');
    const gains = leavesOf(drawn).filter(([path]) => /\d\/gain$/.test(path));
    assert.deepEqual(
      gains.map(([, gain]) => gain.dataSync()[0]),
      [0, 0, 0, 0],
    );
    const other = withLeaves(
      drawn,
      leavesOf(drawn).map(([path, leaf]) => (path.includes('/wide/') ? tf.add(leaf, 3) : leaf)),
    );
    assert.deepEqual(
      [...nfResNet(other, images).dataSync()],
      [...nfResNet(drawn, images).dataSync()],
    );
  });
});
