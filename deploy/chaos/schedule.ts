import { openRng } from '../../proto/random.ts';
import type { FaultKind } from '../drill/faults.ts';

/** One fault of a schedule. */
export interface PlannedFault {
  readonly kind: FaultKind;
  /** Once this step is committed, and so much later. */
  readonly step: number;
  readonly delayMs: number;
  /** How long it lasts where it does not pass by itself. */
  readonly lastsMs: number;
}

export interface Schedule {
  readonly seed: number;
  readonly workers: number;
  /** Disks have room again from here on: the last checkpoint holds the result, and nothing stands in for it. */
  readonly diskFreeStep: number;
  /** By step. */
  readonly faults: readonly PlannedFault[];
}

/** How often each kind is drawn, relative to the others. */
const WEIGHTS: readonly (readonly [FaultKind, number])[] = [
  ['kill-worker', 5],
  ['kill-coordinator', 3],
  ['preempt', 2],
  ['pause-worker', 2],
  ['drop-network', 2],
  ['full-disk', 2],
  ['join', 1],
  ['kill-all', 1],
];
/** Some last shorter than `detectWithin`, some longer. */
const LONGEST_MS = 3500;
const LONGEST_DELAY_MS = 60;

/** A schedule that the seed alone decides: one to three faults in a run of `totalSteps`, which may overlap. */
export function scheduleOf(seed: number, totalSteps: number): Schedule {
  const rng = openRng(seed, 'chaos');
  const workers = 2 + rng.integer(2);
  const count = 1 + rng.integer(3);
  const faults = Array.from({ length: count }, (_, index): PlannedFault => {
    const draw = rng.fork('fault', index);
    const kind = kindOf(draw.uniform());
    return {
      kind,
      step: draw.integer(kind === 'full-disk' ? Math.floor(totalSteps / 2) : totalSteps - 2),
      delayMs: draw.integer(LONGEST_DELAY_MS),
      lastsMs: 100 + draw.integer(LONGEST_MS),
    };
  });
  const diskFreeStep = Math.floor((2 * totalSteps) / 3);
  return { seed, workers, diskFreeStep, faults: faults.sort((a, b) => a.step - b.step) };
}

function kindOf(uniform: number): FaultKind {
  const total = WEIGHTS.reduce((sum, [, weight]) => sum + weight, 0);
  let left = uniform * total;
  for (const [kind, weight] of WEIGHTS) {
    if (left < weight) return kind;
    left -= weight;
  }
  return 'kill-worker';
}

/** `kill-worker@5 join@9`, for the line of a seed. */
export function scheduleText({ workers, faults }: Schedule): string {
  return `${workers} workers, ${faults.map(({ kind, step }) => `${kind}@${step}`).join(' ')}`;
}
