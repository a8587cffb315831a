import { join } from 'node:path';
import type { ChildProcess } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import { VideoloomError } from '../proto/errors.ts';
import { EXIT_RESUMABLE, GRACE_SECONDS } from '../proto/parent-process.ts';
import { exitOf, firstJsonLine, ProcessFailed, start, type Exit } from './processes.ts';

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
  /** How long the coordinator answers after the end of the run, seconds. */
  readonly lingerSeconds?: number;
  /** Where a worker looks for the coordinator, when that is not its address. */
  readonly addressFor?: (workerId: string, coordinator: string) => Promise<string>;
  /** Told of each process that ends. */
  readonly onExit?: (name: string, exit: Exit) => void;
  readonly say: (text: string) => void;
}

/** The processes of a run on this machine; one that dies is started again. */
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

/** How often a process is started anew: one that dies soon after its start, and any within an hour. */
const MAX_RESTARTS = { soon: 3, anHour: 20 } as const;
/** Who has lived so long has not died of its start. */
const LONG_LIFE_MS = 10_000;
const HOUR_MS = 3_600_000;
const FIRST_RESTART_MS = 20;
/** How long a run folder that is locked is waited for: a coordinator whose launcher was killed ends within it. */
const LOCK_PATIENCE_MS = 1000 * (GRACE_SECONDS + 15);
/** Who waits for longer is told what for. */
const TELL_OF_LOCK_MS = 2000;
export const COORDINATOR = 'coordinator';
/** Code of the error of a cluster whose coordinator was asked to stop the run by somebody else. */
export const RUN_STOPPED = 'RUN_STOPPED';

/** Starts coordinator and workers of a prepared run. @throws VideoloomError COORDINATOR_FAILED */
export async function startCluster(prepared: Prepared, options: ClusterOptions): Promise<Cluster> {
  const { folder, workers, engine, pluginPath } = prepared;
  const { say } = options;
  const running = new Map<string, ChildProcess>();
  let ending = false;
  const isEnding = (): boolean => ending;
  let breakWith: (error: Error) => void = () => undefined;
  const broken = new Promise<never>((_, reject) => {
    breakWith = reject;
  });
  broken.catch(() => undefined);

  const launch = (name: string, program: 'worker' | 'coordinator', args: string[]) => {
    const stdout = program === 'coordinator' ? 'pipe' : 'ignore';
    const child = start(program, args, ['ignore', stdout, 'pipe'], options.env);
    running.set(name, child);
    return child;
  };
  const ended = async (name: string, child: ChildProcess): Promise<Exit> => {
    const exit = await exitOf(child);
    if (running.get(name) === child) running.delete(name);
    options.onExit?.(name, exit);
    return exit;
  };
  /** Starts a process anew whenever it dies, up to the limit. */
  const keep = async (
    name: string,
    child: ChildProcess,
    again: () => ChildProcess,
  ): Promise<void> => {
    const deaths: number[] = [];
    for (let restarts = 0; ; restarts++) {
      const bornMs = performance.now();
      const errors = lastLines(child);
      const { code, signal } = await ended(name, child);
      if (isEnding() || code === 0) return;
      if (code === EXIT_RESUMABLE && name === COORDINATOR) {
        // A SIGTERM reached it: it has stopped the run, and perhaps nobody has seen it say so.
        breakWith(new VideoloomError(RUN_STOPPED, 'the coordinator was asked to end the run'));
        return;
      }
      const nowMs = performance.now();
      if (nowMs - bornMs > LONG_LIFE_MS) restarts = 0;
      deaths.push(nowMs);
      const isTooOften = (deaths.at(-1 - MAX_RESTARTS.anHour) ?? -Infinity) > nowMs - HOUR_MS;
      // A process that was killed is started again, and a worker whose error may not come back.
      const mayGoWell = signal !== null || code === EXIT_RESUMABLE;
      if (!mayGoWell || isTooOften || restarts === MAX_RESTARTS.soon) {
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
      await delay(FIRST_RESTART_MS * 4 ** restarts);
      if (isEnding()) return;
      child = again();
    }
  };

  const securityArgs = [
    ...(options.tls === undefined ? [] : ['--tls', options.tls]),
    ...(options.insecure === true ? ['--insecure'] : []),
  ];
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
    coordinator = launch(COORDINATOR, 'coordinator', args);
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
        say(
          `another coordinator holds ${folder}, perhaps of a launcher that is gone: waiting up to ` +
            `${LOCK_PATIENCE_MS / 1000} s for the end of its step`,
        );
      }
      await delay(500);
    }
  }
  // A restarted coordinator takes the same ports, so that its workers find it.
  void keep(COORDINATOR, coordinator, () => {
    const args = coordinatorArgs(addresses.address, addresses.metricsAddress);
    const again = launch(COORDINATOR, 'coordinator', args);
    again.stdout?.resume();
    return again;
  });
  // Where all addresses are meant, none is named under which workers could be reached: they stay on the loopback.
  if (/^(0\.0\.0\.0|\[::\]):/.test(addresses.address))
    say(
      `with --listen ${addresses.address} the workers of this command train with none of other machines: name one of ` +
        'its addresses for that',
    );
  let numWorkers = 0;
  const addWorker = async (): Promise<string> => {
    const id = `worker-${numWorkers++}`;
    const address = (await options.addressFor?.(id, addresses.address)) ?? addresses.address;
    const worker = (): ChildProcess =>
      launch(id, 'worker', [
        ...['train', '--run', folder, '--coordinator', address, '--id', id],
        ...['--engine', engine, '--plugin', pluginPath, '--follow-coordinator', ...securityArgs],
      ]);
    void keep(id, worker(), worker);
    return id;
  };
  for (let number = 0; number < workers; number++) await addWorker();
  return {
    addresses,
    broken,
    processes: () => running,
    addWorker,
    kill() {
      ending = true;
      for (const child of running.values()) child.kill('SIGKILL');
    },
    async end() {
      if (ending) return;
      ending = true;
      // Who has not ended by itself, because another one failed, leaves now.
      for (const child of running.values()) if (child.connected) child.disconnect();
      // One that was still starting when the run ended has never been a member: nobody tells it of the end.
      const stopSpares = (): void => {
        for (const [name, child] of running) if (name !== COORDINATOR) child.kill('SIGTERM');
      };
      const last = running.get(COORDINATOR);
      if (last === undefined) stopSpares();
      else void exitOf(last).then(stopSpares);
      const graceMs = AbortSignal.timeout(10_000);
      await Promise.all(
        [...running.values()].map(async (child) => {
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

/** Keeps the last lines that a child writes to stderr. */
function lastLines(child: ChildProcess): () => string {
  let tail = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    tail = (tail + chunk.toString()).slice(-4000);
  });
  return () => tail.trim();
}
