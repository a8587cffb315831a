import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { PjrtClient } from './client.ts';
import type { ElementType } from './element-type.ts';
import { openCpuClient, isPjrtError } from './test/client.ts';

let client: PjrtClient;
before(async () => {
  client = await openCpuClient();
});
after(() => {
  client.close();
});

function matmulModule(m: number, k: number, n: number): string {
  const [a, b, c] = [`tensor<${m}x${k}xf32>`, `tensor<${k}x${n}xf32>`, `tensor<${m}x${n}xf32>`];
  return `module @matmul {
    func.func public @main(%a: ${a}, %b: ${b}) -> ${c} {
      %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] : (${a}, ${b}) -> ${c}
      return %0 : ${c}
    }
  }`;
}

const wave = (length: number, step: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length }, (_, at) => Math.sin(at * step));

// Adds 1 to an array whose memory the output may take over.
const INCREMENT = `module @increment {
  func.func public @main(%x: tensor<1024xf32> {tf.aliasing_output = 0 : i32}) -> tensor<1024xf32> {
    %one = stablehlo.constant dense<1.0> : tensor<1024xf32>
    %0 = stablehlo.add %x, %one : tensor<1024xf32>
    return %0 : tensor<1024xf32>
  }
}`;

// Applies the sine n times: as long as wanted, in a program whose length the compiler cannot know.
const ITERATE = `module @iterate {
  func.func public @main(%n: tensor<i32>, %x: tensor<f32>) -> tensor<f32> {
    %zero = stablehlo.constant dense<0> : tensor<i32>
    %r:2 = stablehlo.while(%i = %zero, %y = %x) : tensor<i32>, tensor<f32> cond {
      %more = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %more : tensor<i1>
    } do {
      %one = stablehlo.constant dense<1> : tensor<i32>
      %j = stablehlo.add %i, %one : tensor<i32>
      %z = stablehlo.sine %y : tensor<f32>
      stablehlo.return %j, %z : tensor<i32>, tensor<f32>
    }
    return %r#1 : tensor<f32>
  }
}`;

test('a client tells its platform, API version and devices', () => {
  assert.equal(client.platformName, 'cpu');
  assert.match(client.apiVersion, /^0\.\d+$/);
  assert.ok(client.devices.length >= 1);
  assert.equal(client.devices[0]!.kind, 'cpu');
});

test('a matrix product equals the sum written out in scalars', async () => {
  const [m, k, n] = [7, 33, 5];
  const [a, b] = [wave(m * k, 0.37), wave(k * n, 0.61)];
  const executable = await client.compile(matmulModule(m, k, n));
  assert.deepEqual(executable.outputs, [{ dims: [m, n], type: 'f32' }]);
  const [product] = await executable.execute([
    client.bufferFromHost(a, [m, k], 'f32'),
    client.bufferFromHost(b, [k, n], 'f32'),
  ]);
  const values = await product!.toHost(new Float32Array(m * n));
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let at = 0; at < k; at++) sum += a[i * k + at]! * b[at * n + j]!;
      assert.ok(Math.abs(values[i * n + j]! - sum) < 1e-5, `[${i}, ${j}] in f32`);
    }
  }
});

test('every element type travels to the device and back unchanged', async () => {
  const samples: Record<ElementType, ArrayBufferView> = {
    pred: Uint8Array.of(0, 1, 1),
    s8: Int8Array.of(-128, 0, 127),
    s16: Int16Array.of(-32768, 0, 32767),
    s32: Int32Array.of(-(2 ** 31), 0, 2 ** 31 - 1),
    s64: BigInt64Array.of(-(2n ** 63n), 0n, 2n ** 63n - 1n),
    u8: Uint8Array.of(0, 1, 255),
    u16: Uint16Array.of(0, 1, 65535),
    u32: Uint32Array.of(0, 1, 2 ** 32 - 1),
    u64: BigUint64Array.of(0n, 1n, 2n ** 64n - 1n),
    f16: Uint16Array.of(0x3c00, 0x0001, 0xfbff),
    bf16: Uint16Array.of(0x3f80, 0x0001, 0xff7f),
    c64: BigUint64Array.of(0x3f8000003f000000n, 0n, 1n),
    f32: Float32Array.of(-0, Number.MIN_VALUE, 3.4e38),
    f64: Float64Array.of(-0, Number.MIN_VALUE, Number.MAX_VALUE),
  };
  for (const [type, sample] of Object.entries(samples) as [ElementType, ArrayBufferView][]) {
    const buffer = client.bufferFromHost(sample, [3], type);
    assert.deepEqual(await buffer.toHost(), sample, type);
    buffer.close();
  }
});

