import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { readRange } from '../read-range.ts';

describe('a range of a file', () => {
  it('of 2 GiB and more is read whole, in reads that Node takes', async () => {
    const [at, length] = [100, 2 ** 31 + 8];
    let next = at;
    // In place of a file: 2 GiB that nobody writes to take no memory.
    const read = (bytes: Uint8Array, offset: number, wanted: number, position: number) => {
      assert.ok(wanted < 2 ** 31, `a read of ${wanted} bytes aborts the process`);
      assert.deepEqual([position, offset], [next, next - at]);
      next += wanted;
      bytes[offset] = 7;
      bytes[offset + wanted - 1] = 9;
      return Promise.resolve({ bytesRead: wanted, buffer: bytes });
    };
    const bytes = await readRange({ read } as Parameters<typeof readRange>[0], at, length);
    assert.deepEqual([bytes.length, bytes[0], bytes.at(-1)], [length, 7, 9]);
    assert.equal(next, at + length);
  });

  it('beyond the end of the file is refused', async () => {
    const read = () => Promise.resolve({ bytesRead: 0, buffer: new Uint8Array(0) });
    await assert.rejects(readRange({ read }, 0, 4), {
      message: 'it ends 4 bytes early',
    });
  });
});
