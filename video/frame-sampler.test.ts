import assert from 'node:assert/strict';
import { test } from 'node:test';
import { evenTimes, windowTimes } from './frame-sampler.ts';

test('times are the centres of equal segments', () => {
  assert.deepEqual(evenTimes(0, 8, 4), [1, 3, 5, 7]);
  assert.deepEqual(evenTimes(2, 3, 1), [2.5]);
  assert.deepEqual(evenTimes(5, 5, 2), [5, 5]);
});

test('times lie inside the span, ascending and evenly spaced', () => {
  const times = windowTimes({
    startSeconds: 1.7,
    endSeconds: 9.3,
    numWindows: 5,
    framesPerWindow: 3,
  });
  assert.equal(times.length, 15);
  assert.ok(times[0]! > 1.7 && times.at(-1)! < 9.3);
  for (let i = 1; i < times.length; i++)
    assert.ok(Math.abs(times[i]! - times[i - 1]! - 7.6 / 15) < 1e-9);
});

test('a window holds the frames of its own part of the span', () => {
  const times = windowTimes({ startSeconds: 0, endSeconds: 6, numWindows: 3, framesPerWindow: 2 });
  assert.deepEqual(
    times.map((t) => Math.floor(t / 2)),
    [0, 0, 1, 1, 2, 2],
  );
});
