import { readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import type { ChildProcess } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import pc from 'picocolors';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream, dial, type Channel } from '../proto/grpc.ts';
import { EXIT_RESUMABLE } from '../proto/parent-process.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { checkReach } from '../proto/security.ts';
import { exitOf, firstJsonLine, ProcessFailed, start } from './processes.ts';
import { openRunView, summary, type Outcome, type RunView } from './view.ts';

export interface LocalOptions {
  /** Arguments of `worker/main.ts prepare`. */
  readonly prepareArgs: readonly string[];
  readonly metricsAddress: string;
  readonly listenAddress: string;
  /** Flags and environment of {@link openSecurity}, which the children get too. */
  readonly tls?: string | undefined;
  readonly insecure?: boolean | undefined;
  readonly env: NodeJS.ProcessEnv;
}

/** What the prepare step prints. */
interface Prepared {
  readonly folder: string;
  /** Stages of the recipe; each is a run. */
  readonly stages: readonly string[];
  readonly existed: boolean;
  readonly workers: number;
  readonly engine: string;
  readonly pluginPath: string;
}

interface CoordinatorAddresses {
  readonly address: string;
  readonly metricsAddress: string;
}

/** How often a process that died is started again before the run is given up. */
const MAX_RESTARTS = 3;
/** How long a run folder that is locked is waited for: a coordinator whose launcher was killed ends within it. */
const LOCK_PATIENCE_MS = 10_000;

/** Trains on this machine, stage after stage where the recipe has several. Started again it goes on where it was. */
export async function trainLocally(options: LocalOptions): Promise<number> {
  const { code, stages } = await trainStage(options);
  if (code !== 0) return code;
  for (const stage of stages.slice(1)) {
    const prepareArgs = [...options.prepareArgs, '--stage', stage];
    const own = await trainStage({ ...options, prepareArgs });
    if (own.code !== 0) return own.code;
  }
  return 0;
}

/** What a stage ended with, and the stages that its recipe has. */
interface StageEnd {
  readonly code: number;
  readonly stages: readonly string[];
}

/** Prepares the run folder of a stage, then a coordinator and workers as processes of their own. */
async function trainStage(options: LocalOptions): Promise<StageEnd> {
  // --- The run folder.
  const preparing = start(
    'worker',
    ['prepare', ...options.prepareArgs],
    ['ignore', 'pipe', 'inherit'],
  );
  let prepared: Prepared;
  try {
    prepared = await firstJsonLine<Prepared>(preparing, 'the preparation');
  } catch (error) {
    // It has said itself what went wrong.
    if (error instanceof ProcessFailed) return { code: error.exit.code ?? 1, stages: [] };
    throw error;
  }
  await exitOf(preparing);
  const { folder, stages } = prepared;
  const shown = relative(process.cwd(), folder) || folder;

  const finished = await readSummary(folder);
  if (finished !== undefined) {
    say(
      `${pc.green('✓')} ${shown} is complete: ${finished.step} steps.\n\n${summary(finished, { folder: shown })}`,
    );
    say(nextSteps(shown));
    return { code: 0, stages };
  }

  // --- Coordinator and workers.
  const security = await openSecurity({
    as: { role: 'operator' },
    ...{ tls: options.tls, insecure: options.insecure, env: options.env, runFolder: folder },
  });
  checkReach(security, options.listenAddress, 'the coordinator would listen on');
  const cluster = await startCluster(prepared, options);
  // The workers' own clocks run from here to the result that they report.
  const startMs = performance.now();
  if (prepared.existed) say(`resuming ${shown}`);
  say(
    `coordinator ${cluster.addresses.address}   metrics http://${cluster.addresses.metricsAddress}/metrics   logs ${shown}/logs`,
  );
  const channel = dial(cluster.addresses.address, { security, peer: { role: 'coordinator' } });
  const view = openRunView();
  const stopOnSignal = stopper(channel, view, cluster);
  process.on('SIGINT', stopOnSignal);
  process.on('SIGTERM', stopOnSignal);
  try {
    const last = await watch(channel, view, cluster);
    const wallSeconds = (performance.now() - startMs) / 1000;
    await cluster.end();
    view.end();
    return { code: conclude(last, shown, wallSeconds), stages };
  } finally {
    process.off('SIGINT', stopOnSignal);
    process.off('SIGTERM', stopOnSignal);
    channel.close();
    await cluster.end();
  }
}

