/**
 * How long a worker that goes on beating may stand still in a phase before it counts as stuck: learned from how long
 * that phase went without a sign of progress so far in this run.
 */

import type { TimeLimits } from '../proto/time-limits.ts';

/** How long one phase stood still between two signs of progress. */
export interface Gaps {
  readonly count: number;
  /** The longest, milliseconds; forgotten slowly. */
  readonly highMs: number;
}

/** Gaps by phase. */
export type GapsByPhase = Readonly<Record<string, Gaps>>;

/** What a worker's beats told. */
export interface Vitals {
  readonly phase: string;
  readonly progress: number;
  /** How long it had stood still at its last beat, milliseconds. */
  readonly stillMs: number;
  readonly cpuMs: number;
  /** Processor time at the last sign of progress. */
  readonly cpuAtProgressMs: number;
  /** Of this worker alone. */
  readonly gaps: GapsByPhase;
}

/** What one beat tells. */
export type Beat = Pick<Vitals, 'phase' | 'progress' | 'stillMs' | 'cpuMs'>;

/** Of a worker that has not beaten yet. */
export const NEWBORN: Vitals = {
  ...{ phase: 'joining', progress: 0, stillMs: 0, cpuMs: 0, cpuAtProgressMs: 0 },
  gaps: {},
};

/** In these a worker waits for others: it is never the one that is stuck. */
const WAITING: ReadonlySet<string> = new Set(['wait', 'reduce', 'idle', 'joining']);
/** These repeat alike from step to step, so what was learned of them holds; others are as long as what they do. */
const STEADY: ReadonlySet<string> = new Set(['fetch', 'decode', 'compute']);
/** Bounded by itself: a clip that takes too long is given up. */
const DECODING: ReadonlySet<string> = new Set(['fetch', 'decode']);

/** So many gaps of a worker's own make a phase known: the first steps compile. */
const KNOWN_AFTER = 3;
/** How much longer than ever before a phase may stand still. */
const MARGIN = 10;
/** Each gap forgets so much of the longest. */
const FORGETTING = 0.999;
/** A process that takes this share of a core works at something, a compilation maybe. */
const BUSY_SHARE = 0.25;

/** Whether a worker in this phase waits for others. */
export function isWaiting(phase: string): boolean {
  return WAITING.has(phase);
}

/** `vitals` after a beat, and the gap that ended with it, if one did. */
export function afterBeat(
  vitals: Vitals,
  beat: Beat,
): {
  readonly vitals: Vitals;
  readonly ended?: { readonly phase: string; readonly gapMs: number };
} {
  const hasMoved = beat.phase !== vitals.phase || beat.progress !== vitals.progress;
  if (!hasMoved) return { vitals: { ...vitals, ...beat } };
  // What passed between the last beat and the progress is not known; it is less than the time between beats.
  const ended = { phase: vitals.phase, gapMs: vitals.stillMs };
  const gaps = withGap(vitals.gaps, ended.phase, ended.gapMs);
  return { vitals: { ...beat, cpuAtProgressMs: beat.cpuMs, gaps }, ended };
}

/** `gaps` with one more of a phase. */
export function withGap(gaps: GapsByPhase, phase: string, gapMs: number): GapsByPhase {
  const { count, highMs } = gaps[phase] ?? { count: 0, highMs: 0 };
  return { ...gaps, [phase]: { count: count + 1, highMs: Math.max(gapMs, FORGETTING * highMs) } };
}

/** How long a worker may stand still where it is, milliseconds. `all` are the gaps of all workers of the run. */
export function stillnessLimitMs(vitals: Vitals, all: GapsByPhase, limits: TimeLimits): number {
  const { phase, stillMs, gaps } = vitals;
  if (isWaiting(phase)) return Infinity;
  const learnedMs = MARGIN * Math.max(gaps[phase]?.highMs ?? 0, all[phase]?.highMs ?? 0);
  const isKnown = STEADY.has(phase) && (gaps[phase]?.count ?? 0) >= KNOWN_AFTER;
  // While decoding, its children work, not the process itself, and the first clip is as bounded as any other.
  if (DECODING.has(phase)) return Math.max(limits.stillDecodingMs, learnedMs);
  const isBusy = isBusyFor(vitals, stillMs);
  return Math.max(isKnown && !isBusy ? limits.stillMs : limits.firstStillMs, learnedMs);
}

/** Whether a worker works at something that shows no progress: it maps memory or compiles. */
export function isBusyFor(
  { cpuMs, cpuAtProgressMs }: Pick<Vitals, 'cpuMs' | 'cpuAtProgressMs'>,
  stillMs: number,
): boolean {
  return cpuMs - cpuAtProgressMs > BUSY_SHARE * stillMs;
}
