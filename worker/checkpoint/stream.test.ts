import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeSafetensors, SafetensorsInvalid, type TensorData } from './format.ts';
import { readSafetensorsStream, safetensorsStream } from './stream.ts';

const tensors = new Map<string, TensorData>(
  [0, 1, 10, 300, 5000, 100_000].map((length, index) => [
    `t${index}`,
    {
      dtype: 'U8',
      shape: [length],
      data: Uint8Array.from({ length }, (_, i) => (i * 31 + index) & 255),
    },
  ]),
);

// eslint-disable-next-line @typescript-eslint/require-await -- what comes from a connection
async function* inPieces(bytes: Uint8Array, pieceBytes: number): AsyncGenerator<Uint8Array> {
  for (let start = 0; start < bytes.length; start += pieceBytes) {
    yield bytes.subarray(start, start + pieceBytes);
  }
}

test('the chunks are those of the file in memory, none above the limit', () => {
  const whole = encodeSafetensors(tensors, { a: 'b' });
  for (const chunkBytes of [64, 1000, 4096, 1 << 20]) {
    const chunks = [...safetensorsStream(tensors, { a: 'b' }, chunkBytes)];
    assert.ok(Buffer.concat(chunks).equals(whole));
    assert.ok(chunks.every(({ byteLength }) => byteLength <= chunkBytes));
  }
});

test('a stream cut into pieces of any size is read back', async () => {
  const whole = encodeSafetensors(tensors);
  for (const pieceBytes of [1, 7, 4096, whole.length]) {
    const read = await readSafetensorsStream(inPieces(whole, pieceBytes));
    assert.deepEqual(read, tensors);
  }
});

test('a stream that ends early or late is refused', async () => {
  const whole = encodeSafetensors(tensors);
  for (const length of [0, 7, 8, 100, whole.length - 1]) {
    await assert.rejects(
      readSafetensorsStream(inPieces(whole.subarray(0, length), 999)),
      SafetensorsInvalid,
    );
  }
  const longer = Buffer.concat([whole, Buffer.alloc(1)]);
  await assert.rejects(readSafetensorsStream(inPieces(longer, 999)), SafetensorsInvalid);
});

test('a header that announces a terabyte costs no terabyte', async () => {
  const json = Buffer.from(
    `{"a":{"dtype":"U8","shape":[${2 ** 40}],"data_offsets":[0,${2 ** 40}]}}`,
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const before = process.memoryUsage().arrayBuffers;
  const file = Buffer.concat([length, json, Buffer.alloc(1000)]);
  await assert.rejects(
    readSafetensorsStream(inPieces(file, 999)),
    /ends 1099511626776 bytes early/,
  );
  assert.ok(process.memoryUsage().arrayBuffers - before < 256 << 20);
});