function conclude(last: RunStatus, folder: string, wallSeconds: number): number {
  switch (last.phase) {
    case RunPhase.FINISHED:
      say(`\n${summary(last, { folder, wallSeconds })}\n${nextSteps(folder)}`);
      return 0;
    case RunPhase.FAILED:
      say(`${pc.red('the run failed')}: ${last.failure}\nlogs: ${folder}/logs`);
      return 1;
    default:
      say(
        `stopped after step ${last.committedStep} of ${last.totalSteps}; the same command resumes it`,
      );
      return EXIT_RESUMABLE;
  }
}

/** The processes of a run on this machine; one that dies is started again a few times. */
interface Cluster {
  readonly addresses: CoordinatorAddresses;
  /** Rejects when a process cannot be kept alive. */
  readonly broken: Promise<never>;
  /** Lets the processes leave, and kills those that take too long. */
  end(): Promise<void>;
  /** Kills them at once. */
  kill(): void;
}

async function startCluster(prepared: Prepared, options: LocalOptions): Promise<Cluster> {
  const { folder, workers, engine, pluginPath } = prepared;
  const running = new Set<ChildProcess>();
  let ending = false;
  const isEnding = (): boolean => ending;
  let breakWith: (error: Error) => void = () => undefined;
  const broken = new Promise<never>((_, reject) => {
    breakWith = reject;
  });
  broken.catch(() => undefined);

  const launch = (program: 'worker' | 'coordinator', args: string[]): ChildProcess => {
    const stdout = program === 'coordinator' ? 'pipe' : 'ignore';
    const child = start(program, args, ['ignore', stdout, 'pipe']);
    running.add(child);
    return child;
  };
  /** Starts a process anew whenever it dies, up to the limit. */
  const keep = async (
    name: string,
    child: ChildProcess,
    again: () => ChildProcess,
  ): Promise<void> => {
    for (let restarts = 0; ; restarts++) {
      const errors = lastLines(child);
      const { code, signal } = await exitOf(child);
      running.delete(child);
      if (isEnding() || code === 0) return;
      // A process that was killed is started again, and a worker whose error may not come back. A coordinator ends like
      // that only when it is asked to.
      const mayGoWell = signal !== null || (code === EXIT_RESUMABLE && child !== coordinator);
      if (!mayGoWell || restarts === MAX_RESTARTS) {
        const how =
          signal === null
            ? `ended with code ${code ?? '?'}`
            : `was killed by ${signal} again and again`;
        breakWith(
          new VideoloomError(
            'PROCESS_FAILED',
            `${name} ${how}: ${errors() || `see ${folder}/logs`}`,
          ),
        );
        return;
      }
      await delay(100 * 2 ** restarts);
      if (isEnding()) return;
      child = again();
    }
  };

  const securityArgs = [
    ...(options.tls === undefined ? [] : ['--tls', options.tls]),
    ...(options.insecure === true ? ['--insecure'] : []),
  ];
  const coordinatorArgs = (listen: string, metrics: string): string[] => [
    ...['--run', folder, '--listen', listen, '--metrics', metrics],
    ...['--log-file', join(folder, 'logs', 'coordinator.jsonl'), ...securityArgs],
  ];
  const startMs = performance.now();
  let coordinator: ChildProcess;
  let addresses: CoordinatorAddresses;
  for (let hasWaited = false; ; hasWaited = true) {
    coordinator = launch(
      'coordinator',
      coordinatorArgs(options.listenAddress, options.metricsAddress),
    );
    const errors = lastLines(coordinator);
    try {
      addresses = await firstJsonLine<CoordinatorAddresses>(coordinator, 'the coordinator');
      break;
    } catch (error) {
      if (!(error instanceof ProcessFailed)) throw error;
      running.delete(coordinator);
      const isLocked = errors().includes('RUN_LOCKED');
      if (!isLocked || performance.now() - startMs > LOCK_PATIENCE_MS)
        throw new VideoloomError('COORDINATOR_FAILED', errors() || error.message);
      if (!hasWaited) say(`another coordinator holds ${folder}: waiting for its end`);
      await delay(500);
    }
  }
  // A restarted coordinator takes the same ports, so that its workers find it.
  void keep('the coordinator', coordinator, () => {
    coordinator = launch(
      'coordinator',
      coordinatorArgs(addresses.address, addresses.metricsAddress),
    );
    coordinator.stdout?.resume();
    return coordinator;
  });
  for (let number = 0; number < workers; number++) {
    const id = `worker-${number}`;
    const worker = (): ChildProcess =>
      launch('worker', [
        ...['train', '--run', folder, '--coordinator', addresses.address, '--id', id],
        ...['--engine', engine, '--plugin', pluginPath, '--follow-coordinator', ...securityArgs],
      ]);
    void keep(id, worker(), worker);
  }
  return {
    addresses,
    broken,
    kill() {
      ending = true;
      for (const child of running) child.kill('SIGKILL');
    },
    async end() {
      if (ending) return;
      ending = true;
      // Who has not ended by itself, because another one failed, leaves now.
      for (const child of running) if (child.connected) child.disconnect();
      const graceMs = AbortSignal.timeout(10_000);
      await Promise.all(
        [...running].map(async (child) => {
          const exited = exitOf(child);
          const late = new Promise<void>((resolve) => {
            graceMs.addEventListener('abort', () => {
              child.kill('SIGKILL');
              resolve();
            });
          });
          await Promise.race([exited, late]);
        }),
      );
    },
  };
}

