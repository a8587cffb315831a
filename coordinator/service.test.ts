import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { TestContext } from 'node:test';

import { pino } from 'pino';
import { Registry } from 'prom-client';

import { readManifest } from '../proto/checkpoint-manifest.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase } from '../proto/gen/videoloom/v1/run.ts';
import type { RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream, dial, serve } from '../proto/grpc.ts';
import { PROTOCOL_VERSION } from '../proto/protocol.ts';
import { positionOf, sampleAt, substitutesAt } from '../proto/sample-order.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import type { JournalRecord } from './journal.ts';
import { readJournal } from './journal.ts';
import { openRun } from './run.ts';
import type { Run } from './run.ts';
import { coordinatorService } from './service.ts';
import { ScriptedWorker, testPlan } from './test/scripted-worker.ts';

interface Served {
  readonly folder: string;
  readonly address: string;
  readonly run: Run;
  readonly registry: Registry;
  records(): JournalRecord[];
  close(): Promise<void>;
}

async function serveRun(t: TestContext, plan = testPlan(), folder?: string): Promise<Served> {
  folder ??= await temporaryFolder('coordinator');
  const registry = new Registry();
  const run = await openRun(folder, plan, {
    log: pino({ level: 'silent' }),
    registry,
    nowMs: () => performance.now(),
    wallTime: () => new Date(),
  });
  const service = { definition: Rpc, handlers: coordinatorService(run) };
  const server = await serve([service], '127.0.0.1:0');
  const close = async (): Promise<void> => {
    await run.close();
    await server.close();
  };
  t.after(close);
  return {
    folder,
    address: server.address,
    run,
    registry,
    records() {
      const records: JournalRecord[] = [];
      readJournal(join(folder, 'journal.jsonl'), (record) => records.push(record));
      return records;
    },
    close,
  };
}

async function joinAs(
  t: TestContext,
  { address }: Served,
  workerId: string,
  options: Parameters<typeof ScriptedWorker.join>[2] = {},
): Promise<ScriptedWorker> {
  const worker = await ScriptedWorker.join(address, workerId, options);
  t.after(() => worker.leave());
  return worker;
}

/** Puts a worker's share of a checkpoint on disk and gives what it has to report. */
async function writePart(folder: string, step: number, name: string, content: string) {
  const path = join(folder, 'checkpoints', `step-${String(step).padStart(8, '0')}`);
  await mkdir(path, { recursive: true });
  await writeFile(join(path, name), content);
  return [
    { name, sizeBytes: content.length, sha256: createHash('sha256').update(content).digest('hex') },
  ];
}

/** Trains a worker that is alone to the end. */
async function trainAlone(worker: ScriptedWorker, folder: string, upTo = Infinity): Promise<void> {
  const generation = await worker.generation();
  for (let step = generation.committedStep + 1; step <= upTo; step++) {
    const { checkpoint, last } = await worker.vote(generation.number, step);
    if (checkpoint) {
      const files = await writePart(folder, step, 'model.safetensors', `weights after ${step}`);
      assert.equal(await worker.reportPart(generation.number, step, files), true);
    }
    if (last) break;
  }
}

const withCode = (code: string, message?: RegExp) => (error: unknown) => {
  assert.ok(error instanceof Error && 'code' in error, String(error));
  assert.equal(error.code, code, error.message);
  if (message !== undefined) assert.match(error.message, message);
  return true;
};