test('scalars and arrays without elements travel too', async () => {
  const scalar = client.bufferFromHost(Float32Array.of(2.5), [], 'f32');
  assert.deepEqual(await scalar.toHost(), Float32Array.of(2.5));
  const empty = client.bufferFromHost(new Float32Array(), [4, 0], 'f32');
  assert.deepEqual(await empty.toHost(), new Float32Array());
});

test('host data may be changed as soon as it is uploaded', async () => {
  const data = new Float32Array(1 << 18).fill(3);
  const buffer = client.bufferFromHost(data, [data.length], 'f32');
  data.fill(-1);
  assert.ok((await buffer.toHost(new Float32Array(data.length))).every((value) => value === 3));
});

test('outputs that the compiler lays out otherwise arrive row-major', async () => {
  const executable = await client.compile(`module @transpose {
    func.func public @main(%x: tensor<2x3xf32>) -> tensor<3x2xf32> {
      %0 = stablehlo.transpose %x, dims = [1, 0] : (tensor<2x3xf32>) -> tensor<3x2xf32>
      return %0 : tensor<3x2xf32>
    }
  }`);
  const x = client.bufferFromHost(Float32Array.of(1, 2, 3, 4, 5, 6), [2, 3], 'f32');
  const [transposed] = await executable.execute([x]);
  assert.deepEqual(await transposed!.toHost(), Float32Array.of(1, 4, 2, 5, 3, 6));
});

test('data of another size than the shape is refused', async () => {
  assert.throws(
    () => client.bufferFromHost(new Float32Array(5), [2, 3], 'f32'),
    isPjrtError('PJRT_BUFFER_FAILED', /f32\[2,3\] buffer takes 24 bytes, and the data has 20/),
  );
  const buffer = client.bufferFromHost(new Float32Array(6), [2, 3], 'f32');
  await assert.rejects(
    buffer.toHost(new Float32Array(7)),
    isPjrtError('PJRT_BUFFER_FAILED', /24 bytes .* into 28 bytes/),
  );
});

test('a donated argument is consumed, and its memory may become the output', async () => {
  const executable = await client.compile(INCREMENT);
  assert.equal(executable.memory().aliasBytes, 4096);
  const x = client.bufferFromHost(new Float32Array(1024), [1024], 'f32');
  const [y] = await executable.execute([x], { donate: [0] });
  assert.equal(x.isConsumed, true);
  assert.equal(y!.isConsumed, false);
  await assert.rejects(x.toHost(), isPjrtError('PJRT_CLOSED', /f32\[1024\] buffer was donated/));
  await assert.rejects(executable.execute([x]), isPjrtError('PJRT_CLOSED', /donated/));
  assert.deepEqual(await y!.toHost(), new Float32Array(1024).fill(1));
});

test('an argument that is not donated keeps its value though the module would alias it', async () => {
  const executable = await client.compile(INCREMENT);
  const x = client.bufferFromHost(new Float32Array(1024), [1024], 'f32');
  const [y] = await executable.execute([x]);
  assert.equal(x.isConsumed, false);
  assert.deepEqual(await x.toHost(), new Float32Array(1024));
  assert.deepEqual(await y!.toHost(), new Float32Array(1024).fill(1));
});

test('a program that does not parse gives the message of the compiler', async () => {
  await assert.rejects(
    client.compile('module { oops }'),
    isPjrtError('PJRT_COMPILE_FAILED', /custom op 'oops' is unknown/),
  );
});

test('a program whose shapes disagree gives the message of the compiler', async () => {
  const wrong = matmulModule(2, 3, 4).replace('-> tensor<2x4xf32>\n', '-> tensor<2x5xf32>\n');
  await assert.rejects(client.compile(wrong), isPjrtError('PJRT_COMPILE_FAILED', /2x5/));
});

test('an unknown flag is refused by name', async () => {
  await assert.rejects(
    client.compile(INCREMENT, { flags: { xla_no_such_flag: true } }),
    isPjrtError('PJRT_COMPILE_FAILED', /xla_no_such_flag/),
  );
});

test('flags of every type reach the compiler', async () => {
  const executable = await client.compile(INCREMENT, {
    flags: {
      xla_cpu_enable_fast_math: false,
      xla_cpu_prefer_vector_width: 256,
      xla_cpu_max_isa: 'AVX2',
    },
  });
  executable.close();
});

test('arguments of a wrong number or shape are refused', async () => {
  const executable = await client.compile(INCREMENT);
  await assert.rejects(executable.execute([]), isPjrtError('PJRT_EXECUTE_FAILED', /argument/i));
  const short = client.bufferFromHost(new Float32Array(3), [3], 'f32');
  await assert.rejects(executable.execute([short]), isPjrtError('PJRT_EXECUTE_FAILED', /./));
});

