import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';

import { openTestEngines, type TestEngines } from '../backend/test/engines.ts';
import { CLIP_PIXELS, normalizePixels, packPixels } from './pixels.ts';

const SHAPE = [2, 2, 2, 3];
const BYTES = Uint8Array.from({ length: 24 }, (_, i) => (i === 3 ? 255 : (i * 37 + 128) % 256));

describe('pixels that are normalised on the device', () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  it('are what the formula says, of every byte value and on every engine', async () => {
    const expected = Array.from(BYTES, (byte, i) => {
      const channel = i % 3;
      return (byte / 255 - CLIP_PIXELS.mean[channel]!) / CLIP_PIXELS.std[channel]!;
    });
    for (const engine of [engines.cpu, engines.xla]) {
      const run = engine.compile(
        (packed: Parameters<typeof normalizePixels>[0]) =>
          normalizePixels(packed, SHAPE, CLIP_PIXELS),
        { name: 'pixels' },
      );
      const packed = engine.upload(packPixels(BYTES), [BYTES.length / 4]);
      const pixels = await run(packed);
      assert.deepEqual(pixels.shape, SHAPE);
      for (const [i, value] of [...(await pixels.data())].entries()) {
        assert.ok(Math.abs(value - expected[i]!) < 1e-5, `${engine.name} ${i}: ${value}`);
      }
    }
  });

  it('are packed without a copy where they lie well, and refused in parts of four', () => {
    assert.equal(packPixels(BYTES).buffer, BYTES.buffer);
    const moved = new Uint8Array(25).subarray(1);
    moved.set(BYTES);
    assert.deepEqual(packPixels(moved), packPixels(BYTES));
    assert.throws(() => packPixels(BYTES.subarray(1)), RangeError);
  });
});
