import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NO_TIME } from '../proto/time-ledger.ts';
import { closingTime, totalTime } from './time-book.ts';

test('the time of a process that was lost and joins again never goes down', () => {
  const settled = { ...NO_TIME, computeSeconds: 100, wallSeconds: 100 };
  const step = { ...NO_TIME, computeSeconds: 3, wallSeconds: 3 };
  const lost = new Map([['p', closingTime({ settled, step })]]);
  const total = (time: { settled: typeof settled; step: typeof step }) =>
    totalTime([{ process: 'p', time }], lost, { withStep: false });
  assert.equal(total({ settled, step }).wallSeconds, 103); // the step it lost is not settled yet
  assert.equal(total({ settled, step }).redoSeconds, 3);
  const later = {
    ...NO_TIME,
    computeSeconds: 100,
    redoSeconds: 3,
    waitSeconds: 1,
    wallSeconds: 104,
  };
  assert.deepEqual(total({ settled: later, step: NO_TIME }), later);
});
