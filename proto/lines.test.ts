import assert from 'node:assert/strict';
import { PassThrough, Readable } from 'node:stream';
import { test } from 'node:test';
import { linesOf } from './lines.ts';

async function read(stream: Readable): Promise<string[]> {
  const lines: string[] = [];
  for await (const line of linesOf(stream)) lines.push(line);
  return lines;
}

test('a line feed alone ends a line, wherever the pieces of the stream end', async () => {
  const lines = ['{"a":"x\u2028y\u2029z\u0085"}', '', 'Größe 🎞', 'last'];
  const bytes = Buffer.from(lines.join('\n'));
  for (const size of [1, 2, 3, 7, bytes.length]) {
    const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
      bytes.subarray(i * size, (i + 1) * size),
    );
    assert.deepEqual(await read(Readable.from(pieces, { objectMode: false })), lines, `${size}`);
  }
  assert.deepEqual(await read(Readable.from([Buffer.from('a\r\nb\rc\n')])), ['a', 'b\rc']);
  assert.deepEqual(await read(Readable.from([])), []);
});

test('who stops after a line can let the rest flow by', async () => {
  const stream = new PassThrough();
  const lines = linesOf(stream);
  stream.write('first\nsecond\n');
  assert.equal((await lines.next()).value, 'first');
  await lines.return(undefined);
  stream.resume();
  for (let i = 0; i < 100; i++) stream.write(Buffer.alloc(2 ** 16));
  stream.end();
  await new Promise((resolve) => stream.once('end', resolve));
});
