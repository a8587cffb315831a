import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { checkpointFolderName, CHECKPOINTS_FOLDER } from '../../proto/checkpoint-manifest.ts';
import { messageOf } from '../../proto/errors.ts';
import { exists } from '../../proto/exists.ts';
import { readRunPlan, SUMMARY_FILE, type RunPlan } from '../../proto/run-plan.ts';
import { openStepOrder } from '../../proto/step-order.ts';
import { JOURNAL_FILE, readJournal, type JournalRecord } from '../journal.ts';
import { LOCK_FILE } from '../../proto/run-lock.ts';
import { checkSamePlan } from '../plan-check.ts';
import { auditCheckpoints, listCheckpoints, type AuditedCheckpoint } from './audit-checkpoints.ts';
import { auditSamples, type SampleAudit } from './audit-samples.ts';
import { collectFindings, type Findings, type Problem } from './findings.ts';
import { newPlayedRun, playEvent, type PlayedRun } from './play-journal.ts';
import { damagedPieces, scanJournal, type JournalScan } from './scan-journal.ts';

/** What an audit has found out about a run. */
export interface RunAudit {
  readonly runId: string;
  /** Nothing contradicts what a run promises. */
  readonly isFaultless: boolean;
  /** A coordinator has it in hand: what it does while the audit reads is not looked at. */
  readonly isLive: boolean;
  readonly totalSteps: number;
  readonly committedStep: number;
  readonly numRedone: number;
  readonly numRestored: number;
  readonly numGenerations: number;
  readonly numWorkersLost: number;
  readonly journal: JournalScan;
  readonly samples: SampleAudit;
  readonly checkpoints: readonly AuditedCheckpoint[];
  /** Of the result, and of the parameters in the last step's checkpoint; absent before the end. */
  readonly weights?: { readonly reported: string; readonly kept: string | undefined };
  readonly numProblems: number;
  /** Not all of many of one kind. */
  readonly problems: readonly Problem[];
  readonly notes: readonly string[];
}

/** What an audit takes from those who know more than the coordinator. */
export interface AuditOptions {
  /** SHA-256 of the parameters in a checkpoint's folder, as workers report it of theirs. */
  readonly weightsDigest: (checkpointFolder: string) => Promise<string>;
  /** Of the index of samples beside the plan, where there is one. */
  readonly dataset?: { readonly digest: string; readonly numTrainSamples: number };
}

/**
 * Recomputes from journal, plan and checkpoints what a run did: that its journal is whole, that each sample was used
 * once an epoch, that checkpoints are what was written, and that the result is in them. Reads only; the run may live.
 * @throws UsageError RUN_PLAN_MISSING, RUN_PLAN_INVALID; VideoloomError COSTS_MISSING, COSTS_CHANGED
 */
