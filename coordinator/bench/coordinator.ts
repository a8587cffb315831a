/**
 * How many workers one coordinator process serves: simulated workers, each with a connection of its own, join, beat, lease
 * the samples of their microbatches and vote for steps, against a real coordinator with its journal on disk. Prints a JSON
 * line a figure. `cores` is the coordinator's processor time by the wall clock; rates hold for this machine with the
 * simulated workers on it too, processor time per call hardly depends on them.
 *
 *     npm run bench:coordinator -- [--workers 1000] [--steps 10] [--beat-seconds 5] [--detect-within 2]
 */
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { CoordinatorServiceService as Rpc } from '../../proto/gen/videoloom/v1/coordinator.ts';
import { call } from '../../proto/grpc.ts';
import type { TimeLedger } from '../../proto/gen/videoloom/v1/run.ts';
import { RUN_PLAN_FILE } from '../../proto/run-plan.ts';
import { ACTIVITIES, NO_TIME } from '../../proto/time-ledger.ts';
import { timeLimits } from '../../proto/time-limits.ts';
import { JOURNAL_FILE } from '../journal.ts';
import { startCoordinator } from '../test/coordinator-process.ts';
import { ScriptedWorker, testPlan } from '../test/scripted-worker.ts';

/** Joins under way at a time. */
const CONCURRENCY = 64;
/** `sysconf(_SC_CLK_TCK)`, 100 on every Linux of today. */
const TICKS_PER_SECOND = 100;
/** Statuses asked for, and scrapes, one after the other. */
const NUM_LOOKS = 20;

/** Processor time of a process so far. Source: proc_pid_stat(5), fields 14 and 15 */
async function processorSeconds(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

function report(metric: string, value: number, unit: string): void {
  const name = `coordinator with ${flags.workers} workers`;
  const rounded = Number(value.toPrecision(4));
  process.stdout.write(`${JSON.stringify({ name, metric, value: rounded, unit })}\n`);
}

const { values: flags } = parseArgs({
  options: {
    workers: { type: 'string', default: '1000' },
    steps: { type: 'string', default: '10' },
    'beat-seconds': { type: 'string', default: '5' },
    'detect-within': { type: 'string', default: '2' },
  },
});
const numWorkers = Number(flags.workers);
const numSteps = Number(flags.steps);
const plan = testPlan({
  detectWithinMs: 1000 * Number(flags['detect-within']),
  microbatches: 2 ** Math.ceil(Math.log2(numWorkers)),
  minWorkers: numWorkers,
  numTrainSamples: 1_000_000,
  totalSteps: numSteps + 2,
  checkpointEverySteps: numSteps + 1,
});
const { beatMs } = timeLimits(plan);
const folder = await mkdtemp(join(tmpdir(), 'videoloom-bench-'));
await writeFile(join(folder, RUN_PLAN_FILE), JSON.stringify(plan));
const coordinator = await startCoordinator(folder);
const pid = coordinator.child.pid!;
const workers: ScriptedWorker[] = [];
/** Each worker has waited for others all over the run, as those of a long one have. */
const RANKS_WAITED_FOR = 16;
const timeOf = (index: number): TimeLedger => ({
  ...NO_TIME,
  ...Object.fromEntries(ACTIVITIES.map((name, i) => [`${name}Seconds`, (index + i) / 3])),
  wallSeconds: ACTIVITIES.reduce((sum, _, i) => sum + (index + i) / 3, 0),
  waitByRankSeconds: Object.fromEntries(
    Array.from({ length: Math.min(RANKS_WAITED_FOR, numWorkers) }, (_, i) => [
      (61 * index + 7 * i) % numWorkers,
      (index + i) / 30,
    ]),
  ),
});

/** Runs `work`, tells rate and cost of its calls. */
async function measure(
  what: string,
  numCalls: number,
  work: () => Promise<unknown>,
): Promise<void> {
  const [start, used] = [performance.now(), await processorSeconds(pid)];
  await work();
  const seconds = (performance.now() - start) / 1000;
  const processor = (await processorSeconds(pid)) - used;
  report(`${what} rate`, numCalls / seconds, '1/s');
  report(`${what}, processor time each`, (1000 * processor) / numCalls, 'ms');
  report(`${what}, cores`, processor / seconds, 'cores');
}

try {
  await measure('join', numWorkers, async () => {
    let next = 0;
    const joinSome = async (): Promise<void> => {
      while (next < numWorkers) {
        const time = timeOf(next);
        const workerId = `w${next++}`;
        workers.push(await ScriptedWorker.join(coordinator.address, workerId, { beatMs, time }));
      }
    };
    await Promise.all(Array.from({ length: CONCURRENCY }, joinSome));
  });

  const start = performance.now();
  const generations = await Promise.all(
    workers.map((worker) =>
      worker.generation().catch(async (error: unknown) => {
        // On a machine that is too busy for them, the simulated workers are late with their beats.
        throw new Error(`${worker.workerId} was lost: ${String(await worker.ended)}`, {
          cause: error,
        });
      }),
    ),
  );
  report('last join to the generation at every worker', performance.now() - start, 'ms');
  const { number } = generations[0]!;

  const beatSeconds = Number(flags['beat-seconds']);
  const beats = (numWorkers * beatSeconds * 1000) / beatMs;
  await measure('heartbeat', beats, () => sleep(1000 * beatSeconds));

  for (let step = 1; step <= 2; step++) await leaseAndVote(step); // V8 has seen it
  await measure('lease', numWorkers * (numSteps - 2), async () => {
    for (let step = 3; step <= numSteps; step++) {
      await Promise.all(workers.map((worker) => worker.lease(number, step)));
    }
  });
  await measure('vote', numWorkers * (numSteps - 2), async () => {
    for (let step = 3; step <= numSteps; step++) {
      await Promise.all(workers.map((worker) => worker.vote(number, step)));
    }
  });

  const { channel } = workers[0]!;
  await measure('status', NUM_LOOKS, async () => {
    for (let i = 0; i < NUM_LOOKS; i++)
      await call(channel, Rpc.getStatus, {}, { timeoutMs: 60_000 });
  });
  let scraped = '';
  await measure('scrape', NUM_LOOKS, async () => {
    for (let i = 0; i < NUM_LOOKS; i++)
      scraped = await (await fetch(`http://${coordinator.metricsAddress}/metrics`)).text();
  });
  report('series of a scrape', scraped.split('\n').filter((line) => /^\w/.test(line)).length, '1');
  const journalBytes = async (): Promise<number> => (await stat(join(folder, JOURNAL_FILE))).size;
  const before = await journalBytes();
  await leaseAndVote(numSteps + 1);
  report('journal of a step with a checkpoint', (await journalBytes()) - before, 'bytes');

  async function leaseAndVote(step: number): Promise<void> {
    await Promise.all(workers.map((worker) => worker.lease(number, step)));
    await Promise.all(workers.map((worker) => worker.vote(number, step)));
  }
} finally {
  coordinator.child.kill('SIGKILL');
  await coordinator.exited;
  await Promise.allSettled(workers.map((worker) => worker.leave()));
  await rm(folder, { recursive: true, force: true });
}