/** Draws the run until it is over; a coordinator that is being started again is waited for. */
async function watch(channel: Channel, view: RunView, cluster: Cluster): Promise<RunStatus> {
  let last: RunStatus | undefined;
  const follow = async (): Promise<RunStatus> => {
    for (let failures = 0; ; failures++) {
      try {
        for await (const { status } of callStream(
          channel,
          Rpc.watchStatus,
          {},
          { timeoutMs: Infinity },
        )) {
          if (status === undefined) continue;
          failures = 0;
          last = status;
          view.show(status);
        }
        if (last !== undefined && isOver(last)) return last;
      } catch (error) {
        if (failures > 100) throw error;
      }
      await delay(100);
    }
  };
  return Promise.race([follow(), cluster.broken]);
}

function isOver({ phase }: RunStatus): boolean {
  return phase === RunPhase.FINISHED || phase === RunPhase.FAILED || phase === RunPhase.STOPPED;
}

/** First signal: checkpoint and stop. Second: the processes are ended at once. */
function stopper(channel: Channel, view: RunView, cluster: Cluster): () => void {
  let asked = false;
  return () => {
    if (asked) {
      cluster.kill();
      process.exit(130);
    }
    asked = true;
    view.note('stopping after this step (again to stop at once)');
    call(channel, Rpc.stopRun, {}, { timeoutMs: 10_000 }).catch((error: unknown) => {
      view.note(`could not stop the run: ${messageOf(error)}`);
    });
  };
}

/** Keeps the last lines that a child writes to stderr. */
function lastLines(child: ChildProcess): () => string {
  let tail = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    tail = (tail + chunk.toString()).slice(-4000);
  });
  return () => tail.trim();
}

/** What a finished run left; undefined for one that has not finished. */
async function readSummary(folder: string): Promise<(Outcome & { step: number }) | undefined> {
  try {
    return JSON.parse(await readFile(join(folder, 'summary.json'), 'utf8')) as Outcome & {
      step: number;
    };
  } catch {
    return undefined;
  }
}

function nextSteps(folder: string): string {
  return [
    'next:',
    `  npx videoloom look ${folder}                      what the model sees and guesses, as a page`,
    '  npx videoloom train videobert --data DATA          your own videos and words, in any form, from anywhere',
    '  npx videoloom train --help                         presets, steps, workers, every field of the config',
  ].join('\n');
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
