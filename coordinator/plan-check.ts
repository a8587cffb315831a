import { VideoloomError } from '../proto/errors.ts';
import type { RunPlan } from '../proto/run-plan.ts';

// What decides the bits of the result. Time limits, and how far to train, may change between two starts.
const FIXED = [
  'runId',
  'seed',
  'microbatches',
  'microbatchSize',
  'numTrainSamples',
  'datasetDigest',
  'configDigest',
  'costsDigest',
  'initialSha256',
] as const;

/**
 * Refuses to go on with a run under a plan that would make another run of it.
 * @throws VideoloomError RUN_PLAN_CHANGED, naming the fields
 */
export function checkSamePlan(before: RunPlan, now: RunPlan, folder: string): void {
  const changes = FIXED.filter((field) => before[field] !== now[field]).map(
    (field) => `${field} was ${before[field]} and is ${now[field]}`,
  );
  if (changes.length === 0) return;
  throw new VideoloomError(
    'RUN_PLAN_CHANGED',
    `the run in ${folder} was begun with another plan: ${changes.join('; ')}. ` +
      'Put the old config and data back to go on with it, or train into a new folder.',
  );
}
