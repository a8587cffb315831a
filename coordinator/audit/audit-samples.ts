import type { RunPlan } from '../../proto/run-plan.ts';
import type { StepOrder } from '../../proto/step-order.ts';
import type { JournaledSkip } from '../journal-events.ts';
import type { Findings } from './findings.ts';
import type { PlayedRun } from './play-journal.ts';

/** A place of a run's order, and what stands there. */
export interface AuditedPlace {
  readonly step: number;
  /** Counted from the start of the run. */
  readonly position: number;
  /** Row of the training split. */
  readonly sample: number;
  readonly epoch: number;
}

/** A sample that another one stood in for. */
export interface AuditedSubstitute extends AuditedPlace {
  readonly substitute: number;
  readonly reason: string;
  readonly message: string;
}

export interface SampleAudit {
  /** Places of the order that the committed steps make. */
  readonly numPlaces: number;
  /** Passes in which every sample of the split was used. */
  readonly completeEpochs: number;
  /** Samples that no commit has used though a later step counts. */
  readonly lost: readonly AuditedPlace[];
  /** Samples that more than one commit has used. */
  readonly doubled: readonly AuditedPlace[];
  readonly substitutes: readonly AuditedSubstitute[];
}

/** How many lost and doubled samples are named; more are only counted, in a problem of their own. */
const MAX_NAMED = 10_000;

/** Compares the places that commits have used with those that the order gives to the committed steps. */
export function auditSamples(
  run: PlayedRun,
  plan: RunPlan,
  order: StepOrder,
  findings: Findings,
): SampleAudit {
  const perStep = plan.microbatches * plan.microbatchSize;
  const numPlaces = run.committedStep * perStep;
  const placesOf = placeReader(plan, order);
  const { lost, doubled } = coverage(run, numPlaces);
  const name = (ranges: readonly Range[]): AuditedPlace[] => {
    const named: AuditedPlace[] = [];
    for (const { first, end } of ranges)
      for (let at = first; at < end && named.length < MAX_NAMED; at++) named.push(placesOf(at));
    return named;
  };
  const named = { lost: name(lost), doubled: name(doubled) };
  for (const place of named.lost)
    findings.problem('SAMPLE_LOST', `${shown(place)} is in no commit`, place.step);
  for (const place of named.doubled)
    findings.problem('SAMPLE_DOUBLED', `${shown(place)} is in more than one commit`, place.step);
  const completeEpochs = auditOrder(run.committedStep, plan, order, findings);
  return {
    ...{ numPlaces, completeEpochs, ...named },
    substitutes: auditSubstitutes(run, plan, order, findings),
  };
}

/** Places [first, end). */
interface Range {
  readonly first: number;
  readonly end: number;
}

function coverage(run: PlayedRun, numPlaces: number): { lost: Range[]; doubled: Range[] } {
  const used = [...run.commits.values()]
    .flat()
    .map(({ firstPosition, numSamples }) => ({
      first: firstPosition,
      end: Math.min(firstPosition + numSamples, numPlaces),
    }))
    .sort((a, b) => a.first - b.first);
  const lost: Range[] = [];
  const doubled: Range[] = [];
  let end = 0;
  for (const range of [...used, { first: numPlaces, end: numPlaces }]) {
    if (range.first > end) lost.push({ first: end, end: range.first });
    if (range.first < end) doubled.push({ first: range.first, end: Math.min(end, range.end) });
    end = Math.max(end, range.end);
  }
  return { lost, doubled };
}

function placeReader(plan: RunPlan, order: StepOrder): (position: number) => AuditedPlace {
  const perStep = plan.microbatches * plan.microbatchSize;
  return (position) => {
    const step = Math.floor(position / perStep) + 1;
    const place = position % perStep;
    const microbatch = Math.floor(place / plan.microbatchSize);
    const { sample, epoch } = order.placesOf(step, microbatch)[place % plan.microbatchSize]!;
    return { step, position, sample, epoch };
  };
}

function shown({ step, position, sample, epoch }: AuditedPlace): string {
  return `sample ${sample} of epoch ${epoch} (step ${step}, place ${position})`;
}

/**
 * That the order itself uses each sample once in each of its epochs. Gives the number of epochs that are complete for
 * all samples.
 */
