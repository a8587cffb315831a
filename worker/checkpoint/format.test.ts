import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import {
  decodeSafetensors,
  encodeSafetensors,
  SafetensorsInvalid,
  type Dtype,
  type TensorData,
} from './format.ts';

const f32 = (values: number[], shape = [values.length]): TensorData => ({
  dtype: 'F32',
  shape,
  data: new Uint8Array(Float32Array.from(values).buffer),
});

/** A file with this text as its header. */
function fileOf(header: string | Buffer, dataBytes = 0, announced?: bigint): Buffer {
  const json = Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(announced ?? BigInt(json.length));
  return Buffer.concat([length, json, Buffer.alloc(dataBytes)]);
}

const entry = (start: number, end: number, extra = ''): string =>
  `{"dtype":"U8","shape":[${end - start}],"data_offsets":[${start},${end}]${extra}}`;

test('what was encoded is decoded again, whatever the names and types', () => {
  const tensors = new Map<string, TensorData>([
    ['b/kernel', f32([1, -0, NaN, Infinity], [2, 2])],
    ['__proto__', f32([3])],
    ['7', { dtype: 'BOOL', shape: [], data: Uint8Array.of(1) }],
    ['empty', { dtype: 'F64', shape: [0, 3], data: new Uint8Array(0) }],
    [
      'a "quoted" \u00e9\u{1f3ac}\n',
      { dtype: 'BF16', shape: [1], data: Uint8Array.of(0x80, 0x3f) },
    ],
  ]);
  const file = encodeSafetensors(tensors, { b: '2', a: 'x' });
  const read = decodeSafetensors(file);
  assert.deepEqual(read.metadata, { a: 'x', b: '2' });
  assert.deepEqual([...read.tensors.keys()].sort(), [...tensors.keys()].sort());
  for (const [name, { dtype, shape, data }] of tensors) {
    const found = read.tensors.get(name)!;
    assert.deepEqual([found.dtype, found.shape, [...found.data]], [dtype, shape, [...data]]);
  }
});

test('the same tensors give the same bytes in any order of insertion', () => {
  const [one, two] = [f32([1]), f32([2])];
  const forward = encodeSafetensors(
    new Map([
      ['x', one],
      ['y', two],
    ]),
    { k: 'v', a: 'b' },
  );
  const backward = encodeSafetensors(
    new Map([
      ['y', two],
      ['x', one],
    ]),
    { a: 'b', k: 'v' },
  );
  assert.ok(Buffer.from(forward).equals(backward));
});

test('tensors lie at a multiple of eight bytes from the start of the file', () => {
  for (let length = 1; length < 12; length++) {
    const file = Buffer.from(encodeSafetensors(new Map([['n'.repeat(length), f32([1])]])));
    assert.equal(Number(file.readBigUInt64LE()) % 8, 0);
  }
});

