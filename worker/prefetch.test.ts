import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';

import { openRng } from '../proto/random.ts';
import { adaptDepth, FIRST_DEPTH, openPrefetcher, type PrefetchState } from './prefetch.ts';

describe('the depth of prefetching', () => {
  const waited = { hadToWait: true, allReady: false };
  const idle = { hadToWait: false, allReady: true };
  const justInTime = { hadToWait: false, allReady: false };

  it('grows by a step with each wait, up to the bound', () => {
    let depth = FIRST_DEPTH;
    const seen = Array.from({ length: 5 }, () => (depth = adaptDepth(depth, waited, 4)).steps);
    assert.deepEqual(seen, [2, 3, 4, 4, 4]);
  });

  it('shrinks after all was ready for long, and is more patient after each wait', () => {
    const idleUntilLess = (from: typeof FIRST_DEPTH): [number, typeof FIRST_DEPTH] => {
      let depth = from;
      for (let takes = 1; ; takes++) {
        depth = adaptDepth(depth, idle, 8);
        if (depth.steps < from.steps) return [takes, depth];
      }
    };
    let depth = adaptDepth(adaptDepth(FIRST_DEPTH, waited, 8), waited, 8);
    const [first, less] = idleUntilLess(depth);
    assert.equal(first, 64);
    depth = adaptDepth(less, waited, 8);
    assert.equal(depth.steps, 3);
    assert.equal(idleUntilLess(depth)[0], 128);
  });

  it('stays where batches come just in time, and never falls below one', () => {
    let depth = adaptDepth(FIRST_DEPTH, waited, 8);
    for (let i = 0; i < 5000; i++) depth = adaptDepth(depth, justInTime, 8);
    assert.equal(depth.steps, 2);
    for (let i = 0; i < 5000; i++) depth = adaptDepth(depth, idle, 8);
    assert.equal(depth.steps, 1);
  });

  it('settles where waits are rare, whatever steps and batches take', () => {
    // Training takes 10 a step; a batch takes 4 to make, and 38 every so often. Makers work one after the other.
    const rng = openRng(1, 'making');
    let depth = FIRST_DEPTH;
    let [now, makerFree, made] = [0, 0, 0];
    const readyAt: number[] = [];
    let [waitedFor, waitedLate] = [0, 0];
    const numSteps = 4000;
    for (let step = 0; step < numSteps; step++) {
      for (; made <= Math.min(step + depth.steps, numSteps); made++) {
        makerFree = Math.max(now, makerFree) + (rng.uniform() < 0.01 ? 38 : 4);
        readyAt.push(makerFree);
      }
      const wait = Math.max(0, readyAt[step]! - now);
      if (step > 0) {
        const allReady = readyAt.slice(step + 1).every((ready) => ready <= now);
        depth = adaptDepth(depth, { hadToWait: wait > 0, allReady }, 8);
        waitedFor += wait;
        if (step > numSteps / 2) waitedLate += wait;
      }
      now += wait + 10;
    }
    assert.ok(waitedFor / now < 0.01, `${waitedFor} of ${now}`);
    assert.ok(waitedLate / now < 0.005, `${waitedLate} of ${now}`);
    assert.ok(depth.steps >= 2 && depth.steps < 8, `${depth.steps}`);
  });
});

describe('a prefetcher', () => {
  /** Makes a batch of `bytes` when it is told to. */
  function openMaker(bytes = 1): {
    readonly begun: number[];
    readonly make: (step: number) => Promise<number>;
    finish(step: number): Promise<void>;
  } {
    const begun: number[] = [];
    const finishers = new Map<number, () => void>();
    return {
      begun,
      make(step) {
        begun.push(step);
        return new Promise((resolve) => {
          finishers.set(step, () => {
            resolve(step * 1000 + bytes);
          });
        });
      },
      async finish(step) {
        finishers.get(step)!();
        await turn();
      },
    };
  }
  const open = (
    make: (step: number) => Promise<number | undefined>,
    options: Partial<Parameters<typeof openPrefetcher<number>>[0]> = {},
  ) =>
    openPrefetcher<number>({
      ...{ make, sizeBytes: (made) => made % 1000, maxSteps: 4, maxBytes: 1000, lastStep: 9 },
      ...options,
    });

  it('makes one step ahead, more where training waits, and none after the last', async () => {
    const maker = openMaker();
    const states: PrefetchState[] = [];
    const prefetcher = open(maker.make, { onTake: (state) => states.push(state) });
    for (let step = 1; step <= 9; step++) {
      const taken = prefetcher.take(step);
      await maker.finish(step);
      assert.equal(await taken, step * 1000 + 1);
    }
    assert.deepEqual(
      states.map(({ depth }) => depth),
      [1, 2, 3, 4, 4, 4, 4, 4, 4],
    );
    assert.deepEqual(maker.begun, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  });

  it('keeps to the bound on bytes, which one step may exceed', async () => {
    for (const [bytes, most] of [
      [100, 3],
      [160, 2],
      [900, 1],
    ] as const) {
      const maker = openMaker(bytes);
      const prefetcher = open(maker.make, { maxBytes: 320 });
      for (let step = 1; step <= 6; step++) {
        const taken = prefetcher.take(step);
        await maker.finish(step);
        await taken;
        assert.ok(Math.max(...maker.begun) <= step + most);
      }
      assert.equal(Math.max(...maker.begun), 6 + most);
    }
  });

  it('tells what lies ready', async () => {
    const maker = openMaker(7);
    const states: PrefetchState[] = [];
    const prefetcher = open(maker.make, { onTake: (state) => states.push(state) });
    for (const step of [1, 2]) {
      const taken = prefetcher.take(step);
      await maker.finish(step);
      await taken;
    }
    for (const step of [3, 4]) await maker.finish(step);
    await prefetcher.take(3);
    assert.deepEqual(states.at(-1), { depth: 2, readyBytes: 7 });
  });

  it('asks again for what was too early, and says so where it still is', async () => {
    let committed = 0;
    const prefetcher = open(async (step) => {
      await turn();
      return step <= committed + 1 ? step : undefined;
    });
    for (let step = 1; step <= 5; step++) {
      assert.equal(await prefetcher.take(step), step);
      await turn();
      committed = step;
    }
    committed = 0;
    await assert.rejects(open(() => Promise.resolve(undefined)).take(1), {
      code: 'LEASE_OUT_OF_WINDOW',
    });
  });

  it('gives a failure to whoever takes the step, and to nobody else', async () => {
    const prefetcher = open((step) =>
      step === 2 ? Promise.reject(new Error('of step 2')) : Promise.resolve(step),
    );
    assert.equal(await prefetcher.take(1), 1);
    await turn();
    await assert.rejects(prefetcher.take(2), /of step 2/);
    assert.equal(await prefetcher.take(3), 3);
  });
});