export async function auditRun(folder: string, options: AuditOptions): Promise<RunAudit> {
  const plan = await readRunPlan(folder);
  const findings = collectFindings();
  const isLive = await exists(join(folder, LOCK_FILE));

  // Before the journal: a run that lives goes on while it is read, and would have checkpoints of later steps.
  const listed = await listCheckpoints(folder);
  const summary = await readSummary(folder);

  // --- The journal.
  const run = newPlayedRun();
  const path = join(folder, JOURNAL_FILE);
  let journal: JournalScan = { numRecords: 0, numEpochs: 0, numFenced: 0 };
  if (await exists(path)) {
    const play = (record: JournalRecord): void => {
      playEvent(run, record, findings);
    };
    journal = scanJournal(path, play, findings);
    for (const name of await damagedPieces(path))
      findings.note(`${name} holds what a coordinator cut off the journal because it was damaged`);
  } else findings.problem('JOURNAL_MISSING', `there is no ${path}`);
  checkPlans(run, plan, folder, findings);

  // --- The samples.
  const { dataset } = options;
  if (dataset !== undefined && dataset.digest !== plan.datasetDigest)
    findings.problem(
      'DATASET_CHANGED',
      `the index beside the plan has digest ${dataset.digest}, the run was made for ${plan.datasetDigest}`,
    );
  if (dataset !== undefined && dataset.numTrainSamples !== plan.numTrainSamples)
    findings.problem(
      'DATASET_CHANGED',
      `the index beside the plan has ${dataset.numTrainSamples} samples to train on, the plan ${plan.numTrainSamples}`,
    );
  const order = await openStepOrder(folder, plan);
  let samples: SampleAudit;
  try {
    samples = auditSamples(run, plan, order, findings);
  } finally {
    order.close();
  }

  // --- The checkpoints, and the result in the last of them.
  /** What a coordinator that lives has said since the journal was read. */
  const said = (type: 'checkpoint' | 'checkpoint-pruned', step: number): boolean => {
    let isSaid = false;
    if (isLive)
      readJournal(path, (record) => {
        if (record.type === type && record.step === step) isSaid = true;
      });
    return isSaid;
  };
  const meanwhile = {
    pruned: (step: number) =>
      (run.pruned.has(step) && !run.checkpoints.has(step)) || said('checkpoint-pruned', step),
    completed: (step: number) => said('checkpoint', step),
  };
  const place = { listed, meanwhile };
  const checkpoints = await auditCheckpoints(folder, run, plan, findings, place);
  const weights = await auditResult(folder, run, { checkpoints, summary, ...options }, findings);

  return {
    runId: plan.runId,
    ...{ isFaultless: findings.numProblems() === 0, isLive, totalSteps: plan.totalSteps },
    committedStep: run.committedStep,
    ...{ numRedone: run.numRedone, numRestored: run.numRestored },
    ...{ numGenerations: run.generation, numWorkersLost: run.numLost },
    ...{ journal, samples, checkpoints },
    ...(weights === undefined ? {} : { weights }),
    ...{ numProblems: findings.numProblems(), problems: findings.problems, notes: findings.notes },
  };
}

function checkPlans(run: PlayedRun, plan: RunPlan, folder: string, findings: Findings): void {
  if (run.plan === undefined) return;
  try {
    checkSamePlan(run.plan, plan, folder);
  } catch (error) {
    findings.problem('PLAN_CHANGED', messageOf(error));
  }
}

async function auditResult(
  folder: string,
  { finished, committedStep, highestStep }: PlayedRun,
  {
    checkpoints,
    summary,
    weightsDigest,
  }: AuditOptions & {
    readonly checkpoints: readonly AuditedCheckpoint[];
    /** The SHA-256 of the weights in the summary, read before the journal. */
    readonly summary: string | undefined;
  },
  findings: Findings,
): Promise<RunAudit['weights']> {
  if (finished === undefined && summary !== undefined)
    findings.problem(
      'RESULT_DIFFERS',
      `${SUMMARY_FILE} has a result, the journal has none and ends with step ${highestStep}`,
    );
  // A run that was made longer afterwards has a result, but not its own yet.
  if (finished === undefined || finished.step !== committedStep) return undefined;
  const { step, weightsSha256: reported } = finished;
  if (summary !== undefined && summary !== reported)
    findings.problem(
      'RESULT_DIFFERS',
      `${SUMMARY_FILE} says that the weights have SHA-256 ${summary}, the journal says ${reported}`,
      step,
    );
  const last = checkpoints.find((checkpoint) => checkpoint.step === step);
  if (last?.isWhole !== true) {
    findings.problem(
      'RESULT_NOT_KEPT',
      `the run finished with step ${step}, of which there is no whole checkpoint: its weights ${reported} cannot be had`,
      step,
    );
    return { reported, kept: undefined };
  }
  const kept = await weightsDigest(join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)));
  if (kept !== reported)
    findings.problem(
      'RESULT_DIFFERS',
      `the workers reported weights with SHA-256 ${reported}, the checkpoint of step ${step} has ${kept}`,
      step,
    );
  return { reported, kept };
}

async function readSummary(folder: string): Promise<string | undefined> {
  const text = await readFile(join(folder, SUMMARY_FILE), 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    return String((JSON.parse(text) as { weightsSha256?: unknown }).weightsSha256);
  } catch {
    return 'nothing that can be read';
  }
}
