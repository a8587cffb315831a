import { hostname } from 'node:os';
import { join } from 'node:path';
import type { ChildProcess } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import { isLoopback, parseAddress, reachedAt } from '../proto/address.ts';
import { VideoloomError } from '../proto/errors.ts';
import { EXIT_RESUMABLE } from '../proto/parent-process.ts';
import { LOCK_PATIENCE_MS, TELL_OF_LOCK_MS, waitsForLock } from '../proto/run-lock.ts';
import type { Host } from './hosts.ts';
import { keepAlive, lastLines, type LastDeath } from './keep-alive.ts';
import {
  exitOf,
  firstJsonLine,
  ProcessFailed,
  start,
  startElsewhere,
  type Exit,
} from './processes.ts';

/** What the prepare step prints. */
export interface Prepared {
  readonly folder: string;
  /** Stages of the recipe to train after this one; each is a run. */
  readonly furtherStages: readonly string[];
  readonly existed: boolean;
  readonly workers: number;
  readonly engine: string;
  readonly pluginPath: string;
}

export interface CoordinatorAddresses {
  readonly address: string;
  readonly metricsAddress: string;
  /** What it found damaged in the run folder. */
  readonly warnings: readonly string[];
}

/** Makes a run folder. @throws ProcessFailed after the process has said itself what went wrong */
export async function prepareRun(
  prepareArgs: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<Prepared> {
  const stdio = ['ignore', 'pipe', 'inherit'] as const;
  const preparing = start('worker', ['prepare', ...prepareArgs], stdio, env);
  const prepared = await firstJsonLine<Prepared>(preparing, 'the preparation');
  await exitOf(preparing);
  return prepared;
}

export interface ClusterOptions {
  readonly metricsAddress: string;
  readonly listenAddress: string;
  /** Flags of `openSecurity`, which the children get too. */
  readonly tls?: string | undefined;
  readonly insecure?: boolean | undefined;
  readonly env: NodeJS.ProcessEnv;
  /** Machines to start the workers on, by turns; none: here. */
  readonly hosts?: readonly Host[];
  /** Somebody else starts the workers. */
  readonly startsNoWorkers?: boolean;
  /** How long the coordinator answers after the end of the run, seconds. */
  readonly lingerSeconds?: number;
  /** Where a worker looks for the coordinator, when that is not its address. */
  readonly addressFor?: (workerId: string, coordinator: string) => Promise<string>;
  /** Told of each process that ends. */
  readonly onExit?: (name: string, exit: Exit) => void;
  readonly say: (text: string) => void;
}

/** The processes of a run that this one has started; one that dies is started again. */
export interface Cluster {
  readonly addresses: CoordinatorAddresses;
  /** Rejects when a process cannot be kept alive. */
  readonly broken: Promise<never>;
  /** The processes that live now, by name: `coordinator`, `worker-0` and so on. */
  processes(): ReadonlyMap<string, ChildProcess>;
  /** Starts one more worker, under the next free name, which it gives. */
  addWorker(): Promise<string>;
  /** Lets the processes leave, and kills those that take too long. */
  end(): Promise<void>;
  /** Kills them at once. */
  kill(): void;
}

/** A coordinator that is let go of ends within the time for which its lock is waited for. */
const COORDINATOR_END_MS = LOCK_PATIENCE_MS;
/** A worker whose coordinator has ended. */
const WORKER_END_MS = 10_000;
export const COORDINATOR = 'coordinator';
/** To the standard input of a worker on another machine. */
const LEAVE_AT_ONCE = 'leave\n';
/** A worker that could not be kept alive is tried again as often. */
const TRY_AGAIN_MS = 60_000;
/** Workers that end with the run end together: only of one that is alone in it is there something to tell. */
const TELL_OF_END_MS = 1000;
/** Code of the error of a cluster whose coordinator was asked to stop the run by somebody else. */
export const RUN_STOPPED = 'RUN_STOPPED';

/** Starts coordinator and workers of a prepared run. @throws VideoloomError COORDINATOR_FAILED */
export async function startCluster(prepared: Prepared, options: ClusterOptions): Promise<Cluster> {
  const { folder, workers, engine, pluginPath } = prepared;
  const { say, env, hosts = [], startsNoWorkers = false } = options;
  const running = new Map<string, ChildProcess>();
  const over = new AbortController();
  const isEnding = (): boolean => over.signal.aborted;
  let breakWith: (error: Error) => void = () => undefined;
  const broken = new Promise<never>((_, reject) => {
    breakWith = reject;
  });
  broken.catch(() => undefined);

  const startCoordinator = (args: readonly string[]): ChildProcess =>
    start('coordinator', args, ['ignore', 'pipe', 'pipe'], env);
  const launch = (name: string, start: () => ChildProcess): ChildProcess => {
    const child = start();
    running.set(name, child);
    return child;
  };
  const keep = (
    name: string,
    start: () => ChildProcess,
    mayGoWell: (exit: Exit) => boolean,
    first = launch(name, start),
  ): Promise<LastDeath | undefined> =>
    keepAlive(first, {
      again: () => launch(name, start),
      onExit: (child, exit) => {
        if (running.get(name) === child) running.delete(name);
        options.onExit?.(name, exit);
      },
      isOver: isEnding,
      mayGoWell,
    });
  const breakFor = (name: string, death: LastDeath): void => {
    breakWith(
      new VideoloomError(
        'PROCESS_FAILED',
        `${name} ${howIt(death)}: ${death.said || `see ${folder}/logs`}`,
      ),
    );
  };

  const securityArgs = [
    ...(options.tls === undefined ? [] : ['--tls', options.tls]),
    ...(options.insecure === true ? ['--insecure'] : []),
  ];
  // Who lets others read the coordinator's metrics means those of the workers too.
  const readsAreLocal = isLoopback(parseAddress(options.metricsAddress).host);
  const metricsArgs = readsAreLocal ? [] : ['--metrics', '0.0.0.0:0'];
  const { lingerSeconds } = options;
  const coordinatorArgs = (listen: string, metrics: string): string[] => [
    ...['--run', folder, '--listen', listen, '--metrics', metrics, '--follow-launcher'],
    ...['--log-file', join(folder, 'logs', 'coordinator.jsonl'), ...securityArgs],
    ...(lingerSeconds === undefined ? [] : ['--linger-seconds', String(lingerSeconds)]),
  ];
  const startMs = performance.now();
  let coordinator: ChildProcess;
  let addresses: CoordinatorAddresses;
  for (let isTold = false; ;) {
    const args = coordinatorArgs(options.listenAddress, options.metricsAddress);
    coordinator = launch(COORDINATOR, () => startCoordinator(args));
    const errors = lastLines(coordinator);
    try {
      addresses = await firstJsonLine<CoordinatorAddresses>(coordinator, 'the coordinator');
      break;
    } catch (error) {
      if (!(error instanceof ProcessFailed)) throw error;
      running.delete(COORDINATOR);
      const isLocked = errors().includes('RUN_LOCKED');
      const waitedMs = performance.now() - startMs;
      if (!isLocked || waitedMs > LOCK_PATIENCE_MS)
        throw new VideoloomError('COORDINATOR_FAILED', errors() || error.message);
      if (!isTold && waitedMs > TELL_OF_LOCK_MS) {
        isTold = true;
        say(waitsForLock(folder));
      }
      await delay(500);
    }
  }
  // A restarted coordinator takes the same ports, so that its workers find it.
  const restarted = (): ChildProcess => {
    const args = coordinatorArgs(addresses.address, addresses.metricsAddress);
    const again = startCoordinator([...args, '--started-again']);
    // Where it ends before it has said anything, whoever keeps it alive tells why.
    firstJsonLine<CoordinatorAddresses>(again, 'the coordinator').then(
      ({ warnings }) => {
        for (const warning of warnings) say(warning);
      },
      () => undefined,
    );
    return again;
  };
  void keep(COORDINATOR, restarted, ({ signal }) => signal !== null, coordinator).then((death) => {
    if (death === undefined) return;
    // A SIGTERM reached it: it has stopped the run, and perhaps nobody has seen it say so.
    if (death.code === EXIT_RESUMABLE)
      breakWith(new VideoloomError(RUN_STOPPED, 'the coordinator was asked to end the run'));
    else breakFor(COORDINATOR, death);
  });
  // Where all addresses are meant, none is named under which workers could be reached: they stay on the loopback.
  if (!startsNoWorkers && hosts.length === 0 && /^(0\.0\.0\.0|\[::\]):/.test(addresses.address))
    say(
      `with --listen ${addresses.address} the workers of this command train with none of other machines: name one of ` +
        'its addresses for that',
    );
  let numWorkers = 0;
  const addWorker = async (): Promise<string> => {
    const number = numWorkers++;
    const id = `worker-${number}`;
    const address = (await options.addressFor?.(id, addresses.address)) ?? addresses.address;
    const host = hosts[number % hosts.length];
    const args = (coordinatorAddress: string): string[] => [
      ...['--run', folder, '--coordinator', coordinatorAddress, '--id', id],
      ...['--engine', engine, '--plugin', pluginPath, ...securityArgs],
    ];
    if (host === undefined) {
      const here = ['train', ...args(address), '--follow-coordinator'];
      const startHere = (): ChildProcess =>
        start('worker', here, ['ignore', 'ignore', 'pipe'], env);
      void keepWorker(id, { name: id, start: startHere, mayGoWell });
    } else {
      const there = ['worker', ...args(reachedAt(address, hostname())), ...metricsArgs];
      void keepWorker(id, {
        name: `${id} on ${host.name}`,
        start: () => startElsewhere(host, [...there, '--follow-stdin'], env),
        // srun and shells add the signal to 128, and ssh says 255 where there is no connection.
        mayGoWell: (exit) => mayGoWell(exit) || (exit.code ?? 0) > 128,
      });
    }
    return id;
  };
  /** A machine may be gone for good or for a while: the others train on, as long as there are any. */
  const kept = new Set<string>();
  const keepWorker = async (
    id: string,
    worker: { name: string; start: () => ChildProcess; mayGoWell: (exit: Exit) => boolean },
  ): Promise<void> => {
    const { name } = worker;
    for (;;) {
      kept.add(id);
      const death = await keep(id, worker.start, worker.mayGoWell);
      if (death === undefined) return;
      kept.delete(id);
      if (kept.size === 0) {
        breakFor(name, death);
        return;
      }
      await pause(TELL_OF_END_MS);
      if (isEnding()) return;
      const why = death.said.split('\n').at(-1) || `see ${folder}/logs`;
      say(`${name} ${howIt(death)}, the others go on: ${why}; it is tried again every minute`);
      await pause(TRY_AGAIN_MS);
      if (isEnding()) return;
    }
  };
  const pause = async (ms: number): Promise<void> => {
    await delay(ms, undefined, { signal: over.signal }).catch(() => undefined);
  };
  if (!startsNoWorkers) for (let number = 0; number < workers; number++) await addWorker();
  return {
    addresses,
    broken,
    processes: () => running,
    addWorker,
    kill() {
      over.abort();
      for (const child of running.values()) {
        // A kill here would end the way there alone.
        if (child.stdin === null) child.kill('SIGKILL');
        else child.stdin.end(LEAVE_AT_ONCE);
      }
    },
    async end() {
      if (isEnding()) return;
      over.abort();
      // Who has not ended by itself, because another one failed, leaves now.
      for (const child of running.values()) {
        if (child.connected) child.disconnect();
      }
      const last = running.get(COORDINATOR);
      if (last !== undefined) await endWithin(last, COORDINATOR_END_MS);
      // One that was still starting when the run ended has never been a member: nobody tells it of the end.
      await Promise.all(
        [...running.values()].map((child) => {
          if (child.stdin === null) child.kill('SIGTERM');
          else child.stdin.end(LEAVE_AT_ONCE);
          return endWithin(child, WORKER_END_MS);
        }),
      );
    },
  };
}

/** Waits for the end of a process; kills it after that time and waits no longer. */
async function endWithin(child: ChildProcess, limitMs: number): Promise<void> {
  const late = new AbortController();
  const { signal } = late;
  const isLate = delay(limitMs, true, { signal }).catch(() => false);
  if ((await Promise.race([exitOf(child), isLate])) === true) child.kill('SIGKILL');
  late.abort();
}

/** Whether a worker was killed, or its error may not come back. */
function mayGoWell({ code, signal }: Exit): boolean {
  return signal !== null || code === EXIT_RESUMABLE;
}

function howIt({ code, signal }: Exit): string {
  return signal === null
    ? `ended with code ${code ?? '?'}`
    : `was killed by ${signal} again and again`;
}
