import assert from 'node:assert/strict';
import type { Rng } from '../../proto/random.ts';
import { COORDINATOR } from '../cluster.ts';
import { exitOf } from '../processes.ts';
import { fillDisk, freeDisk } from './disk.ts';
import type { JournalEvent } from './run-journal.ts';
import { signal, workersOf, type Running } from './running.ts';

/** What is done to a run while it trains. */
export const FAULT_KINDS = [
  'kill-worker',
  'pause-worker',
  'kill-coordinator',
  'join',
  'preempt',
  'full-disk',
  'drop-network',
  'kill-all',
] as const;

export type FaultKind = (typeof FAULT_KINDS)[number];

/** A fault that has been injected. */
export interface Injected {
  readonly kind: FaultKind;
  /** Process that it hit, or the worker that joined. */
  readonly victim: string;
  /** Milliseconds since 1970. */
  readonly atMs: number;
  /** Committed step, generation and number of journal events at that moment. */
  readonly step: number;
  readonly generation: number;
  readonly from: number;
  /** By which event the run shows that it has noticed; undefined: by the launcher, which sees the process end. */
  readonly isDetection?: (event: JournalEvent) => boolean;
  /** The run has all that it had before the fault; undefined where that is so once it trains. */
  readonly isWhole?: (event: JournalEvent) => boolean;
  /** Takes the fault back where it does not pass by itself. */
  readonly heal: () => Promise<void>;
}

export interface FaultOptions {
  /** Between the SIGTERM of a preemption and the SIGKILL, milliseconds. */
  readonly graceMs: number;
  /** Draws the victim. */
  readonly rng: Rng;
}

/**
 * Injects a fault now. Undefined where there is nobody to hit at this moment.
 *
 * - `kill-worker`, `kill-coordinator`, `kill-all`: SIGKILL; the last hits every process and starts the run again.
 * - `pause-worker`: SIGSTOP until it is healed by SIGCONT.
 * - `join`: one more worker.
 * - `preempt`: SIGTERM to a worker, SIGKILL after the grace.
 * - `full-disk`: no worker can write to its files any more, its log included.
 * - `drop-network`: between a worker and the coordinator nothing arrives, and no connection is closed.
 */
export async function inject(
  kind: FaultKind,
  running: Running,
  { rng, graceMs }: FaultOptions,
): Promise<Injected | undefined> {
  const { journal, cluster } = running;
  journal.poll();
  const members = journal.members();
  const workers = workersOf(running).filter(([, pid]) => !running.stopped.has(pid));
  const present = workers.filter(([name]) => members.includes(name));
  // Among members if there are any: what hits one that is still starting shows nothing.
  const candidates = present.length > 0 ? present : workers;
  const picked = candidates[rng.integer(Math.max(1, candidates.length))];
  const at = (victim: string) => ({
    ...{ kind, victim, atMs: Date.now(), heal: () => Promise.resolve() },
    step: journal.committedStep(),
    generation: journal.events.findLast(({ type }) => type === 'generation')?.generation ?? 0,
    from: journal.events.length,
  });
  const isLoss =
    (victim: string) =>
    ({ type, workerId }: JournalEvent): boolean =>
      // One that is told to go leaves in order, if it is given the time.
      (type === 'worker-lost' || type === 'worker-left') && workerId === victim;
  const isMember =
    (victim: string) =>
    ({ type, members: all = [] }: JournalEvent): boolean =>
      type === 'generation' && all.some(({ workerId }) => workerId === victim);

  switch (kind) {
    case 'kill-coordinator': {
      const child = cluster.processes().get(COORDINATOR);
      if (child?.pid === undefined) return undefined;
      const injected = at(COORDINATOR);
      signal(child.pid, 'SIGKILL');
      return injected;
    }
    case 'kill-all': {
      const injected = at('all processes');
      await running.restart();
      return injected;
    }
    case 'join': {
      const injected = at('');
      const victim = await cluster.addWorker();
      const isDetection = ({ type, workerId }: JournalEvent): boolean =>
        type === 'worker-joined' && workerId === victim;
      return { ...injected, victim, isDetection, isWhole: isMember(victim) };
    }
    case 'full-disk': {
      if (workers.length === 0) return undefined;
      const injected = at('all workers');
      await Promise.allSettled(workers.map(([, pid]) => fillDisk(pid, 0)));
      return {
        ...injected,
        isDetection: ({ type }) => type === 'checkpoint-failed',
        isWhole: ({ type }) => type === 'checkpoint',
        async heal() {
          await Promise.allSettled(workers.map(([, pid]) => freeDisk(pid)));
        },
      };
    }
    default:
  }
  if (picked === undefined) return undefined;
  const [victim, pid] = picked;
  const injected = { ...at(victim), isDetection: isLoss(victim), isWhole: isMember(victim) };
  switch (kind) {
    case 'kill-worker':
      return signal(pid, 'SIGKILL') ? injected : undefined;
    case 'preempt': {
      const child = cluster.processes().get(victim)!;
      if (!signal(pid, 'SIGTERM')) return undefined;
      const late = setTimeout(() => child.kill('SIGKILL'), graceMs);
      void exitOf(child).then(() => {
        clearTimeout(late);
      });
      return injected;
    }
    case 'pause-worker':
      if (!signal(pid, 'SIGSTOP')) return undefined;
      running.stopped.add(pid);
      return {
        ...injected,
        heal: () => {
          running.stopped.delete(pid);
          signal(pid, 'SIGCONT');
          return Promise.resolve();
        },
      };
    case 'drop-network': {
      const proxy = running.proxies.get(victim);
      assert(proxy !== undefined, `${victim} is connected without a proxy`);
      proxy.fallSilent();
      return {
        ...injected,
        heal: () => {
          proxy.speak();
          return Promise.resolve();
        },
      };
    }
  }
}
