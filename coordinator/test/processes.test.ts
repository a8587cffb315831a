import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { createHash } from 'node:crypto';
import { mkdir, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { parseAddress } from '../../proto/address.ts';
import { checkpointFolderName, MANIFEST_FILE } from '../../proto/checkpoint-manifest.ts';
import { tellLeaderFailure } from '../../proto/leader-failure.ts';
import { openRng } from '../../proto/random.ts';
import type { RunPlan } from '../../proto/run-plan.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { readJournal } from '../journal.ts';
import { LOCK_FILE } from '../../proto/run-lock.ts';
import { startCoordinator } from './coordinator-process.ts';
import type { CoordinatorProcess } from './coordinator-process.ts';
import { expectedDigest, newTrainee, trainToTheEnd } from './scripted-training.ts';
import { ScriptedWorker, testPlan } from './scripted-worker.ts';

async function runFolder(plan: RunPlan): Promise<string> {
  const folder = await temporaryFolder('run');
  await writeFile(join(folder, 'run.json'), JSON.stringify(plan));
  return folder;
}

async function start(
  t: TestContext,
  folder: string,
  ...flags: string[]
): Promise<CoordinatorProcess> {
  const coordinator = await startCoordinator(folder, ...flags);
  t.after(() => coordinator.child.kill('SIGKILL'));
  return coordinator;
}

/** Places of the order that commits which count have used, in order of step. */
function usedPlaces(folder: string): number[] {
  const byStep = new Map<number, number[]>();
  readJournal(join(folder, 'journal.jsonl'), (record) => {
    if (record.type !== 'commit') return;
    byStep.set(
      record.step,
      Array.from({ length: record.numSamples }, (_, i) => record.firstPosition + i),
    );
  });
  return [...byStep].sort(([a], [b]) => a - b).flatMap(([, places]) => places);
}

/** A checkpoint whose one file is a pipe: whoever reads it waits until its content is written, which is to be "whole". */
async function slowCheckpoint(folder: string, step: number): Promise<string> {
  const checkpoint = join(folder, 'checkpoints', checkpointFolderName(step));
  const name = 'model-00001-of-00001.safetensors';
  await mkdir(checkpoint, { recursive: true });
  assert.equal(spawnSync('mkfifo', [join(checkpoint, name)]).status, 0);
  const sha256 = createHash('sha256').update('whole').digest('hex');
  const { runId, seed, configDigest, datasetDigest } = testPlan();
  const manifest = {
    ...{ formatVersion: 1, runId, step, generation: 1, dataPosition: 8 * step, seed, configDigest },
    ...{ datasetDigest, files: [{ name, sizeBytes: 0, sha256 }], time: new Date().toISOString() },
  };
  await writeFile(join(checkpoint, MANIFEST_FILE), JSON.stringify(manifest));
  return join(checkpoint, name);
}

async function typesIn(folder: string): Promise<string[]> {
  const lines = (await readFile(join(folder, 'journal.jsonl'), 'utf8')).split('\n').slice(0, -1);
  return lines.map((line) => (JSON.parse(line) as { type: string }).type);
}

/** Who holds the lock of a run folder. */
async function leaderPid(folder: string): Promise<number> {
  return (JSON.parse(await readFile(join(folder, LOCK_FILE), 'utf8')) as { pid: number }).pid;
}

describe('the coordinator as a process', () => {
  it('shares a folder with no other, and takes over from one that was killed', async (t) => {
    const folder = await runFolder(testPlan());
    const first = await start(t, folder);
    await assert.rejects(start(t, folder), (error: Error) => {
      assert.match(error.message, /^ended with 1: RUN_LOCKED: /);
      assert.ok(
        error.message.includes(`process ${first.child.pid} `) && error.message.includes(folder),
      );
      return true;
    });
    first.child.kill('SIGKILL');
    assert.equal(await first.exited, 'SIGKILL');
    // What a leader before it, or a wrong command beside it, has left for those who wait.
    await tellLeaderFailure(folder, { code: 2, isFinal: true });
    const second = await start(t, folder);
    assert.ok(!(await readdir(folder)).includes('leader-failure.json'));
    const worker = await ScriptedWorker.join(second.address, 'a');
    await worker.generation();
    await worker.leave();
  });

  it('is the only one of four that start at once on a folder whose owner was killed', async (t) => {
    const folder = await runFolder(testPlan());
    const dead = await start(t, folder);
    dead.child.kill('SIGKILL');
    await dead.exited;
    const starts = await Promise.allSettled(Array.from({ length: 4 }, () => start(t, folder)));
    assert.equal(starts.filter(({ status }) => status === 'fulfilled').length, 1);
    for (const each of starts)
      if (each.status === 'rejected') assert.match(String(each.reason), /RUN_LOCKED/);
  });

  it('killed again and again while two workers train, ends with the weights of an undisturbed run', async (t) => {
    const plan = testPlan({ totalSteps: 300, checkpointEverySteps: 10, minWorkers: 2 });
    const folder = await runFolder(plan);
    let coordinator = await start(t, folder);
    const listen = ['--listen', coordinator.address];
    const trainees = [newTrainee('a'), newTrainee('b')];
    const over = new AbortController();
    t.after(() => {
      over.abort();
    });
    const training = Promise.all(
      trainees.map((trainee) =>
        trainToTheEnd(coordinator.address, folder, plan, trainee, {
          peers: trainees,
          stepMs: 8,
          signal: over.signal,
        }),
      ),
    );
    let isOver = false as boolean;
    const ended = training.finally(() => {
      isOver = true;
    });
    ended.catch(() => undefined); // told where it is waited for
    const rng = openRng(1, 'kills');
    for (let i = 0; i < 5; i++) {
      // By steps and not by time: each kill finds the run under way, on any machine.
      const step = trainees[0]!.weights.step + 3 + rng.integer(15);
      while (trainees[0]!.weights.step < step && !isOver) await sleep(5);
      await sleep(rng.integer(20));
      coordinator.child.kill('SIGKILL');
      await coordinator.exited;
      coordinator = await start(t, folder, ...listen);
    }
    await ended;
    assert.equal(await coordinator.exited, 0);
    const summary = JSON.parse(await readFile(join(folder, 'summary.json'), 'utf8')) as {
      weightsSha256: string;
    };
    assert.equal(summary.weightsSha256, expectedDigest(plan));
    assert.deepEqual(usedPlaces(folder), [...Array(300 * 8).keys()]);
    const openings = [] as number[];
    readJournal(join(folder, 'journal.jsonl'), (record) => {
      if (record.type === 'generation') openings.push(record.generation);
    });
    assert.ok(openings.length >= 6, `${openings.length}: each kill ended a generation`);
    assert.deepEqual(
      openings,
      [...new Set(openings)].sort((a, b) => a - b),
    );
  });

  it('after a SIGTERM lets the step end, keeps a checkpoint, exits with 75, and goes on from there', async (t) => {
    const plan = testPlan({ totalSteps: 40, checkpointEverySteps: 1000 });
    const folder = await runFolder(plan);
    const first = await start(t, folder);
    const trainee = newTrainee('a');
    const options = { peers: [], stepMs: 20, signal: new AbortController().signal };
    const training = trainToTheEnd(first.address, folder, plan, trainee, options);
    while (trainee.weights.step < 3) await Promise.race([sleep(5), training]);
    first.child.kill('SIGTERM');
    assert.equal(await first.exited, 75, first.stderr());
    await training;
    const stoppedAt = trainee.weights.step;
    assert.ok(stoppedAt > 0 && stoppedAt < 40);

    const second = await start(t, folder);
    const fresh = newTrainee('b');
    await trainToTheEnd(second.address, folder, plan, fresh, options);
    assert.equal(await second.exited, 0, second.stderr());
    assert.equal(fresh.weights.digest, expectedDigest(plan));
    assert.deepEqual(usedPlaces(folder), [...Array(40 * 8).keys()]);
  });

  it('names a taken port, a missing plan and a wrong flag', async (t) => {
    const folder = await runFolder(testPlan());
    const other = await runFolder(testPlan());
    const { address } = await start(t, folder);
    await assert.rejects(
      start(t, other, '--listen', address),
      /ended with 1: PORT_IN_USE: .*port 0/,
    );
    await assert.rejects(start(t, join(other, 'nowhere')), /ended with 2: RUN_PLAN_MISSING/);
    await assert.rejects(start(t, other, '--bogus'), /ended with 2/);
    await writeFile(
      join(other, 'run.json'),
      JSON.stringify({ ...testPlan(), microbatches: 3, surprise: 1 }),
    );
    await assert.rejects(
      start(t, other),
      /ended with 2: RUN_PLAN_INVALID.*microbatches: must be a power of two/,
    );
  });

  it('started again, waits for its port as long as its workers do, and gives way with that of the metrics', async (t) => {
    const folder = await runFolder(testPlan({ detectWithinMs: 200 }));
    const first = await start(t, folder);
    first.child.kill('SIGKILL');
    await first.exited;
    const taken = [first.address, first.metricsAddress].map((address) =>
      createServer().listen(parseAddress(address).port, '127.0.0.1'),
    );
    t.after(() => {
      for (const server of taken) server.close();
    });
    await Promise.all(taken.map((server) => once(server, 'listening')));
    const flags = ['--listen', first.address, '--metrics', first.metricsAddress];
    const asked = start(t, folder, ...flags, '--started-again');
    asked.catch(() => undefined); // told where it is waited for
    while ((await leaderPid(folder)) === first.child.pid) await sleep(20);
    await sleep(300);
    process.kill(await leaderPid(folder), 'SIGTERM');
    await assert.rejects(asked, /ended with 75/);
    const again = start(t, folder, ...flags, '--started-again');
    await sleep(1500);
    taken[0]!.close();
    const second = await again;
    assert.equal(second.address, first.address);
    assert.notEqual(second.metricsAddress, first.metricsAddress);
    assert.equal((await fetch(`http://${second.metricsAddress}/metrics`)).status, 200);
    assert.match(second.stderr(), /the metrics are at http:.* now: port .* is taken/);
  });

  for (const [content, restored, what] of [
    ['whole', 3, 'goes on from it without them once it is read'],
    ['damaged', 0, 'goes on without it where it is damaged'],
  ] as const) {
    it(`after a kill leads its workers on before it has read the newest checkpoint, and ${what}`, async (t) => {
      const folder = await runFolder(testPlan({ totalSteps: 100, checkpointEverySteps: 100 }));
      const first = await start(t, folder);
      const before = await ScriptedWorker.join(first.address, 'a');
      await before.generation();
      for (let step = 1; step <= 4; step++) await before.vote(1, step);
      const slow = await slowCheckpoint(folder, 3);
      first.child.kill('SIGKILL');
      await before.leave();
      const started = start(t, folder);
      const second = await Promise.race([started, sleep(20_000)]);
      assert.ok(second !== undefined, 'it reads before it listens');
      const after = await ScriptedWorker.join(second.address, 'a', { stateStep: 4, stateIn: 1 });
      assert.equal((await after.generation()).committedStep, 4);
      await after.vote(2, 5);
      await after.leave();
      // Nobody holds anything any more.
      const fresh = await ScriptedWorker.join(second.address, 'b');
      t.after(() => fresh.leave());
      const generation = fresh.generation();
      assert.equal(await Promise.race([generation, sleep(500)]), undefined);
      const pipe = await open(slow, 'w');
      // Who finds it damaged looks once more, and is not to wait for another writer.
      await rm(slow);
      if (content === 'damaged') await writeFile(slow, 'torn');
      await pipe.write(content);
      await pipe.close();
      const { committedStep, restoreStep } = await generation;
      assert.deepEqual([committedStep, restoreStep], [restored, restored]);
      assert.equal((await typesIn(folder)).includes('checkpoint-damaged'), content === 'damaged');
    });
  }

  it('taken over from while it is alive, writes no more, however long the other reads checkpoints', async (t) => {
    const folder = await runFolder(testPlan({ totalSteps: 100, checkpointEverySteps: 100 }));
    const first = await start(t, folder);
    const worker = await ScriptedWorker.join(first.address, 'a');
    await worker.generation();
    for (let step = 1; step <= 4; step++) await worker.vote(1, step);
    const slow = await slowCheckpoint(folder, 3);
    const second = start(t, folder, '--take-over');
    while ((await leaderPid(folder)) === first.child.pid) await sleep(20);
    await sleep(500);
    await assert.rejects(worker.vote(1, 5));
    assert.equal(await first.exited, 1);
    assert.match(first.stderr(), /RUN_FENCED/);
    await worker.leave();
    await writeFile(slow, 'whole');
    await second;
    const types = await typesIn(folder);
    assert.equal(types.filter((type) => type === 'opened').length, 2);
    assert.ok(!types.includes('failed'));
  });

  it('writes nothing into a journal that it has lost the lock of', async (t) => {
    const folder = await runFolder(testPlan({ detectWithinMs: 200 }));
    const coordinator = await start(t, folder);
    await rm(join(folder, LOCK_FILE));
    assert.equal(await coordinator.exited, 1);
    assert.match(coordinator.stderr(), /RUN_LOCK_LOST/);
    assert.deepEqual(await typesIn(folder), ['opened']);
  });

  it('stops cleanly when its journal cannot grow', async (t) => {
    if (spawnSync('prlimit', ['--version']).status !== 0) {
      t.skip('prlimit is not installed');
      return;
    }
    const plan = testPlan({ totalSteps: 4000, checkpointEverySteps: 100_000 });
    const folder = await runFolder(plan);
    const coordinator = await start(t, folder);
    const limited = spawnSync('prlimit', ['--pid', String(coordinator.child.pid), '--fsize=8192']);
    assert.equal(limited.status, 0, String(limited.stderr));
    const options = { peers: [], stepMs: 0, signal: new AbortController().signal };
    await assert.rejects(
      trainToTheEnd(coordinator.address, folder, plan, newTrainee('a'), options),
      {
        code: /JOURNAL_WRITE_FAILED|RUN_FAILED/,
      },
    );
    assert.equal(await coordinator.exited, 1);
    assert.match(coordinator.stderr(), /JOURNAL_WRITE_FAILED/);
    const places = usedPlaces(folder);
    assert.ok(places.length > 0);
    assert.deepEqual(places, [...places.keys()]);
  });

  it('serves metrics that Prometheus has nothing to say against', async (t) => {
    const folder = await runFolder(testPlan());
    const coordinator = await start(t, folder);
    const worker = await ScriptedWorker.join(coordinator.address, 'a');
    t.after(() => worker.leave());
    await worker.generation();
    const skip = { sample: 1, substitute: 2, reason: 'DECODE_FAILED', message: 'torn', place: 0 };
    await worker.vote(1, 1, { skipped: [skip] });
    const response = await fetch(`http://${coordinator.metricsAddress}/metrics`);
    const text = await response.text();
    assert.match(text, /^videoloom_train_loss\{objective="contrastive"\} 1$/m);
    assert.match(text, /^videoloom_samples_skipped_total\{reason="DECODE_FAILED"\} 1$/m);
    assert.match(text, /^videoloom_workers\{state="member"\} 1$/m);
    assert.equal((await fetch(`http://${coordinator.metricsAddress}/other`)).status, 404);
    const discovered = await fetch(`http://${coordinator.metricsAddress}/sd`);
    assert.equal(discovered.headers.get('content-type'), 'application/json');
    assert.deepEqual(await discovered.json(), [
      { targets: [coordinator.metricsAddress], labels: { run: 'run-a', role: 'coordinator' } },
      { targets: ['a:3'], labels: { run: 'run-a', role: 'worker', worker: 'a' } },
    ]);
    const checked = spawnSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' });
    if (checked.error !== undefined) {
      t.skip('promtool (Debian package prometheus) is not installed');
      return;
    }
    assert.equal(checked.status, 0, checked.stdout + checked.stderr);
    assert.equal(checked.stdout + checked.stderr, '');
  });
});
