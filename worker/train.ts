import { join } from 'node:path';
import type { Log } from '../proto/log.ts';
import { checkpointFolderName, CHECKPOINTS_FOLDER } from '../proto/checkpoint-manifest.ts';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import type { Figure, Generation, ObjectiveSum } from '../proto/gen/videoloom/v1/run.ts';
import { PROTOCOL_VERSION } from '../proto/protocol.ts';
import type { Security } from '../proto/security.ts';
import { timeLimits } from '../proto/time-limits.ts';
import type { BlackBox } from './black-box/black-box.ts';
import { recordPlans } from './black-box/recorders.ts';
import { recordState } from './black-box/weights.ts';
import { openBatchSource, uploadBatch, type BatchSource, type StepBatches } from './batches.ts';
import { compareGlobalBatch, type ComparedRows } from './contrast.ts';
import { openCheckpointWriter } from './checkpoint-writer.ts';
import { loadCheckpoint } from './checkpoint/load.ts';
import { prepareSnapshots } from './checkpoint/snapshot.ts';
import { weightsSha256 } from './checkpoint/hash.ts';
import type { Engine } from './backend/engine.ts';
import { evaluateHeldOut } from './eval/held-out.ts';
import type { Ledger } from './ledger.ts';
import type { WorkerMetrics } from './metrics.ts';
import { adamWScalars } from './optim/adamw.ts';
import { learningRateAt } from './optim/schedule.ts';
import type { Collectives } from './parallel/collectives.ts';
import { parameterShardings, rowSharding } from './parallel/sharding.ts';
import { GradientAccumulator, type MicrobatchRange } from './parallel/tree-sum.ts';
import { compilePrograms } from './programs.ts';
import { fetchState } from './peer-state.ts';
import type { Run } from './run.ts';
import { openSession } from './session.ts';
import {
  disposeState,
  initState,
  parameterNames,
  readState,
  stateFromHost,
  type HostState,
  type TrainingState,
} from './state.ts';
import { disposeTree, leavesOf, numElements, type TensorTree } from './tree.ts';

export interface TrainOptions {
  readonly run: Run;
  readonly engine: Engine;
  readonly collectives: Collectives;
  readonly coordinatorAddress: string;
  /** What connections to coordinator and peers need. */
  readonly security: Security;
  readonly workerId: string;
  readonly serviceAddress: string;
  /** Where peers and operators see the state that this worker holds. */
  readonly publish: (state: TrainingState | undefined, generation: number) => void;
  readonly ledger: Ledger;
  readonly blackBox: BlackBox;
  readonly metrics: WorkerMetrics;
  readonly log: Log;
}

/**
 * Trains until the run's last step, from set-up to the reported result. A lost peer, a new member or a restarted
 * coordinator costs the running step, which is computed again with the same samples and the same randomness.
 *
 * @throws VideoloomError what cannot be mended by another generation.
 */
