import { COORDINATOR } from '../cluster.ts';
import { setTimeout as delay } from 'node:timers/promises';
import type { Injected } from './faults.ts';
import type { JournalEvent } from './run-journal.ts';
import type { Running } from './running.ts';

/** When a run noticed a fault and when it trained again, milliseconds after it; undefined for what was not seen. */
export interface FaultTimes {
  readonly kind: string;
  readonly detectedMs: number | undefined;
  readonly resumedMs: number | undefined;
}

/** What a fault did to a run. */
export interface FaultReport {
  readonly kind: string;
  readonly victim: string;
  /** Last committed step when it was injected. */
  readonly step: number;
  /** Until it was noticed and until the next step was committed, milliseconds; undefined: not within the limit. */
  readonly detectedMs: number | undefined;
  readonly resumedMs: number | undefined;
  /** Until all workers took part again; undefined where the run ended before, or nothing was missing. */
  readonly wholeMs: number | undefined;
  /** Steps that were committed before, or under way, and were computed again. */
  readonly stepsRedone: number;
  readonly reason: string;
}

export interface ObserveOptions {
  readonly limitMs: number;
  /** How long the others may take to go on before the fault is healed. */
  readonly patienceMs: number;
  /** Time between detection (or the limit) and the healing, milliseconds. */
  readonly healAfterMs: number;
  readonly signal: AbortSignal;
}

/** Waits until a run has noticed a fault and trains again, heals it, and waits until nothing is missing any more. */
export async function observe(
  injected: Injected,
  running: Running,
  { limitMs, patienceMs, healAfterMs, signal }: ObserveOptions,
): Promise<FaultReport> {
  const { journal } = running;
  const { from, atMs, generation, isDetection, isWhole } = injected;
  const wait = { limitMs, signal };
  const after = (event: JournalEvent | undefined): number =>
    event === undefined ? from : journal.events.indexOf(event) + 1;

  let detected: JournalEvent | undefined;
  let detectedMs: number | undefined;
  if (isDetection === undefined) detectedMs = await exitSeen(injected, running, wait);
  else {
    detected = await journal.next(isDetection, { from, ...wait });
    if (detected !== undefined) detectedMs = detected.atMs - atMs;
  }
  const isOther = injected.kind === 'full-disk';
  const isResumption = ({ type, generation: number = 0 }: JournalEvent): boolean =>
    type === 'commit' && (isOther || number > generation);
  const patience = { ...wait, limitMs: Math.min(limitMs, patienceMs) };
  let resumed = await journal.next(isResumption, { from: after(detected), ...patience });
  await delay(healAfterMs, undefined, { signal }).catch(() => undefined);
  await injected.heal();
  // Where all workers were hit there was nobody to go on.
  resumed ??= await journal.next(isResumption, { from: after(detected), ...wait });
  const begin = isOther ? journal.events.length : after(detected);
  const whole =
    isWhole === undefined ? undefined : await journal.next(isWhole, { from: begin, ...wait });
  return {
    kind: injected.kind,
    victim: injected.victim,
    step: injected.step,
    detectedMs,
    resumedMs: resumed === undefined ? undefined : resumed.atMs - atMs,
    wholeMs: whole === undefined ? undefined : Math.max(0, whole.atMs - atMs),
    stepsRedone: redoneSteps(journal.events, injected),
    reason: detected?.reason ?? '',
  };
}

/** The times of a fault, from what a journal tells afterwards. */
export function timesOf(injected: Injected, { journal, exits }: Running): FaultTimes {
  const { kind, from, atMs, generation, isDetection } = injected;
  const later = journal.events.slice(from);
  const detected = isDetection === undefined ? undefined : later.findIndex(isDetection);
  const seen = detected === undefined ? exits.get(COORDINATOR)?.atMs : later[detected]?.atMs;
  const resumed =
    detected === -1
      ? undefined
      : later
          .slice(detected ?? 0)
          .find(({ type, generation: number = 0 }) => type === 'commit' && number > generation);
  const since = (ms: number | undefined): number | undefined =>
    ms === undefined || ms < atMs ? undefined : ms - atMs;
  return { kind, detectedMs: since(seen), resumedMs: since(resumed?.atMs) };
}

async function exitSeen(
  { atMs, kind }: Injected,
  { exits }: Running,
  { limitMs, signal }: { limitMs: number; signal: AbortSignal },
): Promise<number | undefined> {
  if (kind === 'kill-all') return 0;
  const endMs = performance.now() + limitMs;
  while (performance.now() < endMs) {
    await delay(5);
    const seen = exits.get(COORDINATOR);
    if (seen !== undefined && seen.atMs >= atMs) return seen.atMs - atMs;
    if (signal.aborted) break;
  }
  return undefined;
}

/** Commits made again, and for each generation that opened in the middle of a step that step. */
function redoneSteps(events: readonly JournalEvent[], { from }: Injected): number {
  let highest = 0;
  let redone = 0;
  for (const [index, { type, step = 0 }] of events.entries()) {
    if (type === 'commit') {
      if (index >= from && step <= highest) redone++;
      highest = Math.max(highest, step);
    }
    // One that opens for a joiner follows a commit at once: nobody has begun the next step.
    const isInStep = type === 'generation' && events[index - 1]?.type !== 'commit';
    if (index >= from && isInStep && highest > 0) redone++;
  }
  return redone;
}