const HOSTILE: readonly (readonly [what: string, file: Buffer, message: RegExp])[] = [
  ['no bytes', Buffer.alloc(0), /fewer than the 8/],
  ['half a length', Buffer.alloc(5), /fewer than the 8/],
  ['a header of 2^63 bytes', fileOf('{}', 0, 2n ** 63n), /limit is 100000000/],
  ['a header over the limit', fileOf('{}', 0, 100_000_001n), /limit is 100000000/],
  ['a header longer than the file', fileOf('{}', 0, 1000n), /its header alone needs 1008/],
  ['a header that is empty', fileOf(''), /does not begin with "\{"/],
  ['a header that is a list', fileOf('[]'), /does not begin with "\{"/],
  ['a header with a byte order mark', fileOf('\ufeff{}'), /does not begin with "\{"/],
  ['a header that is not UTF-8', fileOf(Buffer.from([0x7b, 0xff, 0x7d])), /not UTF-8/],
  ['a header that is cut', fileOf('{"a":'), /not JSON/],
  [
    'an unknown type',
    fileOf('{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,1]}}', 1),
    /has the type "Q4"/,
  ],
  [
    'a type named like a method',
    fileOf('{"a":{"dtype":"toString","shape":[1],"data_offsets":[0,1]}}', 1),
    /has the type/,
  ],
  [
    'a negative extent',
    fileOf('{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', 1),
    /no valid shape/,
  ],
  [
    'a fractional extent',
    fileOf('{"a":{"dtype":"U8","shape":[0.5],"data_offsets":[0,1]}}', 1),
    /no valid shape/,
  ],
  [
    'extents that overflow',
    fileOf('{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    /needs/,
  ],
  [
    'offsets that overflow',
    fileOf('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1e300]}}', 1),
    /no valid data_offsets/,
  ],
  [
    'offsets of another size than the shape',
    fileOf('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', 4),
    /needs 8 bytes/,
  ],
  [
    'offsets the wrong way round',
    fileOf('{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}', 1),
    /needs 1 bytes/,
  ],
  [
    'a gap',
    fileOf(`{"a":${entry(0, 1)},"b":${entry(2, 3)}}`, 3),
    /begins at 2 where the one before ends at 1/,
  ],
  ['a gap before the first', fileOf(`{"a":${entry(1, 2)}}`, 2), /begins at 1 where/],
  [
    'an overlap',
    fileOf(`{"a":${entry(0, 2)},"b":${entry(1, 3)}}`, 3),
    /begins at 1 where the one before ends at 2/,
  ],
  [
    'a tensor beyond the end',
    fileOf(`{"a":${entry(0, 9)}}`, 4),
    /has 4 bytes of tensors, its header announces 9/,
  ],
  ['bytes after the last tensor', fileOf(`{"a":${entry(0, 1)}}`, 2), /has 2 bytes of tensors/],
  ['a name twice', fileOf(`{"a":${entry(0, 1)},"a":${entry(0, 1)}}`, 1), /"a" twice/],
  [
    'a name twice, once escaped',
    fileOf(`{"a":${entry(0, 1)},"\\u0061" :${entry(0, 1)}}`, 1),
    /"a" twice/,
  ],
  [
    'a field twice',
    fileOf(`{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1),
    /"dtype" twice/,
  ],
  ['an unknown field', fileOf(`{"a":${entry(0, 1, ',"x":1')}}`, 1), /unknown field x/],
  ['metadata that is not text', fileOf('{"__metadata__":{"a":1}}'), /not a map of texts/],
  ['a very long name that never ends', fileOf(`{"${'x'.repeat(20_000_000)}`), /not JSON/],
  [
    'a very long name',
    fileOf(`{"${'x\\\\'.repeat(5_000_000)}":1}`),
    /is not described by an object/,
  ],
  [
    'deep nesting',
    fileOf(`{"a":${'['.repeat(100_000)}${']'.repeat(100_000)}}`),
    /not described by an object|not JSON/,
  ],
];

for (const [what, file, message] of HOSTILE) {
  test(`a file with ${what} is refused`, () => {
    assert.throws(
      () => decodeSafetensors(file),
      (error: unknown) => {
        assert.ok(error instanceof SafetensorsInvalid, String(error));
        assert.equal(error.code, 'SAFETENSORS_INVALID');
        assert.match(error.message, message);
        return true;
      },
    );
  });
}

test('a tensor whose bytes do not fit its shape is not written', () => {
  assert.throws(() => encodeSafetensors(new Map([['a', f32([1, 2], [3])]])), SafetensorsInvalid);
});

const PYTHON = process.env['VIDEOLOOM_TEST_PYTHON'] ?? 'python3';
const noPython = ((): string | false => {
  try {
    execFileSync(PYTHON, ['-c', 'import safetensors, numpy'], { stdio: 'ignore' });
    return false;
  } catch {
    return `${PYTHON} has no safetensors and numpy (VIDEOLOOM_TEST_PYTHON names another)`;
  }
})();

/** Reads a file with Hugging Face's reader, adds 1 to every tensor and writes it with Hugging Face's writer. */
const SCRIPT = `
import json, sys
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
with safe_open(sys.argv[1], 'np') as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    metadata = file.metadata()
save_file({name: t + t.dtype.type(1) for name, t in tensors.items()}, sys.argv[2], metadata)
print(json.dumps({name: [str(t.dtype), list(t.shape), t.tobytes().hex()] for name, t in tensors.items()}))
`;

test(
  "Hugging Face's reader sees the same tensors, and its writer's files are read",
  { skip: noPython },
  async () => {
    const dir = await temporaryFolder('format');
    const types: readonly [Dtype, string, Uint8Array][] = [
      ['F64', 'float64', new Uint8Array(Float64Array.of(1, 2.5).buffer)],
      ['F32', 'float32', new Uint8Array(Float32Array.of(1, 2.5).buffer)],
      ['F16', 'float16', Uint8Array.of(0x00, 0x3c, 0x00, 0x41)], // 1, 2.5
      ['I64', 'int64', new Uint8Array(BigInt64Array.of(1n, -2n).buffer)],
      ['I32', 'int32', new Uint8Array(Int32Array.of(1, -2).buffer)],
      ['U8', 'uint8', Uint8Array.of(1, 2)],
    ];
    const tensors = new Map(
      types.map(([dtype, , data]): [string, TensorData] => [
        `layers/0/${dtype}`,
        { dtype, shape: [2, 1], data },
      ]),
    );
    const [ours, theirs] = [join(dir, 'ours.safetensors'), join(dir, 'theirs.safetensors')];
    writeFileSync(ours, encodeSafetensors(tensors, { format: 'pt' }));
    const seen = JSON.parse(
      execFileSync(PYTHON, ['-c', SCRIPT, ours, theirs], { encoding: 'utf8' }),
    ) as object;
    assert.deepEqual(
      seen,
      Object.fromEntries(
        types.map(([dtype, name, data]) => [
          `layers/0/${dtype}`,
          [name, [2, 1], Buffer.from(data).toString('hex')],
        ]),
      ),
    );
    const read = decodeSafetensors(readFileSync(theirs));
    assert.deepEqual(read.metadata, { format: 'pt' });
    const plusOne = new Float32Array(read.tensors.get('layers/0/F32')!.data.slice().buffer);
    assert.deepEqual([...plusOne], [2, 3.5]);
    assert.deepEqual([...read.tensors.get('layers/0/U8')!.data], [2, 3]);
    assert.deepEqual(read.tensors.get('layers/0/I64')!.shape, [2, 1]);
  },
);