export async function train(options: TrainOptions): Promise<void> {
  const { run, engine, collectives, ledger, log } = options;
  const { config, system } = run;
  const objectives = Object.keys(system.objectives);

  // --- Set-up: programs, the form of the state, the session.
  let state: TrainingState = initState(system, config.train.seed);
  const programs = compilePrograms(engine, system, config.optimizer, {
    parameters: parameterShardings(engine.mesh, config.parallel, leavesOf(state.params)),
    rows: rowSharding(engine.mesh),
  });
  const frozen: TensorTree = uploadBatch(engine, {
    arrays: system.frozen,
    counts: {},
    numTokens: 0,
  });
  const numParameters = numElements(state.params);
  const memory = collectives.memoryFor(numParameters, config.train.microbatches);
  const { gradientPrecision } = config.cluster;
  const accumulator = new GradientAccumulator(numParameters, memory, gradientPrecision);
  /** The reduced gradient of the step after the state's, once voted for: the vote may win while its answer is lost. */
  let voted:
    { readonly step: number; readonly gradient: Float32Array; readonly norm: number } | undefined;

  const session = await openSession({
    coordinatorAddress: options.coordinatorAddress,
    security: options.security,
    describe: () => ({
      protocolVersion: PROTOCOL_VERSION,
      runId: run.plan.runId,
      workerId: options.workerId,
      host: run.host,
      tensorAddress: collectives.address,
      serviceAddress: options.serviceAddress,
      engine: `${engine.name}/${engine.platform}`,
      stateStep: state.step,
    }),
    activity: () => ({ ...ledger.pulse(), step: state.step, cpuMs: processorMs() }),
    reconnectTimeoutMs: RECONNECT_TIMEOUT_MS,
    log,
  });
  const checkpoints = openCheckpointWriter({
    engine,
    runFolder: run.folder,
    session,
    log,
    metrics: options.metrics,
  });

  let canSnapshot = false;
  /** Parameters and moments after `step`, by the reduced gradient that every worker holds. */
  const update = async (step: number, gradient: Float32Array, norm: number): Promise<void> => {
    const learningRate = learningRateAt(config.optimizer, step, run.plan.totalSteps);
    const gradientScale = norm > config.optimizer.clipNorm ? config.optimizer.clipNorm / norm : 1;
    const scalars = adamWScalars(config.optimizer, { step, learningRate, gradientScale });
    const given = [
      state.params,
      state.optimizer,
      programs.uploadGradient(gradient, state.params),
      engine.upload(scalars, [scalars.length]),
    ] as const;
    if (!canSnapshot) {
      canSnapshot = true;
      const params = leavesOf(state.params).map(([, tensor]) => tensor);
      prepareSnapshots(params, () => programs.update.lower(...given)).catch((error: unknown) => {
        log.warn(`the update after a checkpoint is not compiled yet: ${messageOf(error)}`);
      });
    }
    const next = await programs.update(...given);
    state = { step, params: next.params, optimizer: next.state };
    voted = undefined;
  };

  try {
    ledger.enter('wait');
    let generation = await session.generationAfter(0);
    for (;;) {
      const scope = session.scopeOf(generation);
      // A peer that stands still closes nothing: that the run goes on without it is learned from the coordinator alone.
      const drop = (): void => {
        collectives.abort('the generation is over');
      };
      scope.addEventListener('abort', drop, { once: true });
      try {
        await trainGeneration(generation, scope);
        return;
      } catch (error) {
        if (!isMembershipChange(error, scope)) throw error;
        log.warn(
          { generation: generation.number, step: state.step },
          `generation over: ${messageOf(error)}`,
        );
        collectives.abort('the generation is over');
        ledger.enter('wait');
        // The coordinator opens the next generation when it sees a member go. Where it sees none go, because only
        // the workers have lost each other, this one joins anew.
        const renewal = setTimeout(() => {
          session.renew();
        }, timeLimits(run.plan).renewMs);
        try {
          const limit = AbortSignal.timeout(RECONNECT_TIMEOUT_MS);
          generation = await session.generationAfter(generation.number, limit);
        } finally {
          clearTimeout(renewal);
        }
      }
    }
  } catch (error) {
    // The run ended without this worker, which was a spare or was being started again.
    if (error instanceof VideoloomError && RUN_OVER_CODES.has(error.code)) return;
    throw error;
  } finally {
    await checkpoints.close();
    session.close();
  }

  /** Trains with one set of members until the run's end; throws when the membership changes. */
  async function trainGeneration(generation: Generation, scope: AbortSignal): Promise<void> {
    const { members, number } = generation;
    const self = members.find(({ workerId }) => workerId === options.workerId);
    if (self === undefined) {
      throw new VideoloomError('GENERATION_CHANGED', 'this worker waits as a spare', {
        retryable: true,
      });
    }
    log.info(
      { generation: number, rank: self.rank, world_size: members.length },
      'generation opened',
    );

    // --- The state that the generation begins from.
    ledger.enter('setup');
    await reachState(generation, scope);
    options.publish(state, number);
    scope.throwIfAborted();
    await collectives.configure(generation);

    // --- Steps.
    const batches = openBatchSource({
      system,
      loader: run.trainLoader,
      samples: run.index.train,
      lease: async (firstStep, numSteps) => {
        const leases = await session.lease(generation, firstStep, numSteps, scope);
        recordPlans(options.blackBox, number, leases);
        return leases;
      },
      prefetchSteps: config.data.prefetchSteps,
      prefetchBytes: config.data.prefetchMebibytes * 2 ** 20,
      onTake: (prefetch) => {
        options.metrics.batchTaken(prefetch);
      },
      lastStep: run.plan.totalSteps,
      signal: scope,
    });
    let last = state.step >= run.plan.totalSteps;
    while (!last) {
      const step = state.step + 1;
      const { batch, sums, gradient, norm } = await reduceStep(
        step,
        { range: self, members },
        batches,
      );
      scope.throwIfAborted();

      ledger.enter('wait');
      voted = { step, gradient, norm };
      const learningRate = learningRateAt(config.optimizer, step, run.plan.totalSteps);
      const numTokens = batch.microbatches.reduce((sum, { batch: { numTokens: n } }) => sum + n, 0);
      const time = ledger.unreported();
      const vote = await session.commit(
        {
          generation: number,
          step,
          objectives: sums,
          gradientNorm: norm,
          learningRate,
          numClips: batch.numClips,
          numTokens,
          skipped: [...batch.skipped],
          time,
        },
        scope,
      );
      ledger.markReported();

      ledger.enter('compute');
      await update(step, gradient, norm);
      await recordState(options.blackBox, state, number);
      options.publish(state, number);
      options.metrics.stepCommitted({
        step,
        sums,
        learningRate,
        norm,
        numClips: batch.numClips,
        numTokens,
      });

      if (vote.checkpoint) {
        ledger.enter('checkpoint');
        await checkpoints.begin(state, {
          generation: number,
          rank: self.rank,
          worldSize: members.length,
        });
      }
      last = vote.last;
    }
    ledger.enter('checkpoint');
    await checkpoints.settled();

    // --- Result. A stopped run has none: it is resumed later.
    ledger.enter('evaluate');
    const finished = state.step >= run.plan.totalSteps;
    const figures = finished ? await evaluate(self.rank, members.length, scope) : [];
    const host = await readState(state, parameterNames(state));
    const result = {
      generation: number,
      figures,
      weightsSha256: weightsSha256(host),
      time: ledger.unreported(),
    };
    ledger.enter('wait');
    await session.reportResult(result, scope);
    log.info({ step: state.step, weights_sha256: result.weightsSha256 }, 'finished');
  }

  /** The state after `generation.committedStep`: held already, one voted step away, a peer's, or a checkpoint's. */
  async function reachState(generation: Generation, scope: AbortSignal): Promise<void> {
    const { committedStep, restoreStep } = generation;
    if (voted?.step === committedStep && state.step === committedStep - 1) {
      await update(committedStep, voted.gradient, voted.norm);
    }
    voted = undefined;
    if (state.step === committedStep) return;
    const old = state;
    if (committedStep === 0) {
      state = initState(system, config.train.seed);
    } else if (restoreStep === committedStep) {
      log.info({ step: restoreStep }, 'restoring from the checkpoint');
      state = stateFromHost(engine, state, committedStep, await readCheckpoint(generation, scope));
    } else {
      log.info({ step: committedStep }, 'taking the state from a peer');
      const peers = generation.members.filter(({ workerId }) => workerId !== options.workerId);
      const host = await fetchState(
        peers,
        { generation: generation.number, step: committedStep },
        { signal: scope, security: options.security },
      );
      state = stateFromHost(engine, state, committedStep, host);
    }
    disposeState(old);
  }

  /**
   * The checkpoint that a generation goes on from. The coordinator is told of one that cannot be read: it opens another
   * generation where it finds the same; where it does not, one more reading decides.
   */
  async function readCheckpoint(generation: Generation, scope: AbortSignal): Promise<HostState> {
    const { number, restoreStep: step } = generation;
    const folder = join(run.folder, CHECKPOINTS_FOLDER, checkpointFolderName(step));
    try {
      return await loadCheckpoint(folder);
    } catch (error) {
      if (!(error instanceof VideoloomError)) throw error;
      log.error({ step, code: error.code }, error.message);
      const damage = { generation: number, step, message: error.message };
      if (await session.reportDamagedCheckpoint(damage, scope)) return await loadCheckpoint(folder);
      throw new VideoloomError('GENERATION_CHANGED', error.message, {
        cause: error,
        retryable: true,
      });
    }
  }

  /** Sums and gradient of the global batch of a step. */
  async function reduceStep(
    step: number,
    { range, members }: { range: MicrobatchRange; members: readonly MicrobatchRange[] },
    batches: BatchSource,
  ): Promise<{ batch: StepBatches; sums: ObjectiveSum[]; gradient: Float32Array; norm: number }> {
    ledger.enter('decode');
    const batch = await batches.take(step);

    // Each mean is over the global batch: its count is known before any gradient is computed.
    ledger.enter('wait');
    const own = Float64Array.from(objectives, (name) =>
      batch.microbatches.reduce((sum, { batch: { counts } }) => sum + (counts[name] ?? 0), 0),
    );
    const counts = addUp(await collectives.allGather(step, 'counts', own));
    const scales = Float32Array.from(objectives, (name, k) =>
      counts[k] === 0 ? 0 : system.objectives[name]! / counts[k]!,
    );

    ledger.enter('compute');
    accumulator.begin(range);
    const contrast = await compareRows(step, members, batch, scales);
    const ownSums = new Float64Array(2 * objectives.length * config.train.microbatches);
    for (const { index, batch: microbatch } of batch.microbatches) {
      const inputs = uploadBatch(engine, microbatch);
      const scaling = engine.upload(scales, [scales.length]);
      const cotangents = contrast?.cotangentsOf(index) ?? {};
      const result = await programs.gradient(state.params, frozen, inputs, scaling, cotangents);
      const [gradient, sums] = await Promise.all([
        programs.readGradient(result.gradient),
        result.sums.data(),
      ]);
      // Everybody has computed these: they count once.
      if (index === 0) contrast?.addTo(gradient, sums);
      accumulator.push(gradient);
      ownSums.set(sums, 2 * objectives.length * index);
      ledger.progress();
      disposeTree([inputs, scaling, cotangents, result]);
    }

    ledger.enter('wait');
    await collectives.barrier(step, 'reduce');
    ledger.enter('reduce');
    const gradient = await collectives.allReduce(step, accumulator.blocks(), numParameters);
    // Every microbatch has its own place and zero elsewhere, so the order of addition is that of the microbatches.
    const microbatchSums = addUp(await collectives.allGather(step, 'sums', ownSums));
    const norm = l2Norm(gradient);
    const sums = objectives.map((name, k): ObjectiveSum => {
      const over = (which: 0 | 1): number => {
        let total = 0;
        for (let m = 0; m < config.train.microbatches; m++) {
          total += microbatchSums[2 * objectives.length * m + 2 * k + which]!;
        }
        return total;
      };
      return { name, lossSum: over(0), count: counts[k]!, correct: over(1) };
    });
    if (!Number.isFinite(norm)) throw notFinite(step, norm, sums);
    return { batch, sums, gradient, norm };
  }

  /** The comparison of all rows of the global batch, where the system has one. */
  function compareRows(
    step: number,
    members: readonly MicrobatchRange[],
    { microbatches }: StepBatches,
    scales: Float32Array,
  ): Promise<ComparedRows> | undefined {
    if (programs.contrast === undefined) return undefined;
    const { params } = state;
    const names = system.contrast!.objectives.map((name) => objectives.indexOf(name));
    const place = { engine, collectives, members, step, objectives: names, scales };
    return compareGlobalBatch(programs.contrast, { params, frozen, microbatches }, place);
  }

  function evaluate(rank: number, worldSize: number, signal: AbortSignal): Promise<Figure[]> {
    const { microbatchSize } = config.train;
    const { step, params } = state;
    const place = { collectives, rank, worldSize, step, signal };
    return evaluateHeldOut({ run, engine, programs, frozen, microbatchSize, ...place }, params);
  }
}

