import type { RunStatus, TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import { numSkipped } from './history.ts';
import type { RunHistory } from './history.ts';
import type { RunState } from './run-state.ts';

const WINDOW_STEPS = 20;

/** Rates over the last steps. */
export interface Rates {
  readonly clipsPerSecond: number;
  readonly tokensPerSecond: number;
}

/** How many clips and tokens the last steps consumed, and when each was committed. */
export class RateWindow {
  readonly #commits: { readonly atMs: number; readonly clips: number; readonly tokens: number }[] =
    [];

  add(atMs: number, clips: number, tokens: number): void {
    this.#commits.push({ atMs, clips, tokens });
    if (this.#commits.length > WINDOW_STEPS) this.#commits.shift();
  }

  /** Rates from the first to the last commit of the window; 0 until there are two. */
  rates(): Rates {
    const [first, ...rest] = this.#commits;
    const seconds = ((rest.at(-1)?.atMs ?? 0) - (first?.atMs ?? 0)) / 1000;
    if (rest.length === 0 || seconds <= 0) return { clipsPerSecond: 0, tokensPerSecond: 0 };
    const [clips, tokens] = rest.reduce<[number, number]>(
      ([c, t], commit) => [c + commit.clips, t + commit.tokens],
      [0, 0],
    );
    return { clipsPerSecond: clips / seconds, tokensPerSecond: tokens / seconds };
  }
}

/** The status of a run as its watchers see it. */
export function statusOf(
  state: RunState,
  history: RunHistory,
  rates: Rates,
  time: TimeLedger,
): RunStatus {
  const { lastCommit, finished } = history;
  const isFinished = finished !== undefined && finished.step === state.committedStep;
  return {
    runId: state.plan.runId,
    phase: state.phase,
    committedStep: state.committedStep,
    totalSteps: state.plan.totalSteps,
    generation: state.generation,
    objectives: [...(lastCommit?.objectives ?? [])],
    learningRate: lastCommit?.learningRate ?? 0,
    gradientNorm: lastCommit?.gradientNorm ?? 0,
    ...rates,
    lastCheckpointStep: state.restoreStep,
    time,
    skippedSamples: numSkipped(history),
    figures: isFinished ? [...finished.figures] : [],
    weightsSha256: isFinished ? finished.weightsSha256 : '',
    clipsPerStep: state.plan.microbatches * state.plan.microbatchSize,
    failure: state.failure === undefined ? '' : `${state.failure.code}: ${state.failure.message}`,
  };
}
