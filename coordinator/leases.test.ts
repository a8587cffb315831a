import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import type { SampleLease } from '../proto/gen/videoloom/v1/coordinator.ts';
import { openRng } from '../proto/random.ts';
import { positionOf, sampleAt, substitutesAt } from '../proto/sample-order.ts';
import { emptyHistory, extendHistory, numSkipped } from './history.ts';
import type { RunHistory } from './history.ts';
import type { JournaledSkip, JournalEvent } from './journal-events.ts';
import { writeSampleCosts } from '../proto/sample-costs.ts';
import { openStepOrder, plainStepOrder } from '../proto/step-order.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { leaseMicrobatches } from './leases.ts';
import { testPlan } from './test/scripted-worker.ts';

const PLAN = testPlan({ totalSteps: 40, prefetchSteps: 4, numTrainSamples: 5 });
const ORDER = { seed: PLAN.seed, numSamples: PLAN.numTrainSamples };
const SOURCE = { plan: PLAN, order: plainStepOrder(PLAN) };
const STEP_PLACES = PLAN.microbatches * PLAN.microbatchSize;

function commit(step: number, ...skipped: JournaledSkip[]): JournalEvent {
  return {
    type: 'commit',
    step,
    generation: 1,
    firstPosition: (step - 1) * STEP_PLACES,
    numSamples: STEP_PLACES,
    objectives: [],
    gradientNorm: 1,
    learningRate: 1,
    clips: STEP_PLACES,
    tokens: 1,
    skipped,
    checkpoint: false,
    last: false,
  };
}

const backTo = (step: number): JournalEvent => ({ type: 'restored', step, from: 'checkpoint' });

function historyOf(...events: JournalEvent[]): RunHistory {
  const history = emptyHistory();
  for (const event of events) extendHistory(history, event);
  return history;
}

/** A place of a step as it was when its sample did not decode and its first substitute did. */
function skipAt(step: number, place: number): JournaledSkip {
  const position = positionOf(PLAN, step, 0, place);
  return {
    sample: sampleAt(ORDER, position).sample,
    substitute: substitutesAt(ORDER, position, 1)[0]!,
    reason: 'VIDEO_TIMEOUT',
    message: `place ${place} of step ${step}`,
    place,
  };
}

/** The places of a step, as members with these numbers of microbatches get them one after the other. */
function placesOf(
  history: RunHistory,
  step: number,
  ranges: readonly number[],
  source = SOURCE,
): SampleLease[] {
  let firstMicrobatch = 0;
  return ranges.flatMap((numMicrobatches, rank) => {
    const member = {
      ...{ workerId: `w${rank}`, rank, tensorAddress: '', serviceAddress: '' },
      ...{ firstMicrobatch, numMicrobatches, holdsState: true },
    };
    firstMicrobatch += numMicrobatches;
    const [lease] = leaseMicrobatches(source, history, member, { firstStep: step, numSteps: 1 });
    assert.equal(lease!.committedBefore, step <= history.highestStep);
    return lease!.microbatches.flatMap(({ samples }) => samples);
  });
}

describe('leases of a step that was committed before', () => {
  const before = [commit(1), commit(2, skipAt(2, 1), skipAt(2, 6)), commit(3, skipAt(3, 0))];
  const history = historyOf(...before, backTo(1));

  it('bear what did not decode then, and no other way out, however the work is divided', () => {
    for (const ranges of [[4], [2, 2], [1, 3], [1, 1, 1, 1]]) {
      for (const [place, lease] of placesOf(history, 2, ranges).entries()) {
        const position = positionOf(PLAN, 2, 0, place);
        const isSkipped = place === 1 || place === 6;
        assert.deepEqual(lease, {
          ...sampleAt(ORDER, position),
          substitutes: [],
          recorded: isSkipped ? skipAt(2, place) : undefined,
        });
      }
    }
  });

  it('tell places apart that hold the same sample', () => {
    // Eight places and five samples: every step holds some sample twice.
    const samples = placesOf(history, 2, [4]).map(({ sample }) => sample);
    const place = samples.findIndex((sample, i) => samples.indexOf(sample) < i);
    const twin = samples.indexOf(samples[place]!);
    const leases = placesOf(
      historyOf(commit(1), commit(2, skipAt(2, place)), backTo(1)),
      2,
      [2, 2],
    );
    assert.deepEqual(leases[place]!.recorded, skipAt(2, place));
    assert.equal(leases[twin]!.recorded, undefined);
  });

  it('are followed by ones that may still be decided', () => {
    for (const [place, lease] of placesOf(history, 4, [4]).entries()) {
      const position = positionOf(PLAN, 4, 0, place);
      assert.deepEqual(lease.substitutes, substitutesAt(ORDER, position, PLAN.numSubstitutes));
      assert.equal(lease.recorded, undefined);
    }
  });
});

describe('leases of samples whose costs are known', () => {
  it('keep what did not decode at its place, however the work is divided', async () => {
    const folder = await temporaryFolder('leases');
    const rng = openRng(3, 'costs');
    const cost = (): Float32Array => Float32Array.from({ length: 37 }, () => rng.uniform());
    const costsDigest = await writeSampleCosts(folder, { compute: cost(), decode: cost() });
    const plan = testPlan({ totalSteps: 40, prefetchSteps: 4, costsDigest });
    const source = { plan, order: await openStepOrder(folder, plan) };
    const fresh = placesOf(historyOf(commit(1)), 2, [4], source);
    assert.notDeepEqual(fresh, placesOf(historyOf(commit(1)), 2, [4]));
    const { sample, substitutes } = fresh[5]!;
    const skip = { sample, substitute: substitutes[0]!, reason: 'R', message: 'm', place: 5 };
    const history = historyOf(commit(1), commit(2, skip), backTo(1));
    for (const ranges of [[4], [2, 2], [1, 3], [1, 1, 1, 1]]) {
      for (const [place, lease] of placesOf(history, 2, ranges, source).entries()) {
        const { sample, epoch } = fresh[place]!;
        const recorded = place === 5 ? skip : undefined;
        assert.deepEqual(lease, { sample, epoch, substitutes: [], recorded });
      }
    }
    source.order.close();
  });
});

describe('the history of a run', () => {
  it('counts the skips of steps that count, and keeps those of all others, through any way back', () => {
    const rng = openRng(1, 'ways back');
    for (let trial = 0; trial < 50; trial++) {
      const events: JournalEvent[] = [];
      // What happened at the first commit of each step; a step that is done again says the same.
      const facts = new Map<number, JournaledSkip[]>();
      let step = 0;
      while (events.length < 60) {
        if (step > 0 && rng.integer(6) === 0) {
          step = rng.integer(step);
          events.push(backTo(step));
          continue;
        }
        step++;
        const skips =
          facts.get(step) ?? (rng.integer(3) === 0 ? [skipAt(step, rng.integer(STEP_PLACES))] : []);
        facts.set(step, skips);
        events.push(commit(step, ...skips));
      }
      const history = historyOf(...events);
      assert.equal(history.committedStep, step);
      assert.equal(history.highestStep, Math.max(...facts.keys()));
      const counted = [...facts].filter(([at]) => at <= step).flatMap(([, skips]) => skips);
      assert.equal(numSkipped(history), counted.length);
      for (const [at, skips] of facts) assert.deepEqual(history.skipsByStep.get(at) ?? [], skips);
      assert.ok([...history.skipsByStep.values()].every(({ length }) => length > 0));
    }
  });
});
