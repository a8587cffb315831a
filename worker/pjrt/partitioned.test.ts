import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { PjrtBuffer } from './buffer.ts';
import { openPjrtClient, type PjrtClient } from './client.ts';
import { cpuPlugin, isPjrtError } from './test/client.ts';

const NUM_DEVICES = 4;
const ALL = { deviceIndices: [0, 1, 2, 3] };
let client: PjrtClient;
before(async () => {
  process.env['NPROC'] = '8'; // two threads a device
  client = await openPjrtClient({
    pluginPath: await cpuPlugin(),
    clientOptions: { cpu_device_count: NUM_DEVICES },
  });
});
after(() => {
  client.close();
});

// Rows of x and rows of w are cut along the same axis, so that the devices must exchange w.
const PRODUCT = `module @product {
  sdy.mesh @mesh = <["rows"=4]>
  func.func public @main(
      %x: tensor<8x16xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"rows"}, {}]>},
      %w: tensor<16x2xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"rows"}, {}]>})
      -> (tensor<8x2xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"rows"}, {}]>},
          tensor<f32> {sdy.sharding = #sdy.sharding<@mesh, []>}) {
    %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<8x16xf32>, tensor<16x2xf32>) -> tensor<8x2xf32>
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %1 = stablehlo.reduce(%0 init: %zero) applies stablehlo.add across dimensions = [0, 1] : (tensor<8x2xf32>, tensor<f32>) -> tensor<f32>
    return %0, %1 : tensor<8x2xf32>, tensor<f32>
  }
}`;

const INCREMENT = `module @increment {
  sdy.mesh @mesh = <["rows"=4]>
  func.func public @main(%x: tensor<64xf32> {tf.aliasing_output = 0 : i32, sdy.sharding = #sdy.sharding<@mesh, [{"rows"}]>})
      -> (tensor<64xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"rows"}]>}) {
    %one = stablehlo.constant dense<1.0> : tensor<64xf32>
    %0 = stablehlo.add %x, %one : tensor<64xf32>
    return %0 : tensor<64xf32>
  }
}`;

/** Rows of a matrix, an equal share to each device. */
function rowsOf(data: Float32Array, width: number): PjrtBuffer[] {
  const rows = data.length / width / NUM_DEVICES;
  return Array.from({ length: NUM_DEVICES }, (_, device) => {
    const part = data.subarray(device * rows * width, (device + 1) * rows * width);
    return client.bufferFromHost(part, width === 1 ? [rows] : [rows, width], 'f32', device);
  });
}

const wave = (length: number, step: number): Float32Array =>
  Float32Array.from({ length }, (_, at) => Math.sin(at * step));

test('four devices compute one product together, equal to the sum written out in scalars (f32, 1e-5)', async () => {
  const [x, w] = [wave(8 * 16, 0.37), wave(16 * 2, 0.61)];
  const executable = await client.compile(PRODUCT, ALL);
  assert.equal(executable.numDevices, NUM_DEVICES);
  assert.deepEqual(executable.outputs, [
    { dims: [2, 2], type: 'f32' },
    { dims: [], type: 'f32' },
  ]);
  const [xs, ws] = [rowsOf(x, 16), rowsOf(w, 2)];
  const outputs = await executable.executeOnAll(xs.map((part, device) => [part, ws[device]!]));
  let total = 0;
  for (const [device, [part]] of outputs.entries()) {
    const values = (await part!.toHost()) as Float32Array;
    for (const [at, value] of values.entries()) {
      const [row, column] = [device * 2 + Math.floor(at / 2), at % 2];
      let sum = 0;
      for (let k = 0; k < 16; k++) sum += x[row * 16 + k]! * w[k * 2 + column]!;
      total += sum;
      assert.ok(Math.abs(value - sum) < 1e-5, `[${row}, ${column}]`);
    }
  }
  for (const [, scalar] of outputs) {
    const [value] = (await scalar!.toHost()) as Float32Array;
    assert.ok(Math.abs(value! - total) < 1e-5, 'every device has the sum over all');
  }
});

test('memory figures are those of one device', async () => {
  const { argumentBytes, outputBytes } = (await client.compile(PRODUCT, ALL)).memory();
  assert.equal(argumentBytes, ((8 * 16 + 16 * 2) * 4) / NUM_DEVICES);
  // Two outputs are a tuple, which takes pointers too.
  assert.ok(outputBytes < (8 * 2 * 4) / 2 + 4 + 32);
});

test('donated parts are consumed on every device', async () => {
  const executable = await client.compile(INCREMENT, ALL);
  const parts = rowsOf(new Float32Array(64), 1);
  const outputs = await executable.executeOnAll(
    parts.map((part) => [part]),
    { donate: [0] },
  );
  assert.ok(parts.every(({ isConsumed }) => isConsumed));
  for (const [output] of outputs)
    assert.deepEqual(await output!.toHost(), new Float32Array(16).fill(1));
});

test('what is loaded from bytes runs on as many devices', async () => {
  const bytes = (await client.compile(INCREMENT, ALL)).serialize();
  const executable = await client.deserialize(bytes);
  assert.equal(executable.numDevices, NUM_DEVICES);
  const parts = rowsOf(new Float32Array(64), 1);
  const outputs = await executable.executeOnAll(parts.map((part) => [part]));
  assert.deepEqual(await outputs[3]![0]!.toHost(), new Float32Array(16).fill(1));
});

test('arguments of another number of devices are refused, and so is a device that is not there', async () => {
  const executable = await client.compile(INCREMENT, ALL);
  const parts = rowsOf(new Float32Array(64), 1);
  await assert.rejects(
    executable.executeOnAll(parts.slice(0, 3).map((part) => [part])),
    isPjrtError('PJRT_EXECUTE_FAILED', /for 4 devices and was given the arguments of 3/),
  );
  assert.throws(
    () => executable.execute([parts[0]!]),
    isPjrtError('PJRT_EXECUTE_FAILED', /for 4 devices and was given the arguments of 1/),
  );
  await assert.rejects(
    client.compile(INCREMENT, { deviceIndices: [0, 1, 2, 4] }),
    isPjrtError('PJRT_CLIENT_FAILED', /no device 4/),
  );
});
