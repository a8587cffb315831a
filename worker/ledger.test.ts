import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { openRng } from '../proto/random.ts';
import { ACTIVITIES, secondsOf } from '../proto/time-ledger.ts';
import { clockMs, LedgerCells, MAX_TOLD_RANKS } from './ledger-cells.ts';
import { openLedger, type Phase } from './ledger.ts';

const PHASES = ACTIVITIES.filter((name): name is Phase => name !== 'redo');

function sumOf(ledger: TimeLedger): number {
  return ACTIVITIES.reduce((total, name) => total + secondsOf(ledger, name), 0);
}

test('the time of a step is settled with it, as it was spent', async () => {
  let timeMs = 100;
  const ledger = openLedger({ now: () => timeMs, startMs: 0 });
  ledger.beginStep();
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
  // A snapshot in the middle of a step is no part of the step.
  const { settled, step } = ledger.pulse();
  assert.deepEqual([settled.setupSeconds, settled.checkpointSeconds], [0.1, 0.2]);
  assert.deepEqual(
    [settled.computeSeconds, step.computeSeconds, step.decodeSeconds],
    [0, 0.75, 0.25],
  );
  ledger.settleStep();
  assert.deepEqual([ledger.settled().computeSeconds, ledger.settled().decodeSeconds], [0.75, 0.25]);
  assert.equal(ledger.pulse().step.wallSeconds, 0);
  assert.equal(ledger.total().wallSeconds, 1.3);
});

test('a step that is given up, or was committed before, is time redone, and nobody is blamed for its waits', () => {
  for (const end of ['giveUpStep', 'settleStep'] as const) {
    let timeMs = 0;
    const ledger = openLedger({ now: () => timeMs, startMs: 0, numRanks: 4 });
    ledger.beginStep();
    if (end === 'settleStep') ledger.markRedone();
    ledger.enter('wait');
    timeMs = 400;
    ledger.blame(2, 300);
    ledger.enter('compute');
    timeMs = 1000;
    assert.deepEqual(ledger.total().waitByRankSeconds, { 2: 0.3 });
    ledger[end]();
    const total = ledger.total();
    assert.deepEqual([total.redoSeconds, total.waitSeconds, total.computeSeconds], [1, 0, 0]);
    assert.deepEqual(total.waitByRankSeconds, {});
    // The step after it counts.
    ledger.beginStep();
    timeMs = 1500;
    ledger.blame(1, 100);
    ledger.settleStep();
    assert.deepEqual([ledger.total().computeSeconds, ledger.total().redoSeconds], [0.5, 1]);
    assert.deepEqual(ledger.total().waitByRankSeconds, { 1: 0.1 });
  }
});

test('every second is in one class, whatever happens', () => {
  const rng = openRng(7, 'ledger');
  let timeMs = 0;
  const ledger = openLedger({ now: () => timeMs, startMs: 0 });
  let before = ledger.settled();
  for (let n = 0; n < 5000; n++) {
    timeMs += rng.uniform() * 10;
    const acts = [
      () => {
        ledger.enter(PHASES[rng.integer(PHASES.length)]!);
      },
      ...(['beginStep', 'settleStep', 'giveUpStep', 'markRedone'] as const).map((act) => () => {
        ledger[act]();
      }),
    ];
    acts[rng.integer(acts.length)]!();
    const total = ledger.total();
    assert.ok(Math.abs(sumOf(total) - timeMs / 1000) < 1e-6, `after ${n} acts: ${sumOf(total)}`);
    assert.ok(Math.abs(total.wallSeconds - timeMs / 1000) < 1e-6);
    const settled = ledger.settled();
    for (const name of ACTIVITIES) assert.ok(secondsOf(settled, name) >= secondsOf(before, name));
    before = settled;
  }
});

test('work beside the loop shows as progress, and its absence as standing still', async () => {
  const ledger = openLedger();
  let count = 0;
  const end = ledger.watch(() => count, 5);
  ledger.enter('decode');
  const { progress } = ledger.pulse();
  count = 3;
  for (let i = 0; i < 400 && ledger.pulse().progress === progress; i++)
    await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(ledger.pulse().progress, progress + 1);
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.equal(ledger.pulse().progress, progress + 1);
  assert.ok(ledger.pulse().stillMs >= 40);
  end();
});

test('another thread sees the running phase grow while this one is busy', async () => {
  const ledger = openLedger();
  ledger.beginStep();
  ledger.enter('compute');
  const seen = new SharedArrayBuffer(8);
  // Looks once this thread has been busy for 300 ms, and says what it saw.
  const source = `
    import { parentPort, workerData } from 'node:worker_threads';
    import { register } from '${import.meta.resolve('tsx/esm/api')}';
    register();
    const { LedgerCells } = await import('${new URL('./ledger-cells.ts', import.meta.url).href}');
    const cells = new LedgerCells(workerData.buffer);
    parentPort.postMessage('ready');
    for (;;) {
      const { step, stillMs } = cells.pulse();
      if (stillMs < 300) continue;
      new Float64Array(workerData.seen)[0] = step.computeSeconds;
      break;
    }`;
  const thread = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
    execArgv: [],
    workerData: { buffer: ledger.cells.buffer, seen },
  });
  await once(thread, 'message');
  ledger.progress();
  const startMs = clockMs();
  while (new Float64Array(seen)[0] === 0 && clockMs() - startMs < 20_000);
  assert.ok(new Float64Array(seen)[0]! >= 0.3);
  await thread.terminate();
});

test('of many ranks, those that were waited for longest are told', () => {
  const cells = LedgerCells.create(1024);
  for (let rank = 0; rank < 1024; rank++) cells.addWait('settled', rank, rank);
  cells.addWait('settled', 1024, 5000); // nobody
  const { waitByRankSeconds } = cells.pulse(0).settled;
  const longest = Array.from({ length: MAX_TOLD_RANKS }, (_, i) => 1023 - i);
  assert.deepEqual(
    waitByRankSeconds,
    Object.fromEntries(longest.map((rank) => [rank, rank / 1000])),
  );
});
