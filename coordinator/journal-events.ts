import type { Figure, Member, ObjectiveSum, TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import type { RunPlan } from '../proto/run-plan.ts';

/** A sample that could not be decoded, and what was taken in its place. */
export interface JournaledSkip {
  readonly sample: number;
  readonly substitute: number;
  readonly reason: string;
  readonly message: string;
  /** Place within the global batch. */
  readonly place: number;
}

/** What happened to a run: the one truth about it, from which everything else can be computed again. */
export type JournalEvent =
  /** A coordinator took the run over. */
  | { readonly type: 'opened'; readonly pid: number; readonly plan: RunPlan }
  | {
      readonly type: 'worker-joined';
      readonly workerId: string;
      readonly host: string;
      readonly engine: string;
    }
  | {
      readonly type: 'worker-lost';
      readonly workerId: string;
      readonly reason: LossReason;
      readonly message: string;
      /** Generation that it was a member of; 0 = none. */
      readonly generation?: number;
      /** What it was doing when it was last heard of. */
      readonly phase?: string;
      /** Time since its last sign of life or, of one that stood still, of progress, milliseconds. */
      readonly afterMs?: number;
    }
  /** A worker went in order, as it had said that it would. */
  | { readonly type: 'worker-left'; readonly workerId: string; readonly generation: number }
  /** Where the wall clock of a worker process has gone by now; a later record of the process replaces it. */
  | { readonly type: 'time'; readonly process: string; readonly spent: TimeLedger }
  | {
      readonly type: 'generation';
      readonly generation: number;
      readonly committedStep: number;
      readonly restoreStep: number;
      readonly members: readonly Member[];
    }
  /** The run goes on after `step`: commits of later steps, if any, do not count and are done again. */
  | {
      readonly type: 'restored';
      readonly step: number;
      readonly from: 'memory' | 'checkpoint' | 'start';
    }
  /** The samples at places [firstPosition, firstPosition + numSamples) of the run's order are used. */
  | {
      readonly type: 'commit';
      readonly step: number;
      readonly generation: number;
      readonly firstPosition: number;
      readonly numSamples: number;
      readonly objectives: readonly ObjectiveSum[];
      readonly gradientNorm: number;
      readonly learningRate: number;
      readonly clips: number;
      readonly tokens: number;
      readonly skipped: readonly JournaledSkip[];
      readonly checkpoint: boolean;
      readonly last: boolean;
    }
  | {
      readonly type: 'checkpoint';
      readonly step: number;
      readonly generation: number;
      readonly sizeBytes: number;
    }
  | {
      readonly type: 'checkpoint-failed';
      readonly step: number;
      readonly reason: string;
      readonly message: string;
    }
  | { readonly type: 'checkpoint-pruned'; readonly step: number }
  /** It cannot be used, and lies at `keptAs` now; empty where it could not be moved. */
  | {
      readonly type: 'checkpoint-damaged';
      readonly step: number;
      readonly keptAs: string;
      readonly message: string;
    }
  | { readonly type: 'stop-requested' }
  | { readonly type: 'stopped'; readonly step: number }
  | {
      readonly type: 'finished';
      readonly step: number;
      readonly figures: readonly Figure[];
      readonly weightsSha256: string;
      /** Held-out clips that did not decode and that no figure counts; left out where there are none. */
      readonly skipped?: readonly Omit<JournaledSkip, 'place'>[];
    }
  | { readonly type: 'failed'; readonly code: string; readonly message: string };

/** Why a worker is no member any more. */
export type LossReason =
  'disconnected' | 'heartbeat' | 'stalled' | 'unreachable' | 'late' | 'replaced';
