import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  checkpointStepOf,
  hasManifest,
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

/** The folders of checkpoints at one moment. */
export interface ListedCheckpoints {
  /** What has a manifest, by the name of its folder. */
  readonly complete: ReadonlySet<string>;
  /** All names, sorted. */
  readonly names: readonly string[];
}

/**
 * Lists the checkpoints of a run that may live. What a coordinator completes, it has committed before: whoever reads the
 * journal after this finds in it all that led to what is listed.
 */
export async function listCheckpoints(folder: string): Promise<ListedCheckpoints> {
  const checkpoints = join(folder, CHECKPOINTS_FOLDER);
  const names = await readdir(checkpoints).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  });
  const complete = new Set<string>();
  for (const name of names) if (await hasManifest(join(checkpoints, name))) complete.add(name);
  return { complete, names: names.sort() };
}

/** What the coordinator of a run that lives did with a checkpoint while the audit was reading. */
export interface Meanwhile {
  readonly pruned: (step: number) => boolean;
  readonly completed: (step: number) => boolean;
}

/**
 * Reads every checkpoint of a run whole and compares it with its manifest, with the plan and with the journal.
 * @param listed the checkpoints as they were before the journal was read
 */
export async function auditCheckpoints(
  folder: string,
  run: PlayedRun,
  plan: RunPlan,
  findings: Findings,
  { listed, meanwhile }: { readonly listed: ListedCheckpoints; readonly meanwhile: Meanwhile },
): Promise<AuditedCheckpoint[]> {
  const checkpoints = join(folder, CHECKPOINTS_FOLDER);
  const found: AuditedCheckpoint[] = [];
  const seen = new Set<number>();
  // What the journal tells of was completed before it was read, though perhaps after the checkpoints were listed.
  const told = [...run.checkpoints.keys()].map(checkpointFolderName);
  for (const name of [...new Set([...listed.names, ...told])].sort()) {
    const step = checkpointStepOf(name);
    if (step === undefined) {
      if (name.startsWith('damaged-'))
        findings.note(`${join(CHECKPOINTS_FOLDER, name)} was set aside`);
      continue;
    }
    const path = join(checkpoints, name);
    const isKnown = run.checkpoints.has(step);
    if (!isKnown && !listed.complete.has(name)) {
      if (!meanwhile.completed(step))
        findings.note(`${join(CHECKPOINTS_FOLDER, name)} was never completed`);
      continue;
    }
    // Removed since it was listed, or never there; one that the journal has is told of below.
    if (!(await hasManifest(path))) continue;
    seen.add(step);
    const checkpoint = await auditCheckpoint(path, step, run, plan, findings, meanwhile.pruned);
    if (checkpoint !== undefined) found.push(checkpoint);
    if (step > run.highestStep)
      findings.problem(
        'COMMIT_MISSING',
        `there is a checkpoint of step ${step}, but the journal ends with the commit of step ${run.highestStep}`,
        step,
      );
    else if (!isKnown && checkpoint?.isWhole === true && !meanwhile.completed(step))
      findings.note(
        `the checkpoint of step ${step} is not in the journal: its coordinator was killed before it said so`,
      );
  }
  for (const step of [...run.checkpoints.keys()].sort((a, b) => a - b)) {
    if (seen.has(step) || meanwhile.pruned(step)) continue;
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
