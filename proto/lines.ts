import type { Readable } from 'node:stream';

/**
 * The lines of a stream of UTF-8, without their ends. Only a line feed ends one, with or without a carriage return
 * before it: Node's `readline` also splits at U+2028 and U+2029 from version 24 on, which JSON leaves as they are. The
 * stream is left open, so that whoever stops early can still read it empty.
 */
export async function* linesOf(stream: Readable): AsyncGenerator<string> {
  let begun: Buffer[] = [];
  const chunks = stream.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>;
  for await (const chunk of chunks) {
    let start = 0;
    for (let end; (end = chunk.indexOf(LINE_FEED, start)) !== -1; start = end + 1) {
      const line = chunk.subarray(start, end);
      yield textOf(begun.length === 0 ? line : Buffer.concat([...begun, line]));
      begun = [];
    }
    if (start < chunk.length) begun.push(chunk.subarray(start));
  }
  if (begun.length > 0) yield textOf(Buffer.concat(begun));
}

const [LINE_FEED, CARRIAGE_RETURN] = [0x0a, 0x0d];

function textOf(line: Buffer): string {
  const end = line.at(-1) === CARRIAGE_RETURN ? line.length - 1 : line.length;
  return line.toString('utf8', 0, end);
}
