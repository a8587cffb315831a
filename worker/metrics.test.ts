import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { openLedger } from './ledger.ts';
import { openWorkerMetrics } from './metrics.ts';

const WITHOUT_PROMTOOL =
  spawnSync('promtool', ['--version']).status === 0
    ? false
    : 'there is no promtool (Debian: prometheus)';

function metricsAfterSomeSteps(): ReturnType<typeof openWorkerMetrics> {
  let timeMs = 0;
  const ledger = openLedger({ now: () => timeMs, startMs: 0 });
  timeMs = 2500;
  ledger.enter('compute');
  timeMs = 4000;
  const metrics = openWorkerMetrics(ledger, () => ({
    framesDecoded: 96,
    failuresByReason: { VIDEO_DAMAGED: 1 },
  }));
  ledger.enter('decode');
  timeMs = 4500;
  ledger.enter('wait');
  const sums = [
    { name: 'masked-token', lossSum: 12, count: 4, correct: 1 },
    { name: 'masked-frame', lossSum: 0, count: 0, correct: 0 },
  ];
  metrics.stepCommitted({
    step: 7,
    sums,
    learningRate: 1e-3,
    norm: 2,
    numClips: 16,
    numTokens: 300,
  });
  metrics.batchTaken({ depth: 3, readyBytes: 4096 });
  metrics.checkpointWritten(0.2, [{ name: 'a', sizeBytes: 1000, sha256: '' }]);
  metrics.checkpointFailed(new Error('no'));
  return metrics;
}

test('the metrics say what happened', async () => {
  const text = await metricsAfterSomeSteps().registry.metrics();
  const value = (line: string): string | undefined =>
    text
      .split('\n')
      .find((row) => row.startsWith(`${line} `))
      ?.split(' ')[1];
  assert.equal(value('videoloom_global_step'), '7');
  assert.equal(value('videoloom_train_loss{objective="masked-token"}'), '3');
  assert.equal(value('videoloom_worker_samples_total'), '16');
  assert.equal(value('videoloom_decode_failures_total{reason="VIDEO_DAMAGED"}'), '1');
  assert.equal(value('videoloom_frames_decoded_total'), '96');
  assert.equal(value('videoloom_phase_seconds_total{phase="setup"}'), '2.5');
  assert.equal(value('videoloom_phase_seconds_total{phase="compute"}'), '1.5');
  assert.equal(value('videoloom_prefetch_depth_steps'), '3');
  assert.equal(value('videoloom_prefetch_ready_bytes'), '4096');
  assert.equal(value('videoloom_data_wait_ratio'), '0.25');
  assert.ok(!text.includes('objective="masked-frame"'), 'nothing was asked, so there is no mean');
});

test('promtool finds nothing to say about them', { skip: WITHOUT_PROMTOOL }, async () => {
  const input = await metricsAfterSomeSteps().registry.metrics();
  const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
    input,
    encoding: 'utf8',
  });
  assert.equal(`${stdout}${stderr}`.trim(), '');
  assert.equal(status, 0);
});
