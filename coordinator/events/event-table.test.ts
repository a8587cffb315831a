import assert from 'node:assert/strict';
import { test } from 'node:test';

import { eventSubject, RUN_EVENT_NAMES } from '../../proto/run-events.ts';
import type { JournalEvent } from '../journal-events.ts';
import { testPlan } from '../test/scripted-worker.ts';
import { openEventTable, type RunEvent } from './event-table.ts';

const plan = testPlan({
  totalSteps: 1000,
  microbatches: 4,
  microbatchSize: 16,
  numTrainSamples: 640,
});
const opened: JournalEvent = { type: 'opened', pid: 7, plan };

const skip = (sample: number) => ({
  ...{ sample, substitute: 9, reason: 'DECODE_FAILED', message: 'torn', place: 0 },
});

function commit(step: number, skipped: ReturnType<typeof skip>[] = []): JournalEvent {
  return {
    ...{ type: 'commit', step, generation: 1, firstPosition: 64 * (step - 1), numSamples: 64 },
    objectives: [{ name: 'masked-token', lossSum: 8, count: 4, correct: 1 }],
    ...{ gradientNorm: 0.5, learningRate: 1e-3, clips: 64, tokens: 600, skipped },
    ...{ checkpoint: false, last: false },
  };
}

/** The events of a journal of these records. */
function eventsOf(...records: JournalEvent[]): RunEvent[] {
  const table = openEventTable();
  return records.flatMap((record, i) =>
    table({ seq: i + 1, epoch: 1, time: '2026-01-01T00:00:00.000Z', ...record }),
  );
}

const namesOf = (...records: JournalEvent[]): string[] =>
  eventsOf(...records).map(({ name }) => name);

test('the first coordinator starts a run, the others resume it', () => {
  assert.deepEqual(namesOf(opened, opened), ['run.started', 'run.resumed']);
});

test('of the steps about a hundred are told of, and the ends of epochs', () => {
  const steps = Array.from({ length: 1000 }, (_, i) => commit(i + 1));
  const events = eventsOf(opened, ...steps);
  const progress = events.filter(({ name }) => name === 'run.progressed');
  assert.equal(progress.length, 100);
  assert.deepEqual(progress[1]!.data, {
    ...{ step: 20, totalSteps: 1000, epoch: 2, losses: { 'masked-token': 2 } },
    ...{ gradientNorm: 0.5, learningRate: 1e-3 },
  });
  const epochs = events.filter(({ name }) => name === 'epoch.finished');
  assert.deepEqual(
    epochs.map(({ data }) => [data['step'], data['epoch']]),
    Array.from({ length: 100 }, (_, i) => [10 * (i + 1), i]),
  );
});

test('where there are very many epochs, not each of them is told of', () => {
  const small: JournalEvent = { ...opened, plan: { ...plan, numTrainSamples: 16 } };
  const steps = Array.from({ length: 1000 }, (_, i) => commit(i + 1));
  const names = namesOf(small, ...steps);
  const number = names.filter((name) => name === 'epoch.finished').length;
  assert.ok(number >= 100 && number < 200, `${number} of 4000 epochs`);
});

test('a sample that cannot be used is told of once, however often it comes', () => {
  const events = eventsOf(
    opened,
    commit(1, [skip(3)]),
    commit(2, [skip(3), skip(4)]),
    commit(3, [skip(4)]),
  );
  assert.deepEqual(
    events.flatMap(({ name, data }) => (name === 'data.quarantined' ? [data] : [])),
    [3, 4].map((sample, i) => ({
      ...{ step: i + 1, numSamples: 1 },
      samples: [{ sample, reason: 'DECODE_FAILED', message: 'torn' }],
    })),
  );
});

test('addresses and sessions stay in the journal, and long lists and texts are cut', () => {
  const members = Array.from({ length: 1000 }, (_, rank) => ({
    ...{ workerId: `worker-${rank}`, rank, tensorAddress: '10.0.0.7:4001', serviceAddress: '' },
    ...{ firstMicrobatch: rank, numMicrobatches: 1, holdsState: true },
  }));
  const events = eventsOf(
    opened,
    { type: 'generation', generation: 1, committedStep: 0, restoreStep: 0, members },
    { type: 'failed', code: 'X', message: 'y'.repeat(5000) },
    { type: 'checkpoint-failed', step: 3, reason: 'disk', message: 'z'.repeat(5000) },
  );
  assert.doesNotMatch(JSON.stringify(events), /10\.0\.0\.7/);
  for (const event of events) assert.ok(JSON.stringify(event).length < 8000);
  assert.equal(events[1]!.data['numWorkers'], 1000);
});

test('subjects have as many levels as their names say, whatever the run is called', () => {
  for (const name of RUN_EVENT_NAMES) {
    assert.match(name, /^[a-z]+\.[a-z]+(-[a-z]+)*$/);
    assert.equal(eventSubject('clip-v1.2', name), `videoloom.clip-v1_2.${name}`);
  }
  assert.equal(eventSubject('a'), 'videoloom.a.>');
});
