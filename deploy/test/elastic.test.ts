import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cp, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { compiled } from '../../proto/compiled.mjs';
import { CoordinatorServiceService as Rpc } from '../../proto/gen/videoloom/v1/coordinator.ts';
import type { RunStatus, TimeLedger } from '../../proto/gen/videoloom/v1/run.ts';
import { call, dial } from '../../proto/grpc.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { ACTIVITIES, secondsOf, waitsByRank } from '../../proto/time-ledger.ts';
import { exitOf, firstJsonLine, start, type Exit } from '../processes.ts';

/**
 * Workers come and go while a run trains: one joins, one is killed, one leaves because it is told to, one is stopped
 * and goes on. What the steps give must not change by it.
 */
const WORKER_MAIN = compiled(new URL('../../worker/main.ts', import.meta.url));
const FIELDS = [
  // Never reached: the test ends the run when it has done all it wanted.
  ...['train.steps=100000', 'train.microbatches=4', 'train.microbatchSize=2'],
  // A machine that is busy with other tests starves a process for a second or two.
  'cluster.detectWithin=5',
  ...['checkpoint.everySteps=10', 'cluster.workers=2', 'data.demoTrainClips=6'],
  ...['data.demoHeldOutClips=2', 'data.frameDiskGibibytes=0'],
];
const LIMIT_MS = 240_000;
const work = await temporaryFolder('work');
const children: ReturnType<typeof start>[] = [];

before(() => {
  const set = FIELDS.flatMap((field) => ['--set', field]);
  const prepare = ['prepare', 'videobert', '--preset', 'tiny', '--out', 'prepared', ...set];
  execFileSync(process.execPath, [WORKER_MAIN, ...prepare], {
    cwd: work,
    stdio: ['ignore', 'ignore', 'inherit'],
  });
});

after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await Promise.all(children.map(exitOf));
});

type JournalRecord = Record<string, unknown> & { readonly type: string; readonly time: string };

/** Coordinator and workers of one run, each a process. */
class Cluster {
  readonly run: string;
  readonly #address: string;
  readonly #coordinator: ReturnType<typeof start>;
  readonly #workers = new Map<string, ReturnType<typeof start>>();
  readonly #startedMs = new Map<string, number>();
  /** Lifetimes of the workers that have ended, summed, seconds. */
  lifeSeconds = 0;

  private constructor(run: string, address: string, coordinator: ReturnType<typeof start>) {
    this.run = run;
    this.#address = address;
    this.#coordinator = coordinator;
  }

  static async open(name: string): Promise<Cluster> {
    const run = join(work, name);
    await cp(join(work, 'prepared'), run, { recursive: true });
    const coordinator = start('coordinator', ['--run', run], ['ignore', 'pipe', 'ignore']);
    children.push(coordinator);
    const { address } = await firstJsonLine<{ address: string }>(coordinator, 'the coordinator');
    return new Cluster(run, address, coordinator);
  }

