import { mkdir, rm } from 'node:fs/promises';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { exitOf, type Exit } from '../processes.ts';
import { COORDINATOR, startCluster, type Cluster, type Prepared } from '../cluster.ts';
import { auditFolder } from '../reports/audit.ts';
import { findLeftovers, MARK, type Leftovers } from './leftovers.ts';
import { followJournal, type RunJournal } from './run-journal.ts';
import { openSilentProxy, type SilentProxy } from './silent-proxy.ts';

/** A run of a drill while it runs: what faults take hold of. */
export interface Running {
  readonly prepared: Prepared;
  readonly journal: RunJournal;
  cluster: Cluster;
  /** Between workers and coordinator, by worker; empty unless asked for. */
  readonly proxies: ReadonlyMap<string, SilentProxy>;
  /** When each process was last seen to end, by name, milliseconds since 1970. */
  readonly exits: Map<string, { readonly atMs: number; readonly exit: Exit }>;
  /** Kills all processes of the run and starts it again. */
  restart(): Promise<void>;
  /** Stopped processes, which are woken before the run ends. */
  readonly stopped: Set<number>;
}

/** What became of the samples. */
export interface LedgerOutcome {
  readonly isFaultless: boolean;
  readonly numSamples: number;
  readonly numLost: number;
  readonly numDoubled: number;
  readonly numSubstituted: number;
  /** Committed steps that were done again. */
  readonly numRedone: number;
  readonly problems: readonly string[];
}

/** How a run of a drill ended. */
export interface RunOutcome {
  /** Why it failed; undefined for a run that finished. */
  readonly failure: string | undefined;
  readonly weightsSha256: string;
  /** What `videoloom audit` says of it. */
  readonly ledger: LedgerOutcome;
  readonly leftovers: Leftovers;
  /** From the start of the processes to the end of the run. */
  readonly seconds: number;
  /** From the first committed step to the last. */
  readonly trainingSeconds: number;
}

export interface RunOptions {
  readonly env: NodeJS.ProcessEnv;
  readonly withProxies: boolean;
  /** Longest time for the whole run, seconds. */
  readonly limitSeconds: number;
  /** What is done to the run while it runs; ends early when the signal aborts, which it does with the run. */
  readonly disturb: (running: Running, signal: AbortSignal) => Promise<void>;
  /** The run is not waited for once it has been disturbed: it is killed then. */
  readonly endsAfter?: boolean;
}

/**
 * Runs a prepared run to its end as processes of their own, disturbs it, and looks at what is left.
 * @throws VideoloomError INTERRUPTED after SIGINT or SIGTERM: then all is ended first, what was stopped too
 */
export async function runDisturbed(prepared: Prepared, options: RunOptions): Promise<RunOutcome> {
  const mark = randomUUID();
  const temporary = join(prepared.folder, 'tmp');
  await mkdir(temporary, { recursive: true });
  const env = { ...options.env, [MARK]: mark, TMPDIR: temporary };
  const proxies = new Map<string, SilentProxy>();
  const exits: Running['exits'] = new Map();
  let listenAddress = '127.0.0.1:0';
  const start = (): Promise<Cluster> =>
    startCluster(prepared, {
      ...{ env, listenAddress, metricsAddress: '127.0.0.1:0', lingerSeconds: 0.2 },
      say: () => undefined,
      onExit: (name, exit) => exits.set(name, { atMs: Date.now(), exit }),
      addressFor: async (workerId, coordinator) => {
        if (!options.withProxies) return coordinator;
        const proxy = proxies.get(workerId) ?? (await openSilentProxy(coordinator));
        proxies.set(workerId, proxy);
        return proxy.address;
      },
    });
  const ending = new AbortController();
  let failure: string | undefined;
  const watched = (cluster: Cluster): Cluster => {
    cluster.broken.catch((error: unknown) => {
      failure ??= messageOf(error);
      ending.abort();
    });
    return cluster;
  };
  const startMs = performance.now();
  const running: Running = {
    prepared,
    proxies,
    exits,
    journal: followJournal(prepared.folder),
    cluster: watched(await start()),
    stopped: new Set(),
    async restart() {
      const children = [...running.cluster.processes().values()];
      running.cluster.kill();
      await Promise.all(children.map(exitOf));
      // Proxies and workers know this address.
      listenAddress = running.cluster.addresses.address;
      running.cluster = watched(await start());
    },
  };
  const { journal } = running;
  const interruption = new AbortController();
  const interrupt = (): void => {
    interruption.abort();
    ending.abort();
  };
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt);
  try {
    const disturbing = options.disturb(running, ending.signal);
    const isDone = disturbing.then(() => {
      if (options.endsAfter === true) ending.abort();
    });
    isDone.catch(() => undefined);
    const limitMs = 1000 * options.limitSeconds;
    const last = await journal.next(isEnd, { from: 0, limitMs, signal: ending.signal });
    if (last?.type === 'failed') failure = `${last.code ?? ''}: ${last.message ?? ''}`;
    else if (last === undefined && options.endsAfter !== true)
      failure ??= `the run did not end within ${options.limitSeconds} s`;
    ending.abort();
    await disturbing;
  } finally {
    ending.abort();
    for (const pid of running.stopped) signal(pid, 'SIGCONT');
    if (options.endsAfter === true || interruption.signal.aborted) running.cluster.kill();
    await running.cluster.end();
    for (const proxy of proxies.values()) proxy.close();
    process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
  }
  if (interruption.signal.aborted)
    throw new VideoloomError('INTERRUPTED', 'the run was ended before its time');
  journal.poll();
  const commits = journal.events.filter(({ type }) => type === 'commit');
  const folders = [prepared.folder];
  const leftovers = await findLeftovers(mark, { folders, temporary });
  await rm(temporary, { recursive: true, force: true });
  return {
    failure,
    weightsSha256: journal.events.findLast(isEnd)?.weightsSha256 ?? '',
    ledger: await ledgerOf(prepared.folder),
    leftovers,
    seconds: (performance.now() - startMs) / 1000,
    trainingSeconds: ((commits.at(-1)?.atMs ?? 0) - (commits[0]?.atMs ?? 0)) / 1000,
  };
}

async function ledgerOf(folder: string): Promise<LedgerOutcome> {
  const { audit } = await auditFolder(folder);
  const { samples } = audit;
  return {
    isFaultless: audit.isFaultless,
    numSamples: samples.numPlaces,
    numLost: samples.lost.length,
    numDoubled: samples.doubled.length,
    numSubstituted: samples.substitutes.length,
    numRedone: audit.numRedone,
    problems: audit.problems.map(({ code, message }) => `${code}: ${message}`),
  };
}

function isEnd({ type }: { readonly type: string }): boolean {
  return type === 'finished' || type === 'failed';
}

/** The live workers of a run, by name. */
export function workersOf({ cluster }: Running): [string, number][] {
  return [...cluster.processes()]
    .filter(([name, { pid }]) => name !== COORDINATOR && pid !== undefined)
    .map(([name, { pid }]): [string, number] => [name, pid!])
    .sort(([a], [b]) => (a < b ? -1 : 1));
}

/** Sends a signal; false when the process has ended. */
export function signal(pid: number, name: NodeJS.Signals): boolean {
  try {
    process.kill(pid, name);
    return true;
  } catch {
    return false;
  }
}