describe('the coordinator over gRPC', () => {
  it('admits one engine and platform to a run, also when nobody is left that computed with it', async (t) => {
    const plan = testPlan({ engine: 'xla', totalSteps: 6 });
    const served = await serveRun(t, plan);
    const refusal = (engine: string, why: RegExp, at = served) =>
      assert.rejects(joinAs(t, at, 'odd', { engine }), withCode('OTHER_ENGINE', why));
    await refusal(
      'cpu/javascript',
      /"odd" on host here .*cpu\/javascript.* config of the run says xla/,
    );
    const first = await joinAs(t, served, 'first', { engine: 'xla/cpu' });
    await refusal('xla/cuda', /computes with xla\/cuda, and worker "first" computes with xla\/cpu/);
    await trainAlone(first, served.folder, 3);
    await first.leave();
    await refusal('xla/cuda', /the run was computed with xla\/cpu so far.*--engine and --plugin/);
    await served.close();
    const again = await serveRun(t, plan, served.folder);
    await refusal('xla/cuda', /the run was computed with xla\/cpu so far/, again);
    await joinAs(t, again, 'second', { engine: 'xla/cpu' });
    const joined = again.records().flatMap((one) => (one.type === 'worker-joined' ? [one] : []));
    assert.deepEqual(
      joined.map(({ workerId, engine }) => [workerId, engine]),
      [
        ['first', 'xla/cpu'],
        ['second', 'xla/cpu'],
      ],
    );
  });

  it('waits for the wanted number of workers and shares the microbatches out by join order', async (t) => {
    const served = await serveRun(t, testPlan({ minWorkers: 3 }));
    const first = await joinAs(t, served, 'w-first');
    const second = await joinAs(t, served, 'a-second');
    assert.equal(served.run.status().phase, RunPhase.WAITING);
    const third = await joinAs(t, served, 'm-third');
    const generation = await first.generation();
    assert.deepEqual(
      generation.members.map(({ workerId, rank, firstMicrobatch, numMicrobatches }) => [
        workerId,
        rank,
        firstMicrobatch,
        numMicrobatches,
      ]),
      [
        ['w-first', 0, 0, 1],
        ['a-second', 1, 1, 1],
        ['m-third', 2, 2, 2],
      ],
    );
    assert.equal(generation.number, 1);
    assert.deepEqual(await second.generation(), generation);
    assert.deepEqual(await third.generation(), generation);
  });

  it('refuses another protocol version and says which side is older', async (t) => {
    const served = await serveRun(t);
    await assert.rejects(
      joinAs(t, served, 'w0', { protocolVersion: PROTOCOL_VERSION - 1 }),
      withCode('PROTOCOL_MISMATCH', /worker "w0" on host here is older/),
    );
    await assert.rejects(
      joinAs(t, served, 'w0', { protocolVersion: PROTOCOL_VERSION + 1 }),
      withCode('PROTOCOL_MISMATCH', /the coordinator is older/),
    );
    await assert.rejects(joinAs(t, served, 'w0', { runId: 'run-b' }), withCode('OTHER_RUN'));
    await assert.rejects(joinAs(t, served, '../w0'), withCode('BAD_WORKER_ID'));
  });

  it('hands out the samples of the order, for the asked range and no further than allowed', async (t) => {
    const plan = testPlan({ minWorkers: 2, prefetchSteps: 3 });
    const served = await serveRun(t, plan);
    const [a, b] = [await joinAs(t, served, 'a'), await joinAs(t, served, 'b')];
    await a.generation();
    const leases = [...(await a.lease(1, 1, 100)), ...(await b.lease(1, 1, 100))];
    assert.deepEqual(
      leases.map(({ step }) => step),
      [1, 2, 3, 1, 2, 3],
    );
    const order = { seed: plan.seed, numSamples: plan.numTrainSamples };
    for (const { step, microbatches } of leases) {
      for (const { index, samples } of microbatches) {
        const expected = [0, 1].map((i) => {
          const position = positionOf(plan, step, index, i);
          const substitutes = substitutesAt(order, position, 4);
          return { ...sampleAt(order, position), substitutes, recorded: undefined };
        });
        assert.deepEqual(samples, expected);
      }
    }
    assert.deepEqual(
      leases
        .filter(({ step }) => step === 2)
        .flatMap(({ microbatches }) => microbatches.map((m) => m.index)),
      [0, 1, 2, 3],
    );
    await assert.rejects(a.lease(1, 0), withCode('LEASE_OUT_OF_WINDOW'));
    await assert.rejects(a.lease(0, 1), withCode('STALE_GENERATION'));
  });

  it('commits a step when all have voted, and repeats the answer to whom it did not reach', async (t) => {
    const served = await serveRun(t, testPlan({ minWorkers: 2 }));
    const [a, b] = [await joinAs(t, served, 'a'), await joinAs(t, served, 'b')];
    await b.generation();
    const early = a.vote(1, 1);
    await a.lease(1, 1); // A round trip: the vote is there now.
    assert.equal(served.run.status().committedStep, 0);
    const answer = await b.vote(1, 1);
    assert.deepEqual([answer.checkpoint, answer.last], [false, false]);
    const [waited, last] = answer.waitedMs;
    assert.ok(waited! >= 0 && last === 0, String(answer.waitedMs));
    assert.deepEqual(await early, answer);
    assert.deepEqual(await a.vote(1, 1), answer);
    assert.equal(served.records().filter(({ type }) => type === 'commit').length, 1);
    await assert.rejects(a.vote(1, 3), withCode('UNEXPECTED_STEP'));
    const { clipsPerSecond, committedStep } = served.run.status();
    assert.deepEqual([committedStep, clipsPerSecond], [1, 0]);
  });

  it('opens a generation without a worker that has gone, and the rest redo the step', async (t) => {
    const served = await serveRun(t, testPlan({ minWorkers: 3 }));
    const [a, b, c] = [
      await joinAs(t, served, 'a'),
      await joinAs(t, served, 'b'),
      await joinAs(t, served, 'c'),
    ];
    await a.generation();
    const voted = assert.rejects(a.vote(1, 1), withCode('STALE_GENERATION'));
    await a.lease(1, 1);
    await b.leave();
    await voted;
    const next = await a.generation(({ number }) => number === 2);
    assert.deepEqual(
      next.members.map(({ workerId }) => workerId),
      ['a', 'c'],
    );
    assert.equal(next.committedStep, 0);
    await assert.rejects(c.vote(1, 1), withCode('STALE_GENERATION'));
    await Promise.all([a.vote(2, 1), c.vote(2, 1)]);
    assert.match(
      await served.registry.metrics(),
      /videoloom_fenced_requests_total\{rpc="CommitStep"\} 2/,
    );
    assert.match(
      await served.registry.metrics(),
      /videoloom_worker_lost_total\{reason="disconnected"\} 1/,
    );
  });

  it('lets a late worker in after the step in progress', async (t) => {
    const served = await serveRun(t);
    const a = await joinAs(t, served, 'a');
    await a.generation();
    const b = await joinAs(t, served, 'b');
    await b.generation(); // the first one, which it is no member of: it attends
    await a.vote(1, 1);
    const next = await b.generation(({ number }) => number === 2);
    assert.deepEqual([next.number, next.committedStep, next.restoreStep], [2, 1, 0]);
    assert.deepEqual(
      next.members.map(({ numMicrobatches }) => numMicrobatches),
      [2, 2],
    );
    await Promise.all([a.vote(2, 2), b.vote(2, 2)]);
  });

  it('fences a process whose worker id a newer one has taken', async (t) => {
    const served = await serveRun(t);
    const old = await joinAs(t, served, 'a');
    await old.generation();
    const young = await joinAs(t, served, 'a');
    withCode('FENCED', /worker "a"/)(await old.ended);
    const { number, members } = await young.generation();
    assert.deepEqual([number, members.length], [2, 1]);
    await assert.rejects(old.vote(2, 1), withCode('FENCED'));
    await assert.rejects(old.lease(2, 1), withCode('FENCED'));
    await young.vote(2, 1);
  });

  it('drops a worker whose beats stop, though its connection stands', async (t) => {
    const served = await serveRun(t, testPlan({ minWorkers: 2, detectWithinMs: 2000 }));
    const a = await joinAs(t, served, 'a');
    const frozen = await joinAs(t, served, 'frozen', { beatMs: 1_000_000 });
    const { members } = await a.generation(({ number }) => number === 2);
    assert.deepEqual(
      members.map(({ workerId }) => workerId),
      ['a'],
    );
    withCode('HEARTBEAT_LOST')(await frozen.ended);
    await assert.rejects(frozen.vote(2, 1), withCode('UNKNOWN_SESSION'));
  });

  it('gives up a worker that does not vote and waits for nobody, by name', async (t) => {
    const served = await serveRun(t, testPlan({ minWorkers: 2, detectWithinMs: 1000 }));
    const a = await joinAs(t, served, 'a', { phase: 'wait' });
    const slow = await joinAs(t, served, 'slow', { phase: 'wait' });
    await a.generation();
    await assert.rejects(a.vote(1, 1), withCode('STALE_GENERATION'));
    await a.generation(({ number }) => number === 2);
    await assert.rejects(a.vote(2, 1), withCode('STALE_GENERATION'));
    withCode('WORKER_UNREACHABLE', /"slow" \(rank 1, phase wait\) sits out/)(await slow.ended);
    await a.generation(({ number }) => number === 3);
    await a.vote(3, 1);
  });

  it('fails the run when workers disagree in one bit, and names the ranks', async (t) => {
    const served = await serveRun(t, testPlan({ minWorkers: 3 }));
    const workers = [
      await joinAs(t, served, 'a'),
      await joinAs(t, served, 'b'),
      await joinAs(t, served, 'c'),
    ] as const;
    await workers[0].generation();
    const votes = await Promise.allSettled([
      workers[0].vote(1, 1),
      workers[1].vote(1, 1, { gradientNorm: 0.5 + Number.EPSILON / 2 }),
      workers[2].vote(1, 1),
    ]);
    for (const vote of votes) {
      assert.ok(vote.status === 'rejected');
      withCode(
        'REPLICAS_DIVERGED',
        /gradient norm: 0\.5 by ranks 0, 2; 0\.5000000000000001 by rank 1/,
      )(vote.reason);
    }
    await served.run.over;
    assert.equal(served.run.status().phase, RunPhase.FAILED);
    assert.match(served.run.status().failure, /^REPLICAS_DIVERGED: /);
    assert.equal(
      served.records().some(({ type }) => type === 'commit'),
      false,
    );
  });

  it(
    'tells a spare of the end, which waits for a generation that does not come',
    { timeout: 30_000 },
    async (t) => {
      const served = await serveRun(t, testPlan({ totalSteps: 1, microbatches: 1 }));
      const a = await joinAs(t, served, 'a');
      await a.generation();
      const spare = await joinAs(t, served, 'spare');
      await spare.generation();
      await a.vote(1, 1);
      const part = await writePart(served.folder, 1, 'model-00001-of-00001.safetensors', 'a');
      assert.equal(await a.reportPart(1, 1, part), true);
      await a.reportResult(1);
      withCode('RUN_FINISHED', /is finished/)(await spare.ended);
    },
  );

  it('completes a checkpoint with the last part, prunes old ones, and finishes with a summary', async (t) => {
    const served = await serveRun(
      t,
      testPlan({ minWorkers: 2, checkpointEverySteps: 1, keepCheckpoints: 2 }),
    );
    const { folder } = served;
    const [a, b] = [await joinAs(t, served, 'a'), await joinAs(t, served, 'b')];
    await b.generation();
    const control = dial(served.address);
    t.after(() => {
      control.close();
    });
    const seen: RunStatus[] = [];
    const watching = (async () => {
      for await (const { status } of callStream(
        control,
        Rpc.watchStatus,
        {},
        { timeoutMs: 20_000 },
      )) {
        seen.push(status!);
      }
    })();
    for (let step = 1; step <= 6; step++) {
      const answers = await Promise.all([a.vote(1, step), b.vote(1, step)]);
      assert.deepEqual([answers[0].checkpoint, answers[0].last], [true, step === 6]);
      assert.equal(
        await a.reportPart(
          1,
          step,
          await writePart(folder, step, 'model-00001-of-00002.safetensors', `a${step}`),
        ),
        false,
      );
      assert.equal(
        await b.reportPart(
          1,
          step,
          await writePart(folder, step, 'model-00002-of-00002.safetensors', `b${step}`),
        ),
        true,
      );
    }
    const manifest = await readManifest(join(folder, 'checkpoints', 'step-00000006'));
    assert.equal(manifest.dataPosition, 48);
    assert.deepEqual(
      manifest.files.map(({ name }) => name),
      ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'],
    );
    await Promise.all([a.reportResult(1), b.reportResult(1)]);
    await served.run.over;
    await watching;
    assert.equal(seen.at(-1)?.phase, RunPhase.FINISHED);
    assert.deepEqual(
      seen.at(-1)?.figures.map(({ name }) => name),
      ['recall@1'],
    );
    assert.equal(seen.at(-1)?.lastCheckpointStep, 6);
    const summary = JSON.parse(await readFile(join(folder, 'summary.json'), 'utf8')) as Record<
      string,
      unknown
    >;
    assert.deepEqual([summary['step'], summary['weightsSha256']], [6, 'e'.repeat(64)]);
    assert.deepEqual(await readdir(join(folder, 'checkpoints')), [
      'step-00000005',
      'step-00000006',
    ]);

    // Opened again, it is finished from the start, and nobody can join.
    await served.close();
    const again = await serveRun(
      t,
      testPlan({ minWorkers: 2, checkpointEverySteps: 1, keepCheckpoints: 2 }),
      folder,
    );
    const { phase, weightsSha256, figures } = again.run.status();
    assert.deepEqual(
      [phase, weightsSha256, figures.length],
      [RunPhase.FINISHED, 'e'.repeat(64), 1],
    );
    await again.run.over;
    await assert.rejects(joinAs(t, again, 'a'), withCode('RUN_FINISHED'));
  });

  it('trains on when a checkpoint cannot be written', async (t) => {
    const served = await serveRun(t, testPlan({ checkpointEverySteps: 2 }));
    const a = await joinAs(t, served, 'a');
    await a.generation();
    await a.vote(1, 1);
    assert.equal((await a.vote(1, 2)).checkpoint, true);
    assert.equal(await a.reportPart(1, 2, [], 'ENOSPC: no space left on device'), false);
    assert.equal((await a.vote(1, 3)).checkpoint, false);
    assert.equal((await a.vote(1, 4)).checkpoint, true);
    // Says that it has written what is not there.
    assert.equal(
      await a.reportPart(1, 4, [{ name: 'x', sizeBytes: 1, sha256: '0'.repeat(64) }]),
      false,
    );
    assert.equal(served.run.status().lastCheckpointStep, 0);
    const failed = served.records().filter(({ type }) => type === 'checkpoint-failed');
    assert.deepEqual(
      failed.map((record) => 'reason' in record && record.reason),
      ['write-failed', 'manifest'],
    );
    await a.vote(1, 5);
  });

  it("takes the next step's checkpoint instead of one that was lost with a worker", async (t) => {
    const served = await serveRun(t, testPlan({ minWorkers: 2 }));
    const [a, b] = [await joinAs(t, served, 'a'), await joinAs(t, served, 'b')];
    await b.generation();
    for (const step of [1, 2, 3]) await Promise.all([a.vote(1, step), b.vote(1, step)]);
    await b.leave();
    await a.generation(({ number }) => number === 2);
    assert.equal((await a.vote(2, 4)).checkpoint, true);
    const files = await writePart(served.folder, 4, 'model.safetensors', 'four');
    assert.equal(await a.reportPart(2, 4, files), true);
    assert.equal((await a.vote(2, 5)).checkpoint, false);
  });

  it('stops on request after the running step, with a checkpoint, and goes on from it', async (t) => {
    const served = await serveRun(t);
    const a = await joinAs(t, served, 'a');
    await a.generation();
    await a.vote(1, 1);
    const control = dial(served.address);
    await call(control, Rpc.stopRun, {}, { timeoutMs: 5000 });
    control.close();
    assert.deepEqual(await a.vote(1, 2), { checkpoint: true, last: true, waitedMs: [0] });
    const files = await writePart(served.folder, 2, 'model.safetensors', 'two');
    assert.equal(await a.reportPart(1, 2, files), true);
    await served.run.over;
    assert.equal(served.run.status().phase, RunPhase.STOPPED);
    await served.close();

    const again = await serveRun(t, testPlan(), served.folder);
    const completed = again.records().find(({ type }) => type === 'checkpoint')!;
    const metrics = await again.registry.metrics();
    const shown = (name: string) => Number(new RegExp(`^${name} (.*)$`, 'm').exec(metrics)?.[1]);
    assert.equal(shown('videoloom_checkpoint_bytes'), 'two'.length);
    assert.equal(
      shown('videoloom_checkpoint_last_success_timestamp_seconds'),
      Date.parse(completed.time) / 1000,
    );
    const b = await joinAs(t, again, 'b');
    const { number, committedStep, restoreStep } = await b.generation();
    assert.deepEqual([number, committedStep, restoreStep], [2, 2, 2]);
  });

  it('redoes the steps after the checkpoint when nobody holds them, and goes on from memory when somebody does', async (t) => {
    const served = await serveRun(t);
    const a = await joinAs(t, served, 'a');
    await trainAlone(a, served.folder, 5);
    await a.leave();
    await served.close();

    const second = await serveRun(t, testPlan({ minWorkers: 2 }), served.folder);
    const survivor = await joinAs(t, second, 'a', { stateStep: 5, stateIn: 1 });
    await joinAs(t, second, 'b');
    const kept = await survivor.generation();
    assert.deepEqual([kept.number, kept.committedStep, kept.restoreStep], [2, 5, 3]);
    await second.close();

    const third = await serveRun(t, testPlan(), served.folder);
    const fresh = await joinAs(t, third, 'c');
    const redone = await fresh.generation();
    assert.deepEqual([redone.number, redone.committedStep, redone.restoreStep], [3, 3, 3]);
    assert.ok(third.records().some((record) => record.type === 'restored' && record.step === 3));
    await trainAlone(fresh, third.folder);
  });

  it('passes over a damaged checkpoint', async (t) => {
    const served = await serveRun(t, testPlan({ checkpointEverySteps: 2 }));
    const a = await joinAs(t, served, 'a');
    await trainAlone(a, served.folder, 4);
    await a.leave();
    await served.close();
    await writeFile(
      join(served.folder, 'checkpoints', 'step-00000004', 'model.safetensors'),
      'Weights after 4',
    );
    const again = await serveRun(t, testPlan({ checkpointEverySteps: 2 }), served.folder);
    const b = await joinAs(t, again, 'b');
    const { committedStep, restoreStep } = await b.generation();
    assert.deepEqual([committedStep, restoreStep], [2, 2]);
  });

  it('refuses to go on under another plan', async (t) => {
    const served = await serveRun(t);
    await served.close();
    await assert.rejects(
      serveRun(t, testPlan({ seed: 8 }), served.folder),
      withCode('RUN_PLAN_CHANGED', /seed was 7 and is 8/),
    );
    await serveRun(t, testPlan({ totalSteps: 12, detectWithinMs: 1000 }), served.folder);
  });
});