  /** Starts a worker; with `isHeld`, it is stopped before it has joined. */
  async start(id: string, { isHeld = false } = {}): Promise<void> {
    const args = ['train', '--run', this.run, '--coordinator', this.#address, '--id', id];
    const child = start('worker', args, ['ignore', 'ignore', 'inherit']);
    children.push(child);
    this.#workers.set(id, child);
    this.#startedMs.set(id, performance.now());
    void exitOf(child).then(() => {
      this.lifeSeconds += (performance.now() - this.#startedMs.get(id)!) / 1000;
    });
    if (!isHeld) return;
    const log = join(this.run, 'logs', `${id}.jsonl`);
    await until(`${id} is up`, async () =>
      (await readFile(log, 'utf8').catch(() => '')).includes('worker is up'),
    );
    child.kill('SIGSTOP');
  }

  signal(id: string, signal: NodeJS.Signals): void {
    this.#workers.get(id)!.kill(signal);
  }

  exit(id: string): Promise<Exit> {
    return exitOf(this.#workers.get(id)!);
  }

  async journal(): Promise<JournalRecord[]> {
    const text = await readFile(join(this.run, 'journal.jsonl'), 'utf8').catch(() => '');
    const lines = text.split('\n').slice(0, -1);
    return lines.map((line) => JSON.parse(line) as JournalRecord);
  }

  /** The step that the last commit is of. */
  async step(): Promise<number> {
    const commits = (await this.journal()).filter(({ type }) => type === 'commit');
    return Number(commits.at(-1)?.['step'] ?? 0);
  }

  /** Waits until exactly these workers have committed some more steps together. */
  async trainsWith(...ids: string[]): Promise<void> {
    let from = Infinity;
    await until(`${ids.join(' and ')} train`, async () => {
      const last = (await this.journal()).findLast(({ type }) => type === 'generation');
      const members = ((last?.['members'] ?? []) as { workerId: string }[]).map((m) => m.workerId);
      if (members.sort().join() !== [...ids].sort().join()) from = Infinity;
      else from = Math.min(from, await this.step());
      return (await this.step()) >= from + 2;
    });
  }

  async status(): Promise<RunStatus> {
    const channel = dial(this.#address);
    try {
      return (await call(channel, Rpc.getStatus, {}, { timeoutMs: 20_000 })).status!;
    } finally {
      channel.close();
    }
  }

  /** Ends the run after the step in progress. */
  async stop(): Promise<void> {
    this.#coordinator.kill('SIGTERM');
    assert.equal((await exitOf(this.#coordinator)).code, 75);
  }
}

async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const endMs = performance.now() + LIMIT_MS;
  while (!(await isSo())) {
    assert.ok(performance.now() < endMs, `not within ${LIMIT_MS} ms: ${what}`);
    await delay(50);
  }
}

/** What each step gave, by step; a step that was committed again has to give the same. */
function resultsOf(journal: readonly JournalRecord[]): Map<number, string> {
  const results = new Map<number, string>();
  for (const { type, step, objectives, gradientNorm } of journal) {
    if (type !== 'commit') continue;
    const result = JSON.stringify([objectives, gradientNorm]);
    assert.equal(results.get(Number(step)) ?? result, result, `step ${Number(step)} again`);
    results.set(Number(step), result);
  }
  return results;
}

test('workers join, are killed, leave and are stopped; every step gives what it gives to one worker', async () => {
  const cluster = await Cluster.open('elastic');
  const startMs = performance.now();
  await Promise.all([
    ...[cluster.start('a'), cluster.start('b')],
    ...[cluster.start('c', { isHeld: true }), cluster.start('d', { isHeld: true })],
  ]);
  await cluster.trainsWith('a', 'b');

  // --- One joins: it takes the state from a peer.
  cluster.signal('c', 'SIGCONT');
  await cluster.trainsWith('a', 'b', 'c');
  const log = await readFile(join(cluster.run, 'logs', 'c.jsonl'), 'utf8');
  assert.match(log, /took the state from a peer/);
  assert.doesNotMatch(log, /restoring from the checkpoint/);

  // --- One is killed: its connections end with it.
  const killedMs = Date.now();
  cluster.signal('a', 'SIGKILL');
  await cluster.trainsWith('b', 'c');
  const lost = (await cluster.journal()).findLast(({ type }) => type === 'worker-lost');
  assert.deepEqual([lost?.['workerId'], lost?.['reason']], ['a', 'disconnected']);
  console.log(`kill -9 journalled after ${Date.parse(lost!.time) - killedMs} ms`);

  // --- One is told to go, as before a preemption: it ends its step, and is not lost.
  cluster.signal('b', 'SIGTERM');
  assert.deepEqual(await cluster.exit('b'), { code: 75, signal: null });
  await cluster.trainsWith('c');
  const left = (await cluster.journal()).filter(({ type }) => type === 'worker-left');
  assert.deepEqual(
    left.map(({ workerId }) => workerId),
    ['b'],
  );

  // --- One is stopped: it is found by its silence, and joins again when it goes on.
  cluster.signal('d', 'SIGCONT');
  await cluster.trainsWith('c', 'd');
  const stoppedMs = Date.now();
  cluster.signal('c', 'SIGSTOP');
  await cluster.trainsWith('d');
  const silent = (await cluster.journal()).findLast(({ type }) => type === 'worker-lost');
  assert.deepEqual([silent?.['workerId'], silent?.['reason']], ['c', 'heartbeat']);
  console.log(`SIGSTOP journalled after ${Date.parse(silent!.time) - stoppedMs} ms`);
  cluster.signal('c', 'SIGCONT');
  await cluster.trainsWith('c', 'd');

  // --- Where the time went.
  // c and d have lived all the time, a and b until they ended. Beats tell of it once a second, and c, which has just
  // come back, has yet to beat.
  let time: TimeLedger;
  let [sum, lived] = [0, 0];
  await until('every second that a worker lived is in the ledger', async () => {
    time = (await cluster.status()).time!;
    sum = ACTIVITIES.reduce((total, name) => total + secondsOf(time, name), 0);
    assert.ok(Math.abs(sum - time.wallSeconds) <= 0.01 * time.wallSeconds, `${sum} s`);
    lived = (2 * (performance.now() - startMs)) / 1000 + cluster.lifeSeconds;
    return Math.abs(sum - lived) <= 0.01 * lived + 2;
  });
  console.log(`of ${lived.toFixed(1)} s that workers lived, ${sum.toFixed(1)} s are in the ledger`);
  assert.ok(time!.redoSeconds > 0, 'a step was given up');
  assert.ok(waitsByRank(time!).some(([, seconds]) => seconds > 0));
  await cluster.stop();
  await Promise.all(['c', 'd'].map((id) => cluster.exit(id)));

  // --- The same steps of one worker that nobody disturbs.
  const alone = await Cluster.open('alone');
  const last = await cluster.step();
  await Promise.all([alone.start('x'), alone.start('y')]);
  await until(`step ${last} of the undisturbed run`, async () => (await alone.step()) >= last);
  await alone.stop();
  const [disturbed, undisturbed] = [await cluster.journal(), await alone.journal()].map(resultsOf);
  assert.ok(last > 10);
  for (let step = 1; step <= last; step++)
    assert.equal(disturbed!.get(step), undisturbed!.get(step), `step ${step} of ${last}`);
});
