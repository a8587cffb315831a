import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openRng } from '../proto/random.ts';
import { ACTIVITIES, secondsOf } from '../proto/time-ledger.ts';
import { openLedger } from './ledger.ts';

test('the phases add up to the wall clock, and a report carries only what none has carried', async () => {
  let timeMs = 100;
  const ledger = openLedger({ now: () => timeMs });
  ledger.enter('decode');
  timeMs = 350;
  ledger.enter('compute');
  timeMs = 1000;
  await ledger.within('checkpoint', () => {
    timeMs = 1200;
    return Promise.resolve();
  });
  assert.equal(ledger.phase, 'compute');
  timeMs = 1300;
  const first = ledger.unreported();
  const { wallSeconds } = first;
  const sum = ACTIVITIES.reduce((total, name) => total + secondsOf(first, name), 0);
  assert.ok(Math.abs(sum - wallSeconds) < 1e-9);
  assert.deepEqual(
    [first.setupSeconds, first.decodeSeconds, first.computeSeconds, first.checkpointSeconds],
    [0.1, 0.25, 0.75, 0.2],
  );
  // A report that was lost is carried by the next.
  assert.deepEqual(ledger.unreported(), first);
  ledger.markReported();
  timeMs = 1500;
  const second = ledger.unreported();
  assert.ok(Math.abs(second.computeSeconds - 0.2) < 1e-9);
  assert.equal(second.decodeSeconds, 0);
  ledger.markReported();
  assert.equal(ledger.unreported().wallSeconds, 0);
});

test('no report takes time back, however the clock falls', () => {
  const rng = openRng(7, 'ledger');
  let timeMs = 0;
  const ledger = openLedger({ now: () => timeMs });
  for (let n = 0; n < 2000; n++) {
    timeMs += rng.uniform() * 10;
    ledger.enter(n % 2 === 0 ? 'compute' : 'reduce');
    const report = ledger.unreported();
    const smallest = Math.min(...ACTIVITIES.map((name) => secondsOf(report, name)));
    assert.ok(smallest >= 0, `report ${n} carries ${smallest} s`);
    ledger.markReported();
  }
});
