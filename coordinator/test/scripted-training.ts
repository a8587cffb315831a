/** Training without a model, for tests: the "weights" are a digest over all samples so far, so that a lost, doubled or
 * swapped sample shows in them as it would in real ones. */

import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { checkpointFolderName, CHECKPOINTS_FOLDER } from '../../proto/checkpoint-manifest.ts';
import { VideoloomError } from '../../proto/errors.ts';
import type { Generation } from '../../proto/gen/videoloom/v1/run.ts';
import type { RunPlan } from '../../proto/run-plan.ts';
import { positionOf, sampleAt } from '../../proto/sample-order.ts';
import { ScriptedWorker } from './scripted-worker.ts';

/** Weights after a step. */
interface Weights {
  readonly step: number;
  readonly digest: string;
  /** The generation that committed the step. */
  readonly committedIn: number;
}

/** One training worker; `weights` is what it holds in memory. */
export interface Trainee {
  readonly workerId: string;
  weights: Weights;
  /** Weights after the step that it has voted for. */
  voted: Weights | undefined;
}

/** A worker as a fresh process has it. */
export function newTrainee(workerId: string): Trainee {
  return { workerId, weights: { step: 0, digest: 'init', committedIn: 0 }, voted: undefined };
}

/** What the weights are after the step behind `weights`. */
function afterStep(plan: RunPlan, { step, digest }: Weights, generation = 0): Weights {
  const order = { seed: plan.seed, numSamples: plan.numTrainSamples };
  const hash = createHash('sha256').update(digest);
  for (let microbatch = 0; microbatch < plan.microbatches; microbatch++) {
    for (let i = 0; i < plan.microbatchSize; i++) {
      hash.update(`${sampleAt(order, positionOf(plan, step + 1, microbatch, i)).sample},`);
    }
  }
  return { step: step + 1, digest: hash.digest('hex'), committedIn: generation };
}

/** The weights of an undisturbed run. */
export function expectedDigest(plan: RunPlan): string {
  let weights = newTrainee('').weights;
  while (weights.step < plan.totalSteps) weights = afterStep(plan, weights);
  return weights.digest;
}

/** Trains until the run is over, through losses of peers and coordinator. `peers` are asked for weights. */
export async function trainToTheEnd(
  address: string,
  folder: string,
  plan: RunPlan,
  trainee: Trainee,
  { peers, stepMs, signal }: { peers: readonly Trainee[]; stepMs: number; signal: AbortSignal },
): Promise<void> {
  while (!signal.aborted) {
    let worker: ScriptedWorker | undefined;
    try {
      worker = await ScriptedWorker.join(address, trainee.workerId, {
        stateStep: trainee.weights.step,
        stateIn: trainee.weights.committedIn,
      });
      for (let number = 0; ;) {
        const generation = await worker.generation((candidate) => candidate.number > number);
        number = generation.number;
        try {
          await trainGeneration(worker, folder, plan, trainee, {
            generation,
            peers,
            stepMs,
            signal,
          });
          return;
        } catch (error) {
          if (!(error instanceof VideoloomError) || error.code !== 'STALE_GENERATION') throw error;
        }
      }
    } catch (error) {
      if (error instanceof VideoloomError && error.code === 'RUN_FINISHED') return;
      if (error instanceof VideoloomError && !error.retryable) throw error;
      await sleep(50);
    } finally {
      await worker?.leave();
    }
  }
}

async function trainGeneration(
  worker: ScriptedWorker,
  folder: string,
  plan: RunPlan,
  trainee: Trainee,
  {
    generation,
    peers,
    stepMs,
    signal,
  }: {
    generation: Generation;
    peers: readonly Trainee[];
    stepMs: number;
    signal: AbortSignal;
  },
): Promise<void> {
  const { number, members } = generation;
  const isReached = (weights: Weights | undefined): boolean => isOf(generation, weights);
  const self = members.find(({ workerId }) => workerId === trainee.workerId);
  if (self === undefined) return trainNobody();
  if (isReached(trainee.voted)) trainee.weights = trainee.voted!;
  if (!isReached(trainee.weights)) trainee.weights = await reach(folder, generation, peers);
  while (trainee.weights.step < plan.totalSteps) {
    const next = afterStep(plan, trainee.weights, number);
    await worker.lease(number, next.step);
    await sleep(stepMs);
    signal.throwIfAborted();
    trainee.voted = next;
    const gradientNorm = parseInt(next.digest.slice(0, 12), 16);
    const { checkpoint, last } = await worker.vote(number, next.step, { gradientNorm });
    trainee.weights = next;
    if (checkpoint) await save(worker, folder, generation, self.rank, next);
    if (last && next.step < plan.totalSteps) return;
  }
  await worker.reportResult(number, { weightsSha256: trainee.weights.digest });
}

function trainNobody(): never {
  throw new VideoloomError('STALE_GENERATION', 'not in this one');
}

/** Whether weights are those that a generation goes on from. */
function isOf({ committedStep, committedIn }: Generation, weights: Weights | undefined): boolean {
  return weights?.step === committedStep && weights.committedIn === committedIn;
}

async function reach(
  folder: string,
  generation: Generation,
  peers: readonly Trainee[],
): Promise<Weights> {
  const { committedStep, committedIn, restoreStep } = generation;
  if (committedStep === 0) return newTrainee('').weights;
  if (committedStep === restoreStep) {
    const path = join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(restoreStep), 'model-0');
    return { step: restoreStep, digest: await readFile(path, 'utf8'), committedIn };
  }
  for (const { weights, voted } of peers) {
    if (isOf(generation, weights)) return weights;
    if (isOf(generation, voted)) return voted!;
  }
  throw new Error(`nobody holds step ${committedStep}`);
}

async function save(
  worker: ScriptedWorker,
  folder: string,
  { number }: Generation,
  rank: number,
  { step, digest }: Weights,
): Promise<void> {
  const path = join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step));
  await mkdir(path, { recursive: true });
  await writeFile(join(path, `model-${rank}`), digest);
  const sha256 = createHash('sha256').update(digest).digest('hex');
  await worker.reportPart(number, step, [
    { name: `model-${rank}`, sizeBytes: digest.length, sha256 },
  ]);
}
