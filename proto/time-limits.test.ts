import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { timeConflict, timeLimits } from './time-limits.ts';

const DECODE = { decodeTimeoutMs: 20_000 };

describe('limits on time', () => {
  it('find a silent worker within the setting, with a beat lost in between', () => {
    for (const detectWithinMs of [200, 500, 2000, 10_000, 300_000]) {
      const limits = timeLimits({ detectWithinMs, ...DECODE });
      assert.ok(limits.silenceMs + limits.tickMs <= detectWithinMs);
      assert.ok(limits.silenceMs >= 3 * limits.beatMs, 'three beats may be lost');
      assert.ok(limits.keepaliveTimeMs + limits.keepaliveTimeoutMs <= 3 * detectWithinMs);
    }
  });

  it('let nobody wait less at a barrier than the one waited for may take', () => {
    for (const detectWithinMs of [200, 2000, 300_000]) {
      for (const decodeTimeoutMs of [1000, 20_000, 400_000, 4_000_000]) {
        const setting = { detectWithinMs, decodeTimeoutMs };
        if (timeConflict(setting) !== undefined) continue;
        const limits = timeLimits(setting);
        assert.ok(limits.barrierMs > limits.firstStillMs);
        assert.ok(limits.firstStillMs >= limits.stillDecodingMs);
        assert.ok(limits.stillDecodingMs > decodeTimeoutMs, 'a clip is given up before its worker');
      }
    }
  });

  it('are refused with what to change where they cannot hold', () => {
    assert.equal(timeConflict({ detectWithinMs: 2000, ...DECODE }), undefined);
    assert.match(timeConflict({ detectWithinMs: 100, ...DECODE })!, /0\.1 s: choose between 0\.2/);
    assert.match(timeConflict({ detectWithinMs: Number.NaN, ...DECODE })!, /choose between/);
    const message = timeConflict({ detectWithinMs: 2000, decodeTimeoutMs: 600_000 })!;
    assert.match(message, /lower it to 400, or raise detectWithin to 3 s/);
    for (const mended of [
      { detectWithinMs: 2000, decodeTimeoutMs: 400_000 },
      { detectWithinMs: 3000, decodeTimeoutMs: 600_000 },
    ])
      assert.equal(timeConflict(mended), undefined);
  });
});
