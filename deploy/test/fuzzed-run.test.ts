import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before as beforeAll, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { lookUpProcess } from '../../proto/process-look.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { readBlackBoxes } from '../../worker/black-box/read.ts';
import type { Story } from '../reports/postmortem-findings.ts';
import { examineRun } from '../reports/postmortem.ts';
import { childrenOf } from './children.ts';
import {
  committedStep,
  reachStep,
  readSummary,
  startVideoloom,
  videoloom,
  type Started,
  type Summary,
} from './command.ts';
import { fuzzRun, residentMebibytes } from './fuzz/fuzz-run.ts';

/** Real runs under hostile messages and signals: what is left in memory, in black boxes and in the weights. */
const STEPS = 240;
const SEED = 20261128;
/** By how much the clocks of two processes may differ. */
const CLOCKS_MS = 100;
const work = await temporaryFolder('work');
let undisturbed: Summary;

const train = (out: string, workers: number, ...overrides: string[]): string[] => [
  ...['train', 'videobert', '--preset', 'tiny', '--steps', String(STEPS), '--out', out],
  ...['--workers', String(workers), 'checkpoint.everySteps=80'],
  ...['data.demoTrainClips=24', 'data.demoHeldOutClips=8', ...overrides],
];

beforeAll(async () => {
  const { code, output } = await videoloom(train('one', 1), { cwd: work });
  assert.equal(code, 0, output);
  undisturbed = await readSummary(join(work, 'one'));
});

test('some hundred broken messages and frames have no effect on a run', async () => {
  const run = join(work, 'fuzzed');
  const started = startVideoloom(train('fuzzed', 2), { cwd: work });
  await reachStep(run, 2, started);
  const { address } = await readJson<{ address: string }>(join(run, 'coordinator.json'));
  const { runId } = await readJson<{ runId: string }>(join(run, 'run.json'));
  const processes = await childrenOf(started.child.pid!);
  const report = await fuzzRun({ coordinatorAddress: address, runId, seed: SEED, messages: 300 });
  console.log(JSON.stringify({ seed: SEED, ...report, step: await committedStep(run) }));
  assert.ok((await committedStep(run)) < STEPS, 'the run went on for as long as that');
  for (const { pid } of processes) {
    const mebibytes = await residentMebibytes(pid);
    assert.ok(mebibytes > 0 && mebibytes < 2048, `process ${pid} has ${mebibytes} MiB`);
  }
  const { code, output } = await started.ended;
  assert.equal(code, 0, output);
  assert.equal((await readSummary(run)).weightsSha256, undisturbed.weightsSha256);
});

test('a postmortem names the worker that a signal stopped, and after kill -9 of all the first that died', async () => {
  const run = join(work, 'stopped');
  // Who is stopped for as long as a look at it takes is not lost meanwhile, on a slow machine either.
  const args = train('stopped', 2, 'cluster.detectWithin=20');
  const started = startVideoloom(args, { cwd: work });
  await reachStep(run, 4, started);

  // --- Stopped by a signal: it could go on.
  const paused = await workerOf(started, 'worker-1');
  const { lastMs: aliveMs } = await storyOf(run, 'worker-1');
  process.kill(paused, 'SIGSTOP');
  for (let look = lookUpProcess(paused); look?.state !== 'T'; look = lookUpProcess(paused)) {
    assert.ok(look !== undefined, 'worker-1 is gone');
    await delay(5);
  }
  const pausedMs = Date.now();
  await livesOn(run, 'worker-0', pausedMs);
  const seen = await examineRun(run);
  const found = seen.firstStopped!;
  assert.equal(found.owner.workerId, 'worker-1');
  assert.equal(found.owner.pid, paused);
  assert.equal(found.fate, 'paused');
  const afterMs = found.lastMs - pausedMs;
  assert.ok(found.lastMs >= aliveMs && afterMs < CLOCKS_MS, `${afterMs} ms`);
  assert.notEqual(found.phase, 'start');
  const survivor = seen.stories.find(({ owner }) => owner.workerId === 'worker-0')!;
  assert.equal(survivor.fate, 'running');
  assert.deepEqual(survivor.collective?.waitsFor ?? ['worker-1'], ['worker-1']);
  process.kill(paused, 'SIGCONT');

  // --- Killed: the first of all, with what it last did.
  await reachStep(run, (await committedStep(run)) + 2, started);
  const killed = await workerOf(started, 'worker-0');
  started.child.kill('SIGSTOP'); // so that it starts no other in its place
  const before = await committedStep(run);
  process.kill(killed, 'SIGKILL');
  await livesOn(run, 'worker-1', Date.now());
  started.killAll();
  await started.ended;
  const dead = await examineRun(run);
  const first = dead.firstStopped!;
  assert.equal(first.owner.workerId, 'worker-0');
  assert.equal(first.owner.pid, killed);
  assert.equal(first.fate, 'gone');
  const range = `${first.heldStep}, committed ${before} to ${await committedStep(run)}`;
  assert.ok(first.heldStep >= before - 1 && first.heldStep <= (await committedStep(run)), range);
  assert.equal(dead.divergence, undefined);
  const told = await videoloom(['postmortem', run], { cwd: work });
  assert.equal(told.code, 1);
  assert.match(
    told.output,
    /✗ worker-0 stopped first: process \d+ on .*killed: it ended without a word/,
  );
  assert.match(told.output, /phase [a-z]+ since \d\d:\d\d:\d\d/);
  assert.ok(dead.timeline.some(({ who, what }) => who === 'journal' && /^generation/.test(what)));

  // --- Nobody the worse for it.
  const resumed = await videoloom(args, { cwd: work });
  assert.equal(resumed.code, 0, resumed.output);
  assert.equal((await readSummary(run)).weightsSha256, undisturbed.weightsSha256);
  const end = await examineRun(run);
  assert.equal(end.firstStopped, undefined);
  assert.equal(end.divergence, undefined, 'no bit differs between processes and generations');
  assert.equal(end.stories.filter(({ fate }) => fate === 'finished').length, 2);
  const digests = (await readBlackBoxes(run)).flatMap(({ records }) =>
    records.filter(({ kind }) => kind === 'gradient' || kind === 'weights'),
  );
  assert.ok(digests.length > 100, `${digests.length} digests were compared`);
});

/** What the box of a worker says that was started once. */
async function storyOf(run: string, id: string): Promise<Story> {
  const { stories } = await examineRun(run);
  return stories.find(({ owner }) => owner.workerId === id)!;
}

/** Waits for a sign of life after `sinceMs`. */
async function livesOn(run: string, id: string, sinceMs: number): Promise<void> {
  for (let polls = 0; (await storyOf(run, id)).lastMs < sinceMs + CLOCKS_MS; polls++) {
    assert.ok(polls < 3000, `${id} gave no sign of life`);
    await delay(20);
  }
}

async function workerOf(started: Started, id: string): Promise<number> {
  const children = await childrenOf(started.child.pid!);
  return children.find(({ command }) => command.includes(id))!.pid;
}

async function readJson<T>(path: string): Promise<T> {
  return JSON.parse(await readFile(path, 'utf8')) as T;
}