function auditOrder(
  committedStep: number,
  plan: RunPlan,
  order: StepOrder,
  findings: Findings,
): number {
  const { numTrainSamples } = plan;
  /** A bit a sample, by epoch. */
  const epochs: Uint8Array[] = [];
  const numUsed: number[] = [];
  for (const { sample, epoch } of placesUpTo(1, committedStep, plan, order)) {
    while (epochs.length <= epoch) {
      epochs.push(new Uint8Array(Math.ceil(numTrainSamples / 8)));
      numUsed.push(0);
    }
    const bits = epochs[epoch]!;
    const bit = 1 << (sample & 7);
    if ((bits[sample >> 3]! & bit) !== 0)
      findings.problem(
        'SAMPLE_DOUBLED',
        `the order has sample ${sample} a second time in epoch ${epoch}`,
      );
    bits[sample >> 3]! |= bit;
    numUsed[epoch]!++;
  }
  // Within a window of steps the order is rearranged: what seems left out may be still to come.
  const holes = holesOf(epochs);
  if (holes.size > 0) {
    const perStep = plan.microbatches * plan.microbatchSize;
    const lastStep = committedStep + Math.ceil((2 * numTrainSamples) / perStep) + 1024;
    for (const { sample, epoch } of placesUpTo(committedStep + 1, lastStep, plan, order)) {
      holes.delete(`${sample} of epoch ${epoch}`);
      if (holes.size === 0) break;
    }
  }
  for (const hole of holes)
    findings.problem('SAMPLE_LOST', `the order leaves out sample ${hole}, but has it later`);
  const incomplete = numUsed.findIndex((count) => count < numTrainSamples);
  return incomplete < 0 ? numUsed.length : incomplete;
}

function* placesUpTo(
  firstStep: number,
  lastStep: number,
  { microbatches }: RunPlan,
  order: StepOrder,
): Generator<{ sample: number; epoch: number }> {
  for (let step = firstStep; step <= lastStep; step++)
    for (let microbatch = 0; microbatch < microbatches; microbatch++)
      yield* order.placesOf(step, microbatch);
}

/** Samples that an epoch has though the one before it has them not. */
function holesOf(epochs: readonly Uint8Array[]): Set<string> {
  const holes = new Set<string>();
  for (const [i, bits] of epochs.entries()) {
    for (let byte = 0; i > 0 && byte < bits.length; byte++) {
      const gaps = bits[byte]! & ~epochs[i - 1]![byte]!;
      for (let bit = 0; gaps !== 0 && bit < 8; bit++)
        if ((gaps & (1 << bit)) !== 0) holes.add(`${8 * byte + bit} of epoch ${i - 1}`);
    }
  }
  return holes;
}

/** Each substitute stands where the order has the sample that it replaces, and is one that the order offers there. */
function auditSubstitutes(
  run: PlayedRun,
  plan: RunPlan,
  order: StepOrder,
  findings: Findings,
): AuditedSubstitute[] {
  const found: AuditedSubstitute[] = [];
  for (const [step, commits] of [...run.commits].sort(([a], [b]) => a - b)) {
    for (const { skipped } of commits) {
      const places = new Set<number>();
      for (const skip of skipped) {
        const why = wrongSubstitute(skip, step, plan, order) ?? doubledPlace(places, skip);
        places.add(skip.place);
        const { sample, substitute, reason, message, place } = skip;
        if (why !== undefined) {
          const what = `substitute ${substitute} for sample ${sample} at place ${place} of step ${step}`;
          findings.problem('SUBSTITUTE_WRONG', `${what}: ${why}`, step);
          continue;
        }
        const microbatch = Math.floor(place / plan.microbatchSize);
        const { epoch } = order.placesOf(step, microbatch)[place % plan.microbatchSize]!;
        const position = (step - 1) * plan.microbatches * plan.microbatchSize + place;
        found.push({ step, position, sample, epoch, substitute, reason, message });
      }
    }
  }
  return found;
}

function wrongSubstitute(
  { sample, substitute, place }: JournaledSkip,
  step: number,
  plan: RunPlan,
  order: StepOrder,
): string | undefined {
  const microbatch = Math.floor(place / plan.microbatchSize);
  if (!Number.isInteger(place) || place < 0 || microbatch >= plan.microbatches)
    return 'a step has no such place';
  const expected = order.placesOf(step, microbatch)[place % plan.microbatchSize]!;
  if (expected.sample !== sample) return `the order has sample ${expected.sample} there`;
  const offered = expected.substitutes(plan.numSubstitutes);
  return offered.includes(substitute) ? undefined : `the order offers ${offered.join(', ')} there`;
}

function doubledPlace(places: ReadonlySet<number>, { place }: JournaledSkip): string | undefined {
  return places.has(place) ? 'the place has a substitute already' : undefined;
}
