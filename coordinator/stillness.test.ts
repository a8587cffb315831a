import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { timeLimits } from '../proto/time-limits.ts';
import { afterBeat, NEWBORN, stillnessLimitMs, withGap } from './stillness.ts';
import type { Beat, GapsByPhase, Vitals } from './stillness.ts';

const limits = timeLimits({ detectWithinMs: 2000, decodeTimeoutMs: 20_000 });

/** What is known after these beats, of the worker and of all. */
function after(beats: readonly Partial<Beat>[]): { vitals: Vitals; all: GapsByPhase } {
  let vitals = NEWBORN;
  let all: GapsByPhase = {};
  for (const beat of beats) {
    const full = { phase: 'compute', progress: 0, stillMs: 0, cpuMs: 0, ...beat };
    const turn = afterBeat(vitals, full);
    vitals = turn.vitals;
    if (turn.ended !== undefined) all = withGap(all, turn.ended.phase, turn.ended.gapMs);
  }
  return { vitals, all };
}

/** Microbatches that each took as long as told. */
const computing = (...stillMs: number[]): Partial<Beat>[] =>
  stillMs.flatMap((gap, i) => [{ progress: i + 1 }, { progress: i + 1, stillMs: gap }]);

describe('the time that a worker may stand still', () => {
  it('is long before a phase is known, then ten times what it took', () => {
    const first = after(computing(400));
    assert.equal(stillnessLimitMs(first.vitals, first.all, limits), limits.firstStillMs);
    const known = after([...computing(400, 400, 5000, 400), { progress: 9 }]);
    assert.equal(Math.round(stillnessLimitMs(known.vitals, known.all, limits) / 1000), 50);
    const quick = after([...computing(40, 40, 40, 40), { progress: 9 }]);
    assert.equal(stillnessLimitMs(quick.vitals, quick.all, limits), limits.stillMs);
  });

  it('counts what other workers took, but not that they know the phase', () => {
    const slow = after([...computing(4000, 4000, 4000), { progress: 9 }]);
    const quick = after([...computing(40, 40, 40, 40), { progress: 9 }]);
    const limitMs = stillnessLimitMs(quick.vitals, slow.all, limits);
    assert.ok(limitMs > 39_000 && limitMs <= 40_000);
    const fresh = after([{ progress: 1 }]);
    assert.equal(stillnessLimitMs(fresh.vitals, slow.all, limits), limits.firstStillMs);
  });

  it('is longer while the process works at something, as a compilation does', () => {
    const history = [...computing(40, 40, 40, 40), { progress: 9, cpuMs: 1000 }];
    const asleep = after([...history, { progress: 9, cpuMs: 1500, stillMs: 15_000 }]);
    assert.equal(stillnessLimitMs(asleep.vitals, asleep.all, limits), limits.stillMs);
    const busy = after([...history, { progress: 9, cpuMs: 14_000, stillMs: 15_000 }]);
    assert.equal(stillnessLimitMs(busy.vitals, busy.all, limits), limits.firstStillMs);
  });

  it('is never up for who waits for others, nor before a clip that hangs is given up', () => {
    for (const phase of ['wait', 'reduce', 'idle']) {
      const { vitals, all } = after([{ phase, stillMs: 9e6 }]);
      assert.equal(stillnessLimitMs(vitals, all, limits), Infinity);
    }
    for (const phase of ['decode', 'fetch']) {
      const { vitals, all } = after([{ phase }]);
      assert.equal(stillnessLimitMs(vitals, all, limits), 30_000);
    }
  });

  it('is not learned from for what differs each time: a set-up may restore or not', () => {
    const beats = [1, 2, 3, 4, 5].map((progress) => ({ phase: 'setup', progress, stillMs: 10 }));
    const { vitals, all } = after(beats);
    assert.equal(stillnessLimitMs(vitals, all, limits), limits.firstStillMs);
  });
});
