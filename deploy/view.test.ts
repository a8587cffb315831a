import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RunPhase, RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { openRunView } from './view.ts';

test('an objective that a stage asks nothing of has no loss to show', () => {
  let shown = '';
  const view = openRunView({ write: (text: string) => (shown += text) !== '' }, () => 0);
  const objectives = [
    { name: 'caption', lossSum: 6, count: 4, correct: 0 },
    { name: 'order', lossSum: 0, count: 0, correct: 0 },
  ];
  const empty = RunStatus.decode(new Uint8Array());
  view.show({ ...empty, phase: RunPhase.TRAINING, committedStep: 1, totalSteps: 2, objectives });
  view.end();
  assert.match(shown, /caption 1\.50/);
  assert.doesNotMatch(shown, /order|NaN/);
});