test('the event loop goes on while a long program runs', async () => {
  const executable = await client.compile(ITERATE);
  const x = client.bufferFromHost(Float32Array.of(1), [], 'f32');
  // Twice, as the first run tells the executable how its runtime starts programs.
  for (let run = 0; run < 2; run++) {
    const n = client.bufferFromHost(Int32Array.of(30_000_000), [], 's32');
    const ended = executable.execute([n, x]);
    const end = ended.then(() => 'end');
    let numTicks = 0;
    const tick = (): Promise<string> => new Promise((fire) => setTimeout(fire, 1, 'tick'));
    while (numTicks < 3 && (await Promise.race([end, tick()])) === 'tick') numTicks++;
    assert.equal(numTicks, 3, 'timers fired before the program ended');
    await ended;
  }
});

test('executions may overlap, and buffers be closed while they are in use', async () => {
  const executable = await client.compile(ITERATE);
  const results = await Promise.all(
    Array.from({ length: 6 }, async (_, at) => {
      const n = client.bufferFromHost(Int32Array.of(200_000 + at), [], 's32');
      const x = client.bufferFromHost(Float32Array.of(1), [], 'f32');
      const execution = executable.execute([n, x]);
      n.close();
      x.close();
      const [y] = await execution;
      return (await y!.toHost(new Float32Array(1)))[0]!;
    }),
  );
  // x_n of x -> sin x approaches sqrt(3 / n). Source: de Bruijn, Asymptotic Methods in Analysis, sec. 8.6.
  for (const [at, value] of results.entries()) {
    const expected = Math.sqrt(3 / (200_000 + at));
    assert.ok(Math.abs(value / expected - 1) < 1e-2, `${value} is near ${expected}`);
  }
});

test('the same program gives the same bits run after run, and after a round trip through bytes', async () => {
  const [m, k, n] = [256, 4160, 96];
  const args = [
    client.bufferFromHost(wave(m * k, 0.37), [m, k], 'f32'),
    client.bufferFromHost(wave(k * n, 0.61), [k, n], 'f32'),
  ];
  const executable = await client.compile(matmulModule(m, k, n));
  const loaded = await client.deserialize(executable.serialize());
  assert.deepEqual(loaded.outputs, executable.outputs);
  const [first] = await executable.execute(args);
  const expected = await first!.toHost();
  for (const again of [executable, loaded, executable, loaded]) {
    const [result] = await again.execute(args);
    assert.deepEqual(await result!.toHost(), expected);
  }
});

test('bytes that are no executable are refused', async () => {
  await assert.rejects(
    client.deserialize(new TextEncoder().encode('not an executable')),
    isPjrtError('PJRT_COMPILE_FAILED', /serialized executable could not be loaded/),
  );
});

test('memory statistics count arguments and outputs', async () => {
  const executable = await client.compile(matmulModule(32, 64, 16));
  const { argumentBytes, outputBytes, peakBytes } = executable.memory();
  assert.equal(argumentBytes, (32 * 64 + 64 * 16) * 4);
  assert.equal(outputBytes, 32 * 16 * 4);
  assert.ok(peakBytes >= argumentBytes + outputBytes);
  const { flops } = executable.cost();
  if (flops !== undefined) assert.equal(flops, 2 * 32 * 64 * 16);
});

test('closing gives device memory back', async () => {
  const executable = await client.compile(INCREMENT);
  const data = new Float32Array(2 ** 21);
  const x = client.bufferFromHost(new Float32Array(1024), [1024], 'f32');
  const before = process.memoryUsage().rss;
  for (let i = 0; i < 300; i++) {
    client.bufferFromHost(data, [data.length], 'f32').close();
    for (const output of await executable.execute([x])) output.close();
  }
  // Leaked, they would be 2400 MiB.
  assert.ok(process.memoryUsage().rss - before < 500 * 2 ** 20);
});

test('everything of a closed client says so, and closing twice does nothing', async () => {
  const other = await openCpuClient();
  const executable = await other.compile(INCREMENT);
  const x = other.bufferFromHost(new Float32Array(1024), [1024], 'f32');
  const execution = executable.execute([x]);
  other.close();
  other.close();
  await execution; // what was under way ends well
  await assert.rejects(executable.execute([x]), isPjrtError('PJRT_CLOSED', /closed/));
  await assert.rejects(x.toHost(), isPjrtError('PJRT_CLOSED', /closed/));
  await assert.rejects(other.compile(INCREMENT), isPjrtError('PJRT_CLOSED', /closed/));
  assert.throws(
    () => other.bufferFromHost(Float32Array.of(1), [1], 'f32'),
    isPjrtError('PJRT_CLOSED', /closed/),
  );
  x.close();
  x.close();
  executable.close();
});
