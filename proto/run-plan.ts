import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import * as z from 'zod';

import { messageOf, UsageError } from './errors.ts';
import { timeConflict } from './time-limits.ts';

/** Name of the plan inside a run folder. */
export const RUN_PLAN_FILE = 'run.json';
/** Name of the figures of a finished run there. */
export const SUMMARY_FILE = 'summary.json';
/** Name of what tells there where the coordinator is, or last was. */
export const COORDINATOR_FILE = 'coordinator.json';

const count = z.int().min(1);
const digest = z.string().regex(/^[0-9a-f]{64}$/, 'must be 64 hex digits (SHA-256)');
const MAX_DELAY_MS = 2 ** 31 - 1;

/** The most that a plan may have of each; a config has the same bounds, so that what it makes is a plan. */
export const RUN_PLAN_BOUNDS = {
  microbatches: 65_536,
  microbatchSize: 65_536,
  prefetchSteps: 1024,
} as const;

/**
 * What the coordinator must know of a run. `prepare` writes it into the run folder as `run.json`; nothing in it
 * changes while the run lives, save the limits on time and the number of steps.
 */
export const RunPlan = z.strictObject({
  runId: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/),
  seed: z.int().min(0),
  totalSteps: count,
  /** Parts of a global batch; a power of two, whatever the number of workers. */
  microbatches: count
    .max(RUN_PLAN_BOUNDS.microbatches)
    .refine((n) => (n & (n - 1)) === 0, 'must be a power of two'),
  microbatchSize: count.max(RUN_PLAN_BOUNDS.microbatchSize),
  numTrainSamples: count.max(2 ** 32 - 1),
  /** SHA-256 of the sample index: another data set is another run. */
  datasetDigest: digest,
  /** SHA-256 of the resolved config. */
  configDigest: digest,
  /** SHA-256 of the file of sample costs beside the plan; without one, nothing is known of the samples. */
  costsDigest: digest.optional(),
  /** SHA-256 of the file of weights that it begins with; without one, all are drawn and trained. */
  initialSha256: digest.optional(),
  /** Digests of what the stages of its recipe that it begins from have left, by name; `configDigest` covers them. */
  stages: z.record(z.string(), digest).optional(),
  /** Name of what computes it, which its workers have to have; `configDigest` covers it. */
  engine: z.string().optional(),
  checkpointEverySteps: count,
  keepCheckpoints: count.default(3),
  /** Older checkpoints go, save the newest; without it none goes for its age. */
  keepCheckpointHours: z.number().positive().optional(),
  /** Workers to wait for before the first step; one is enough to go on after a loss. */
  minWorkers: count.default(1),
  /** How soon a process that stands still has to be found: all limits on time follow from it. */
  detectWithinMs: count.max(MAX_DELAY_MS).default(2000),
  /** How long one clip may take to decode; less than what `detectWithinMs` gives a worker. */
  decodeTimeoutMs: count.max(MAX_DELAY_MS).default(30_000),
  /** Steps ahead of the last committed one whose samples are handed out. */
  prefetchSteps: count.max(RUN_PLAN_BOUNDS.prefetchSteps).default(8),
  /** Substitutes handed out with each sample. */
  numSubstitutes: z.int().min(0).max(64).default(4),
  /** NATS servers that the run's events go to; without it they stay in the journal. */
  events: z.array(z.string()).min(1).optional(),
});
export type RunPlan = z.infer<typeof RunPlan>;

/**
 * Reads `run.json` of a run folder.
 * @throws UsageError RUN_PLAN_MISSING, RUN_PLAN_INVALID (with the field and the reason)
 */
export async function readRunPlan(folder: string): Promise<RunPlan> {
  const path = join(folder, RUN_PLAN_FILE);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw new UsageError(
      'RUN_PLAN_MISSING',
      `cannot read ${path}: ${messageOf(error)}. Name a folder that \`videoloom train\` has prepared.`,
      { cause: error },
    );
  }
  return parseRunPlan(text, path);
}

/** Checks the text of a `run.json`; `where` names it in errors. @throws UsageError RUN_PLAN_INVALID */
export function parseRunPlan(text: string, where: string): RunPlan {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new UsageError(
      'RUN_PLAN_INVALID',
      `${where} is not JSON: ${messageOf(error)}. It was cut off or edited: put it back from a copy, or remove it and ` +
        'give the same `videoloom train` command again, which makes it anew and goes on with the run.',
    );
  }
  const parsed = RunPlan.safeParse(value);
  if (parsed.success) {
    const conflict = timeConflict(parsed.data);
    if (conflict === undefined) return parsed.data;
    throw new UsageError('RUN_PLAN_INVALID', `${where}: ${conflict}.`);
  }
  const issues = parsed.error.issues.map(
    ({ path, message }) => `${path.length > 0 ? path.join('.') : '(whole file)'}: ${message}`,
  );
  throw new UsageError(
    'RUN_PLAN_INVALID',
    `${where} is no valid run plan: ${issues.join('; ')}. Let \`videoloom train\` write it anew in a fresh folder.`,
  );
}
