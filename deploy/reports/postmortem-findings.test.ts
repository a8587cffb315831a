import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JournalRecord } from '../../coordinator/journal.ts';
import type { ReadBox } from '../../worker/black-box/read.ts';
import type { BoxRecord, RecordKind } from '../../worker/black-box/record.ts';
import { examine, findDivergence, type Postmortem } from './postmortem-findings.ts';

type Entry = [kind: RecordKind, timeMs: number, entry?: Partial<BoxRecord>];

let pid = 100;
function boxOf(workerId: string, beatMs: number, entries: Entry[], openedMs = 0): ReadBox {
  return {
    owner: {
      runId: 'run',
      workerId,
      host: 'here',
      pid: pid++,
      processStart: '1',
      sameBitsAlways: true,
      openedMs,
    },
    beatMs,
    records: entries.map(([kind, timeMs, entry], i) => ({
      ...{ number: i + 1, kind, timeMs, generation: 1, step: 0, digest: 0, text: '' },
      ...entry,
    })),
  };
}

const members: Entry = ['generation', 1, { text: 'w0 w1 w2' }];
const begin = (timeMs: number, text: string, step = 7): Entry => ['begin', timeMs, { step, text }];
const end = (timeMs: number, text: string, step = 7): Entry => ['end', timeMs, { step, text }];
const phase = (timeMs: number, text: string): Entry => ['phase', timeMs, { text }];

/** @param states letters of the kernel by worker; a worker without one is gone */
function examineWith(
  boxes: ReadBox[],
  states: Record<string, string>,
  journal: JournalRecord[] = [],
): Postmortem {
  return examine({ boxes, journal, stateOf: ({ workerId }) => states[workerId] });
}

test('who ends without a word first has stopped first; the others say that they wait for it', () => {
  const boxes = [
    boxOf('w0', 9000, [members, phase(5000, 'wait'), begin(5000, 'counts')]),
    boxOf('w1', 5200, [members, end(4000, 'sums', 6), phase(4500, 'decode')]),
    boxOf('w2', 7000, [members, phase(5100, 'wait'), begin(5100, 'counts')]),
  ];
  const { firstStopped, stories } = examineWith(boxes, { w0: 'S' });
  assert.equal(firstStopped?.owner.workerId, 'w1');
  assert.equal(firstStopped.phase, 'decode');
  assert.equal(firstStopped.lastMs, 5200);
  assert.equal(firstStopped.collective, undefined);
  assert.deepEqual(
    stories.map(({ fate }) => fate),
    ['running', 'gone', 'gone'],
  );
  assert.deepEqual(stories[0]!.collective, {
    ...{ name: 'counts', step: 7, sinceMs: 5000, waitsFor: ['w1'] },
  });
});

test('a process that lives and stands still while others wait for it is named', () => {
  const boxes = [
    boxOf('w0', 30_000, [members, begin(5000, 'counts')]),
    boxOf('w1', 30_000, [members, phase(4500, 'decode')]),
    boxOf('w2', 30_000, [members, begin(5100, 'counts')]),
  ];
  const alive = { w0: 'S', w1: 'R', w2: 'S' };
  const { firstStopped } = examineWith(boxes, alive);
  assert.equal(firstStopped?.owner.workerId, 'w1');
  assert.equal(firstStopped.fate, 'running');
  // Not yet: it may only be slow.
  const soon = boxes.map((box) => ({ ...box, beatMs: 6000 }));
  assert.equal(examineWith(soon, alive).firstStopped, undefined);
});

test('one that is stopped by a signal, and one that another has taken the place of', () => {
  const boxes = [
    boxOf('w0', 3000, [members, phase(2000, 'compute')]),
    boxOf('w0', 9000, [members, phase(8000, 'compute')], 4000),
    boxOf('w1', 8200, [members, phase(8100, 'reduce'), begin(8150, 'gradient')]),
    boxOf('w2', 9000, [members, begin(8160, 'gradient')]),
  ];
  const { firstStopped, stories } = examineWith(boxes, { w0: 'R', w1: 'T', w2: 'S' });
  assert.deepEqual(
    stories.map(({ isReplaced }) => isReplaced),
    [true, false, false, false],
  );
  assert.equal(firstStopped?.owner.workerId, 'w1');
  assert.equal(firstStopped.fate, 'paused');
  assert.deepEqual(firstStopped.collective?.waitsFor, ['w0'], 'who has not begun it');
});

test('an error is named by its code; a run that has finished has nobody who stopped', () => {
  const boxes = [
    boxOf('w0', 1, [members, ['exit', 5000, { text: 'GRADIENT_NOT_FINITE' }]]),
    boxOf('w1', 1, [members, ['exit', 5000, { text: 'finished' }]]),
  ];
  const failed = examineWith(boxes, {});
  assert.equal(failed.firstStopped?.exitCode, 'GRADIENT_NOT_FINITE');
  assert.equal(failed.stories[1]!.fate, 'finished');
  const finished: JournalRecord = {
    type: 'finished',
    ...{ step: 9, figures: [], weightsSha256: '', seq: 1, time: '2026-01-01T00:00:00.000Z' },
  };
  assert.equal(examineWith(boxes, {}, [finished]).firstStopped, undefined);
});

test('a worker of another host counts as gone when its box has been silent for longer than the others', () => {
  const boxes = [boxOf('w0', 20_000, [members]), boxOf('w1', 9000, [members])];
  const { firstStopped } = examineWith(boxes, { w0: 'unknown', w1: 'unknown' });
  assert.equal(firstStopped?.owner.workerId, 'w1');
});

const digest = (kind: 'gradient' | 'weights', step: number, value: number): Entry => [
  ...([kind, step, { step, digest: value }] as const),
];

test('the first step with different bits, who is alone with them, and the last step that was right', () => {
  const right = [digest('gradient', 1, 11), digest('gradient', 2, 12), digest('gradient', 3, 13)];
  const boxes = [
    boxOf('w0', 1, right),
    boxOf('w1', 1, [right[0]!, digest('gradient', 2, 99), digest('gradient', 3, 98)]),
    boxOf('w2', 1, right),
  ];
  assert.deepEqual(findDivergence(boxes), {
    ...{ kind: 'gradient', step: 2, suspects: ['w1'], lastEqualStep: 1 },
    sides: [
      { digest: 12, workers: ['w0', 'w2'] },
      { digest: 99, workers: ['w1'] },
    ],
  });
  assert.equal(findDivergence([boxes[0]!, boxes[2]!]), undefined);
  assert.equal(findDivergence(boxes.slice(0, 2))?.suspects, undefined, 'one against one');
});

test('wrong weights come before the wrong gradients that they make', () => {
  const boxes = [
    boxOf('w0', 1, [
      digest('gradient', 16, 1),
      digest('weights', 16, 2),
      digest('gradient', 17, 3),
    ]),
    boxOf('w1', 1, [
      digest('gradient', 16, 1),
      digest('weights', 16, 9),
      digest('gradient', 17, 8),
    ]),
  ];
  const found = findDivergence(boxes);
  assert.equal(found?.kind, 'weights');
  assert.equal(found.step, 16);
});

test('a step that one process computed twice to different bits is a divergence of it with itself', () => {
  const boxes = [
    boxOf('w0', 1, [digest('gradient', 4, 1)]),
    boxOf('w0', 1, [digest('gradient', 4, 2)], 50),
  ];
  assert.equal(findDivergence(boxes)?.step, 4);
});
