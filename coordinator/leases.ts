import { status } from '@grpc/grpc-js';

import type { MicrobatchLease, StepLease } from '../proto/gen/videoloom/v1/coordinator.ts';
import type { Member } from '../proto/gen/videoloom/v1/run.ts';
import { RpcError } from '../proto/grpc.ts';
import type { RunPlan } from '../proto/run-plan.ts';
import type { StepOrder } from '../proto/step-order.ts';
import type { RunHistory } from './history.ts';
import type { JournaledSkip } from './journal-events.ts';

/** What leases are made of. */
export interface LeaseSource {
  readonly plan: RunPlan;
  readonly order: StepOrder;
}

type LeaseHistory = Pick<RunHistory, 'committedStep' | 'highestStep' | 'skipsByStep'>;

/**
 * The samples of `member`'s microbatches for `numSteps` steps from `firstStep` on. Steps past `prefetchSteps` after the
 * committed one, or past the end of the run, are left out. What is handed out is not remembered: a sample is used when
 * its step is committed. What did not decode in a step that was committed before is a fact, and handed out as such.
 * @throws RpcError LEASE_OUT_OF_WINDOW for a step that is committed already
 */
export function leaseMicrobatches(
  { plan, order }: LeaseSource,
  history: LeaseHistory,
  member: Member,
  { firstStep, numSteps }: { readonly firstStep: number; readonly numSteps: number },
): StepLease[] {
  const { committedStep, highestStep } = history;
  const lastStep = Math.min(committedStep + plan.prefetchSteps, plan.totalSteps);
  if (firstStep <= committedStep) {
    throw new RpcError(
      status.FAILED_PRECONDITION,
      'LEASE_OUT_OF_WINDOW',
      `worker "${member.workerId}" asks for the samples of step ${firstStep}, but step ${committedStep} is committed: ` +
        `only steps ${committedStep + 1} to ${lastStep} can be had.`,
    );
  }
  const leases: StepLease[] = [];
  for (let step = firstStep; step < firstStep + numSteps && step <= lastStep; step++) {
    const committedBefore = step <= highestStep;
    const facts = committedBefore ? (history.skipsByStep.get(step) ?? []) : undefined;
    const microbatches = rangeOf(member).map((index) =>
      leaseOf({ plan, order }, step, index, facts),
    );
    leases.push({ step, microbatches, committedBefore });
  }
  return leases;
}

function rangeOf({ firstMicrobatch, numMicrobatches }: Member): number[] {
  return Array.from({ length: numMicrobatches }, (_, offset) => firstMicrobatch + offset);
}

/** `facts`: what did not decode when the step was committed before; undefined for a step that never was. */
function leaseOf(
  { plan, order }: LeaseSource,
  step: number,
  index: number,
  facts: readonly JournaledSkip[] | undefined,
): MicrobatchLease {
  const samples = order.placesOf(step, index).map(({ sample, epoch, substitutes }, i) => {
    const place = index * plan.microbatchSize + i;
    const recorded = facts?.find((skip) => skip.place === place);
    return {
      ...{ sample, epoch, recorded },
      substitutes: facts === undefined ? substitutes(plan.numSubstitutes) : [],
    };
  });
  return { index, samples };
}