const RECONNECT_TIMEOUT_MS = 120_000;

/** Codes of errors that another generation mends. */
const MEMBERSHIP_CODES = new Set([
  'GENERATION_CHANGED',
  'STALE_GENERATION',
  'PEER_LOST',
  'PEER_REFUSED',
  'PEER_TIMEOUT',
  'FRAME_CORRUPT',
  'UNAVAILABLE',
  'UNKNOWN_SESSION',
  'NOT_A_MEMBER',
  'COORDINATOR_CLOSED',
  'REPEATED_CALL',
  'HEARTBEAT_LOST',
  'STEP_TIMEOUT',
  'WORKER_DISCONNECTED',
]);

const RUN_OVER_CODES = new Set(['RUN_FINISHED', 'RUN_STOPPED']);

function isMembershipChange(error: unknown, scope: AbortSignal): boolean {
  if (error instanceof VideoloomError && MEMBERSHIP_CODES.has(error.code)) return true;
  return (
    scope.aborted &&
    (error === scope.reason || (error instanceof Error && error.name === 'AbortError'))
  );
}

/** Processor time of this process since its start. */
function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return Math.round((user + system) / 1000);
}

/** Element-wise sum of equally long vectors, in order of rank. */
function addUp(parts: readonly Float64Array[]): Float64Array {
  return parts[0]!.map((_, i) => parts.reduce((sum, part) => sum + part[i]!, 0));
}

/** Euclidean length, added up in double precision. */
function l2Norm(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]! * values[i]!;
  return Math.sqrt(sum);
}

function notFinite(step: number, norm: number, sums: readonly ObjectiveSum[]): VideoloomError {
  const bad = sums.filter(({ lossSum }) => !Number.isFinite(lossSum)).map(({ name }) => name);
  return new VideoloomError(
    'GRADIENT_NOT_FINITE',
    `the gradient of step ${step} has norm ${norm}` +
      (bad.length > 0 ? ` and the loss of ${bad.join(', ')} is not finite` : '') +
      '; the parameters are those of the step before. Lower optimizer.learningRate or optimizer.clipNorm, then resume',
  );
}
