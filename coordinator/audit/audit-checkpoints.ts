import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  checkpointStepOf,
  MANIFEST_FILE,
  verifyCheckpoint,
  type CheckpointManifest,
} from '../../proto/checkpoint-manifest.ts';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import type { RunPlan } from '../../proto/run-plan.ts';
import { positionOf } from '../../proto/sample-order.ts';
import type { Findings } from './findings.ts';
import type { PlayedRun } from './play-journal.ts';

/** A checkpoint that was read whole. */
export interface AuditedCheckpoint {
  readonly step: number;
  readonly sizeBytes: number;
  /** Each file has its listed size and SHA-256. */
  readonly isWhole: boolean;
}

/**
 * Reads every checkpoint of a run whole and compares it with its manifest, with the plan and with the journal.
 * @param prunedMeanwhile whether a checkpoint that the journal had is being removed while this looks at it
 */
export async function auditCheckpoints(
  folder: string,
  run: PlayedRun,
  plan: RunPlan,
  findings: Findings,
  prunedMeanwhile: (step: number) => boolean,
): Promise<AuditedCheckpoint[]> {
  const checkpoints = join(folder, CHECKPOINTS_FOLDER);
  const names = await readdir(checkpoints).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  });
  const found: AuditedCheckpoint[] = [];
  const seen = new Set<number>();
  for (const name of names.sort()) {
    const step = checkpointStepOf(name);
    if (step === undefined) {
      if (name.startsWith('damaged-'))
        findings.note(`${join(CHECKPOINTS_FOLDER, name)} was set aside`);
      continue;
    }
    const path = join(checkpoints, name);
    const files = await readdir(path).catch((): string[] => []);
    const isKnown = run.checkpoints.has(step);
    if (!files.includes(MANIFEST_FILE)) {
      // One that the journal has is told of below.
      if (!isKnown) findings.note(`${join(CHECKPOINTS_FOLDER, name)} was never completed`);
      continue;
    }
    seen.add(step);
    const checkpoint = await auditCheckpoint(path, step, run, plan, findings, prunedMeanwhile);
    if (checkpoint !== undefined) found.push(checkpoint);
    if (step > run.highestStep)
      findings.problem(
        'COMMIT_MISSING',
        `there is a checkpoint of step ${step}, but the journal ends with the commit of step ${run.highestStep}`,
        step,
      );
    else if (!isKnown && checkpoint?.isWhole === true)
      findings.note(
        `the checkpoint of step ${step} is not in the journal: its coordinator was killed before it said so`,
      );
  }
  for (const step of [...run.checkpoints.keys()].sort((a, b) => a - b)) {
    if (seen.has(step) || prunedMeanwhile(step)) continue;
    findings.problem(
      'CHECKPOINT_MISSING',
      `the journal has a checkpoint of step ${step}, ${join(checkpoints, checkpointFolderName(step))} does not`,
      step,
    );
  }
  return found;
}

async function auditCheckpoint(
  path: string,
  step: number,
  run: PlayedRun,
  plan: RunPlan,
  findings: Findings,
  prunedMeanwhile: (step: number) => boolean,
): Promise<AuditedCheckpoint | undefined> {
  let manifest: CheckpointManifest;
  try {
    manifest = await verifyCheckpoint(path, plan.runId);
  } catch (error) {
    if (!(error instanceof VideoloomError)) throw error;
    if (prunedMeanwhile(step)) return undefined;
    findings.problem('CHECKPOINT_DAMAGED', messageOf(error), step);
    return { step, sizeBytes: 0, isWhole: false };
  }
  for (const [what, has, expected] of [
    ['data position', manifest.dataPosition, positionOf(plan, step + 1, 0, 0)],
    ['seed', manifest.seed, plan.seed],
    ['config digest', manifest.configDigest, plan.configDigest],
    ['dataset digest', manifest.datasetDigest, plan.datasetDigest],
    ['generation', manifest.generation, run.checkpoints.get(step) ?? manifest.generation],
  ] as const) {
    if (has !== expected)
      findings.problem(
        'CHECKPOINT_OF_ANOTHER_RUN',
        `the checkpoint of step ${step} has ${what} ${has}; of this run it would have ${expected}`,
        step,
      );
  }
  const sizeBytes = manifest.files.reduce((sum, file) => sum + file.sizeBytes, 0);
  return { step, sizeBytes, isWhole: true };
}
