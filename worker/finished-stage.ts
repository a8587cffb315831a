/** What a stage of a recipe has left for those that begin from it. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  newestCheckpointStep,
} from '../proto/checkpoint-manifest.ts';
import { UsageError } from '../proto/errors.ts';
import { readRunPlan, SUMMARY_FILE } from '../proto/run-plan.ts';
import { shellWord } from '../proto/shell-word.ts';
import { checkpointWeightsSha256 } from './checkpoint/weights-digest.ts';

/**
 * A digest of all weights of a finished stage: the trained ones, and those that it began with and does not train.
 * @throws UsageError STAGE_UNFINISHED; as `readRunPlan`, `checkpointWeightsSha256`
 */
export async function finishedStageDigest(folder: string): Promise<string> {
  const { totalSteps, initialSha256 = '' } = await readRunPlan(folder);
  const summary = await readSummary(folder);
  const isSummed = summary !== undefined && summary.step >= totalSteps;
  const weights = isSummed ? summary.weightsSha256 : await lastWeights(folder, totalSteps);
  return createHash('sha256').update(`${weights} ${initialSha256}`).digest('hex');
}

/** Of one whose end nobody has seen, or that has come from a store: its figures are written by who leads it next. */
async function lastWeights(folder: string, totalSteps: number): Promise<string> {
  const step = await newestCheckpointStep(folder);
  if (step !== undefined && step >= totalSteps)
    return checkpointWeightsSha256(join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)));
  throw new UsageError(
    'STAGE_UNFINISHED',
    `the stage in ${folder} is at step ${step ?? 0} of ${totalSteps}, and another one would begin from it: train it to ` +
      `its end first (videoloom resume ${shellWord(folder)})`,
  );
}

async function readSummary(
  folder: string,
): Promise<{ readonly step: number; readonly weightsSha256: string } | undefined> {
  try {
    return JSON.parse(await readFile(join(folder, SUMMARY_FILE), 'utf8')) as {
      step: number;
      weightsSha256: string;
    };
  } catch {
    return undefined;
  }
}
