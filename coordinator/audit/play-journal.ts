import { createHash } from 'node:crypto';
import { messageOf } from '../../proto/errors.ts';
import type { Member } from '../../proto/gen/videoloom/v1/run.ts';
import type { RunPlan } from '../../proto/run-plan.ts';
import { positionOf } from '../../proto/sample-order.ts';
import type { JournaledSkip, JournalEvent } from '../journal-events.ts';
import { checkSamePlan } from '../plan-check.ts';
import type { Findings } from './findings.ts';

type EventOf<Type extends JournalEvent['type']> = Extract<JournalEvent, { type: Type }>;

/** The part of a commit that the ledger is about. */
export interface CountedCommit {
  readonly firstPosition: number;
  readonly numSamples: number;
  readonly skipped: readonly JournaledSkip[];
}

/** What the journal says of a run, and how often it says it. */
export interface PlayedRun {
  /** As it was first. */
  plan: RunPlan | undefined;
  /** The last step that counts. */
  committedStep: number;
  highestStep: number;
  /** Commits that count, by step; more than one is one too many. */
  readonly commits: Map<number, CountedCommit[]>;
  /** Commits of steps that had been committed before. */
  numRedone: number;
  /** Times that the run went back to an earlier step. */
  numRestored: number;
  generation: number;
  numLost: number;
  /** Checkpoints that were completed and neither pruned nor found damaged: generation by step. */
  readonly checkpoints: Map<number, number>;
  /** Steps of all that were ever begun to be pruned. */
  readonly pruned: Set<number>;
  finished: EventOf<'finished'> | undefined;
  readonly engines: Set<string>;
  readonly totalSteps: Set<number>;
  /** Of what a step computed, when it was first committed. */
  readonly fingerprints: Map<number, string>;
}

export function newPlayedRun(): PlayedRun {
  return {
    plan: undefined,
    ...{ committedStep: 0, highestStep: 0, numRedone: 0, numRestored: 0 },
    ...{ generation: 0, numLost: 0, finished: undefined },
    commits: new Map(),
    checkpoints: new Map(),
    pruned: new Set(),
    engines: new Set(),
    totalSteps: new Set(),
    fingerprints: new Map(),
  };
}

/** Adds an event in the order of the journal; whatever contradicts the events before it is found. */
export function playEvent(run: PlayedRun, event: JournalEvent, findings: Findings): void {
  switch (event.type) {
    case 'opened':
      open(run, event.plan, findings);
      break;
    case 'worker-joined':
      run.engines.add(event.engine);
      break;
    case 'worker-lost':
      run.numLost++;
      break;
    case 'generation':
      openGeneration(run, event, findings);
      break;
    case 'restored':
      restore(run, event.step, findings);
      break;
    case 'commit':
      commit(run, event, findings);
      break;
    case 'checkpoint':
      run.checkpoints.set(event.step, event.generation);
      break;
    case 'checkpoint-pruned':
      run.checkpoints.delete(event.step);
      run.pruned.add(event.step);
      break;
    case 'checkpoint-damaged':
      run.checkpoints.delete(event.step);
      findings.note(
        `the checkpoint of step ${event.step} was found damaged and passed over: ${event.message}`,
      );
      break;
    case 'finished':
      run.finished = event;
      if (event.step !== run.committedStep)
        findings.problem(
          'COMMIT_MISSING',
          `the run finished with step ${event.step}, but step ${run.committedStep} is the last one that the journal has`,
          event.step,
        );
      break;
    default:
      break;
  }
}

function open(run: PlayedRun, plan: RunPlan, findings: Findings): void {
  run.totalSteps.add(plan.totalSteps);
  if (run.plan === undefined) {
    run.plan = plan;
    return;
  }
  try {
    checkSamePlan(run.plan, plan, 'this folder');
  } catch (error) {
    findings.problem('PLAN_CHANGED', messageOf(error));
  }
}

function openGeneration(
  run: PlayedRun,
  { generation, committedStep, members }: EventOf<'generation'>,
  findings: Findings,
): void {
  const wrong = (why: string): void => {
    findings.problem('GENERATION_INVALID', `generation ${generation} ${why}`);
  };
  if (generation <= run.generation) wrong(`was opened after generation ${run.generation}`);
  if (committedStep !== run.committedStep)
    wrong(`goes on after step ${committedStep}, but step ${run.committedStep} is the last one`);
  if (run.plan !== undefined && !isPartition(members, run.plan.microbatches))
    wrong(`does not give each of the ${run.plan.microbatches} microbatches to one member`);
  run.generation = Math.max(run.generation, generation);
}

function isPartition(members: readonly Member[], microbatches: number): boolean {
  const sorted = [...members].sort((a, b) => a.firstMicrobatch - b.firstMicrobatch);
  let next = 0;
  for (const { firstMicrobatch, numMicrobatches } of sorted) {
    if (firstMicrobatch !== next) return false;
    next += numMicrobatches;
  }
  return next === microbatches;
}

function restore(run: PlayedRun, step: number, findings: Findings): void {
  if (step > run.committedStep) missing(run, step, findings, 'the run went on from');
  else run.numRestored++;
  for (const later of [...run.commits.keys()]) if (later > step) run.commits.delete(later);
  run.committedStep = step;
}

function commit(run: PlayedRun, event: EventOf<'commit'>, findings: Findings): void {
  const { step, generation, firstPosition, numSamples, skipped } = event;
  if (generation !== run.generation)
    findings.problem(
      'COMMIT_WRONG_GENERATION',
      `step ${step} was committed by generation ${generation} while ${run.generation} was the newest`,
      step,
    );
  if (step > run.committedStep + 1) missing(run, step - 1, findings, 'the next commit is after');
  if (step <= run.committedStep)
    findings.problem(
      'COMMIT_DOUBLED',
      `step ${step} is committed a second time, and nothing says that the run went back before it`,
      step,
    );
  if (run.plan !== undefined) {
    const { microbatches, microbatchSize } = run.plan;
    const [first, count] = [positionOf(run.plan, step, 0, 0), microbatches * microbatchSize];
    if (firstPosition !== first || numSamples !== count)
      findings.problem(
        'COMMIT_WRONG_RANGE',
        `step ${step} says that it used places ${rangeText(firstPosition, numSamples)} of the order; ` +
          `its own are ${rangeText(first, count)}`,
        step,
      );
  }
  const fingerprint = fingerprintOf(event);
  const before = run.fingerprints.get(step);
  if (before === undefined) run.fingerprints.set(step, fingerprint);
  else {
    run.numRedone++;
    if (before !== fingerprint) redoneDifferently(run, step, findings);
  }
  const own = run.commits.get(step) ?? [];
  own.push({ firstPosition, numSamples, skipped });
  run.commits.set(step, own);
  run.committedStep = Math.max(run.committedStep, step);
  run.highestStep = Math.max(run.highestStep, step);
}

function missing(run: PlayedRun, last: number, findings: Findings, how: string): void {
  const first = run.committedStep + 1;
  findings.problem(
    'COMMIT_MISSING',
    `${first === last ? `step ${first} has` : `steps ${first} to ${last} have`} no commit in the journal; ${how} step ${last}`,
    first,
  );
}

/** The same step gives the same bits again, on the same engine and by the same schedule. */
function redoneDifferently(run: PlayedRun, step: number, findings: Findings): void {
  const text = `step ${step} was computed again with other losses, gradient or substitutes than the first time`;
  if (run.engines.size > 1) {
    findings.note(`${text}; the run had several engines: ${[...run.engines].sort().join(', ')}`);
  } else if (run.totalSteps.size > 1) {
    findings.note(`${text}; the length of the run, which its schedule depends on, was changed`);
  } else findings.problem('COMMIT_REDONE_DIFFERENTLY', text, step);
}

function fingerprintOf(event: EventOf<'commit'>): string {
  const { objectives, gradientNorm, clips, tokens, skipped } = event;
  const computed = [
    objectives.map(({ name, lossSum, count, correct }) => [name, lossSum, count, correct].join()),
    ...[gradientNorm, clips, tokens],
    skipped.map(({ place, sample, substitute }) => [place, sample, substitute]),
  ];
  // As text: no number is the same as another then, NaN and infinities included.
  return createHash('sha256').update(computed.map(String).join(';')).digest('base64').slice(0, 16);
}

function rangeText(first: number, count: number): string {
  return `${first} to ${first + count - 1}`;
}
