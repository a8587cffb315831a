import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import type { Log } from '../proto/log.ts';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  verifyStep,
} from '../proto/checkpoint-manifest.ts';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import type { SkippedSample } from '../proto/gen/videoloom/v1/coordinator.ts';
import type { Figure, Generation, Member, ObjectiveSum } from '../proto/gen/videoloom/v1/run.ts';
import { exists } from '../proto/exists.ts';
import { LeaderFailureWatch } from '../proto/leader-failure.ts';
import { PROTOCOL_VERSION } from '../proto/protocol.ts';
import { SUMMARY_FILE } from '../proto/run-plan.ts';
import type { Security } from '../proto/security.ts';
import type { SubstitutedClip } from '../video/loading/loader.ts';
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
import { warmUp } from './warm-up.ts';
import type { Engine } from './backend/engine.ts';
import { evaluateHeldOut } from './eval/held-out.ts';
import type { Ledger } from './ledger.ts';
import { clockMs } from './ledger-cells.ts';
import type { WorkerMetrics } from './metrics.ts';
import { adamWScalars } from './optim/adamw.ts';
import { learningRateAt } from './optim/schedule.ts';
import type { Collectives } from './parallel/collectives.ts';
import { parameterShardings, rowSharding } from './parallel/sharding.ts';
import { GradientAccumulator, type MicrobatchRange } from './parallel/tree-sum.ts';
import { compilePrograms } from './programs.ts';
import { fetchState } from './peer-state.ts';
import type { Run } from './run.ts';
import { openSession, RUN_FINISHED } from './session.ts';
import {
  blankState,
  disposeState,
  initState,
  parameterNames,
  readState,
  stateFromHost,
  type HostState,
  type TrainingState,
} from './state.ts';
import { disposeTree, leavesOf, numElements, type TensorTree } from './tree.ts';
import { openWaits, type Waits } from './waits.ts';

export interface TrainOptions {
  readonly run: Run;
  readonly engine: Engine;
  readonly collectives: Collectives;
  readonly coordinatorAddress: string;
  /** What connections to coordinator and peers need. */
  readonly security: Security;
  readonly workerId: string;
  readonly serviceAddress: string;
  readonly metricsAddress: string;
  /** Where peers and operators see the state that this worker holds. */
  readonly publish: (state: TrainingState | undefined, generation: number) => void;
  readonly ledger: Ledger;
  readonly blackBox: BlackBox;
  /** How long it looks for a coordinator at least, of which there is none or none any more. */
  readonly waitMs: number;
  /** Aborts when this worker is to leave in order. */
  readonly leaving: AbortSignal;
  readonly metrics: WorkerMetrics;
  readonly log: Log;
}

interface Voted {
  readonly generation: number;
  readonly step: number;
  readonly gradient: Float32Array;
  readonly norm: number;
}

/**
 * Trains until the run's last step, from set-up to the reported result. A lost peer, a new member or a restarted
 * coordinator costs the running step, which is computed again with the same samples and the same randomness. Tells how the
 * run ended.
 *
 * @throws VideoloomError what cannot be mended by another generation; LEFT after an orderly leave; what {@link runEndOf}
 * understands where the run ended without this worker.
 */
export async function train(options: TrainOptions): Promise<RunEnd> {
  const { run, engine, collectives, ledger, log } = options;
  const { config, system } = run;
  const objectives = Object.keys(system.objectives);

  // --- Set-up: programs, the form of the state, the session.
  const planned = timeLimits(run.plan);
  const limits = { ...planned, reconnectMs: Math.max(planned.reconnectMs, options.waitMs) };
  /** After the warm-up it holds no state of the run, only the form of one. */
  let isScratch = true;
  let state: TrainingState = blankState(system);
  /** The generation that committed the state's step: computed again by another one, that step may have other bits. */
  let stateIn = 0;
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
  /**
   * The reduced gradient of the step after the state's, once voted for in a generation: the vote may win while its answer
   * is lost.
   */
  let voted: Voted | undefined;

  let canSnapshot = false;
  /** `old` after `step`, by the reduced gradient; the buffers of the old one are used again. */
  const updated = async (
    old: TrainingState,
    step: number,
    { gradient, norm }: { readonly gradient: Float32Array; readonly norm: number },
  ): Promise<TrainingState> => {
    const learningRate = learningRateAt(config.optimizer, step, run.plan.totalSteps);
    const gradientScale = norm > config.optimizer.clipNorm ? config.optimizer.clipNorm / norm : 1;
    const scalars = adamWScalars(config.optimizer, { step, learningRate, gradientScale });
    const given = [
      old.params,
      old.optimizer,
      programs.uploadGradient(gradient, old.params),
      engine.upload(scalars, [scalars.length]),
    ] as const;
    if (!canSnapshot) {
      canSnapshot = true;
      const params = leavesOf(old.params).map(([, tensor]) => tensor);
      prepareSnapshots(params, () => programs.update.lower(...given)).catch((error: unknown) => {
        log.warn(`the update after a checkpoint is not compiled yet: ${messageOf(error)}`);
      });
    }
    const next = await programs.update(...given);
    return { step, params: next.params, optimizer: next.state };
  };
  /** Parameters and moments after `step`, by the reduced gradient that every worker holds. */
  const update = async ({ generation, step, gradient, norm }: Voted): Promise<void> => {
    state = await updated(state, step, { gradient, norm });
    stateIn = generation;
    ledger.holdStep(step, generation);
    voted = undefined;
  };
  /** Before this worker joins: the others do not wait for its compilations. */
  const prepare = async (): Promise<void> => {
    const gradient = await warmUp({ run, engine, programs }, state.params, frozen);
    state = { ...(await updated(state, 1, { gradient, norm: 1 })), step: 0 };
  };

  const processName = randomUUID();
  /** Read once: a summary whose weights are damaged stays until the run is led anew, which its coordinator tells of. */
  let verified: Promise<boolean> | undefined;
  const session = await openSession({
    coordinatorAddress: options.coordinatorAddress,
    security: options.security,
    prepared: prepare(),
    leaving: options.leaving,
    watchForEnd: () => {
      const leader = new LeaderFailureWatch(run.folder);
      return async () => {
        await leader.check();
        return (await exists(join(run.folder, SUMMARY_FILE))) && (verified ??= holdsResult(run));
      };
    },
    describe: () => ({
      protocolVersion: PROTOCOL_VERSION,
      runId: run.plan.runId,
      workerId: options.workerId,
      host: run.host,
      tensorAddress: collectives.address,
      serviceAddress: options.serviceAddress,
      metricsAddress: options.metricsAddress,
      engine: `${engine.name}/${engine.platform}`,
      stateStep: state.step,
      stateIn,
      process: processName,
    }),
    ledger,
    limits,
    log,
  });
  const checkpoints = openCheckpointWriter({
    engine,
    run,
    session,
    log,
    metrics: options.metrics,
  });
  // What goes on beside the loop shows that this worker moves while the loop waits for it.
  const endWatch = ledger.watch(() => {
    const { trainLoader, heldOutLoader, data } = run;
    const numClips = trainLoader.stats.numClips + heldOutLoader.stats.numClips;
    return data.progress() + numClips + checkpoints.numWritten + collectives.movedBytes;
  }, limits.beatMs);

  let [failedSums, failedAt] = [0, -1];
  try {
    ledger.enter('idle');
    let generation = await session.generationAfter(0);
    for (;;) {
      const self = generation.members.find(({ workerId }) => workerId === options.workerId);
      if (self === undefined) {
        log.info({ generation: generation.number }, 'waits as a spare');
        ledger.enter('idle');
        generation = await session.generationAfter(generation.number);
        continue;
      }
      const scope = session.scopeOf(generation);
      // A peer that stands still closes nothing: that the run goes on without it is learned from the coordinator alone.
      const drop = (): void => {
        collectives.abort('the generation is over');
      };
      scope.addEventListener('abort', drop, { once: true });
      try {
        return await trainGeneration(generation, self, scope);
      } catch (error) {
        if (!isMembershipChange(error, scope)) throw error;
        // Devices that cannot sum time and again would be joined anew for ever.
        const isFailed = error instanceof VideoloomError && error.code === 'ALL_REDUCE_FAILED';
        failedSums = isFailed && failedAt === state.step ? failedSums + 1 : isFailed ? 1 : 0;
        failedAt = state.step;
        if (failedSums > MAX_FAILED_SUMS) throw error;
        log.warn(
          { generation: generation.number, step: state.step },
          `generation over: ${messageOf(error)}`,
        );
        collectives.abort('the generation is over');
        ledger.enter('idle');
        // The coordinator opens the next generation when it sees a member go. Where it sees none go, because only
        // the workers have lost each other, this one joins anew.
        const renewal = setTimeout(() => {
          session.renew();
        }, limits.renewMs);
        try {
          // As long as the coordinator is there: whoever else is needed may take its time to start.
          generation = await session.generationAfter(generation.number);
        } finally {
          clearTimeout(renewal);
        }
      }
    }
  } finally {
    endWatch();
    // A share of a checkpoint counts when it is written and told of.
    await checkpoints.close();
    await session.close();
  }

  /** Trains with one set of members until the run's end; throws when the membership changes. */
  async function trainGeneration(
    generation: Generation,
    self: Member,
    scope: AbortSignal,
  ): Promise<RunEnd> {
    const { members, number } = generation;
    log.info(
      { generation: number, rank: self.rank, world_size: members.length },
      'generation opened',
    );

    // --- The state that the generation begins from, and meanwhile the first batch.
    ledger.enter('setup');
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
    if (generation.committedStep < run.plan.totalSteps)
      batches.prepare(generation.committedStep + 1);
    await reachState(generation, scope);
    options.publish(state, number);
    ledger.enter('wait');
    scope.throwIfAborted();
    await collectives.configure(generation);
    if (self.rank === 0) await checkpoints.catchUp();

    // --- Steps.
    let last = state.step >= run.plan.totalSteps;
    if (last && generation.restoreStep < state.step) {
      // Those who were to write the last checkpoint were lost before it was whole.
      ledger.enter('checkpoint');
      const { rank } = self;
      await checkpoints.begin(state, { generation: number, rank, worldSize: members.length });
    }
    while (!last) {
      const step = state.step + 1;
      ledger.beginStep();
      const { batch, sums, gradient, norm } = await reduceStep(
        step,
        { range: self, members },
        batches,
      );
      scope.throwIfAborted();

      const votedMs = clockMs();
      ledger.enter('wait');
      voted = { generation: number, step, gradient, norm };
      const learningRate = learningRateAt(config.optimizer, step, run.plan.totalSteps);
      const numTokens = batch.microbatches.reduce((sum, { batch: { numTokens: n } }) => sum + n, 0);
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
        },
        scope,
      );
      blameLast(vote.waitedMs, self.rank, clockMs() - votedMs);

      ledger.enter('compute');
      await update(voted);
      await recordState(options.blackBox, state, number);
      ledger.settleStep();
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
    await checkpoints.settled(() => {
      ledger.progress();
    });

    // --- Result. A stopped run has none: it is resumed later.
    ledger.enter('evaluate');
    const isFinished = state.step >= run.plan.totalSteps;
    const held = isFinished ? await evaluate(self.rank, members.length, scope) : NO_FIGURES;
    const host = await readState(state, parameterNames(state));
    const result = {
      generation: number,
      ...held,
      weightsSha256: weightsSha256(host),
      time: ledger.total(),
    };
    ledger.enter('wait');
    await session.reportResult(result, scope);
    const end = isFinished ? 'finished' : 'stopped';
    log.info({ step: state.step, weights_sha256: result.weightsSha256 }, end);
    return end;
  }

  /** The state after `generation.committedStep`: held already, one voted step away, a peer's, or a checkpoint's. */
  async function reachState(generation: Generation, scope: AbortSignal): Promise<void> {
    const { committedStep, committedIn, restoreStep } = generation;
    // Others may have committed the step without this worker: among fewer, or with a clip that did not decode, the sum is
    // another one.
    const isCommitted = voted?.step === committedStep && voted.generation === committedIn;
    if (voted !== undefined && isCommitted && state.step === committedStep - 1) {
      ledger.enter('compute');
      await update(voted);
      ledger.settleStep();
      ledger.enter('setup');
    }
    ledger.giveUpStep();
    voted = undefined;
    if (state.step === committedStep && stateIn === committedIn && !isScratch) return;
    const old = state;
    const holders = generation.members.filter(
      ({ workerId, holdsState }) => holdsState && workerId !== options.workerId,
    );
    if (committedStep === 0) {
      state = initState(system, config.train.seed);
    } else if (holders.length > 0) {
      // Many who join at once ask many.
      const isSelf = ({ workerId }: Member): boolean => workerId === options.workerId;
      const first = generation.members.findIndex(isSelf) % holders.length;
      const startMs = clockMs();
      ledger.enter('wait');
      const host = await fetchState(
        [...holders.slice(first), ...holders.slice(0, first)],
        { generation: generation.number, step: committedStep },
        {
          ...{ signal: scope, security: options.security, limits },
          onProgress: () => {
            ledger.progress();
          },
        },
      );
      ledger.enter('setup');
      state = stateFromHost(engine, state, committedStep, host);
      const seconds = Math.round(clockMs() - startMs) / 1000;
      log.info({ step: committedStep, seconds }, 'took the state from a peer');
    } else {
      log.info({ step: restoreStep }, 'restoring from the checkpoint');
      state = stateFromHost(engine, state, committedStep, await readCheckpoint(generation, scope));
    }
    isScratch = false;
    stateIn = committedIn;
    ledger.holdStep(committedStep, committedIn);
    disposeState(old);
  }

  /**
   * The checkpoint that a generation goes on from. The coordinator is told of one that cannot be read: it opens another
   * generation where it finds the same; where it does not, one more reading decides.
   */
  async function readCheckpoint(generation: Generation, scope: AbortSignal): Promise<HostState> {
    const { number, restoreStep: step } = generation;
    const folder = join(run.folder, CHECKPOINTS_FOLDER, checkpointFolderName(step));
    const load = () =>
      loadCheckpoint(folder, () => {
        ledger.progress();
      });
    try {
      return await load();
    } catch (error) {
      if (!(error instanceof VideoloomError)) throw error;
      log.error({ step, code: error.code }, error.message);
      const damage = { generation: number, step, message: error.message };
      if (await session.reportDamagedCheckpoint(damage, scope)) return await load();
      throw new VideoloomError('GENERATION_CHANGED', error.message, {
        cause: error,
        retryable: true,
      });
    }
  }

  /** Sums and gradient of the global batch of a step. */
  async function reduceStep(
    step: number,
    {
      range,
      members,
    }: { range: MicrobatchRange & { rank: number }; members: readonly MicrobatchRange[] },
    batches: BatchSource,
  ): Promise<{ batch: StepBatches; sums: ObjectiveSum[]; gradient: Float32Array; norm: number }> {
    ledger.enter('decode');
    const batch = await whileLoading(() => batches.take(step));
    if (batch.committedBefore) ledger.markRedone();

    // Each mean is over the global batch: its count is known before any gradient is computed.
    const own = Float64Array.from(objectives, (name) =>
      batch.microbatches.reduce((sum, { batch: { counts } }) => sum + (counts[name] ?? 0), 0),
    );
    const waits = openWaits(ledger);
    const counts = addUp(await waits.until(() => collectives.allGather(step, 'counts', own)));
    const scales = Float32Array.from(objectives, (name, k) =>
      counts[k] === 0 ? 0 : system.objectives[name]! / counts[k]!,
    );

    ledger.enter('compute');
    accumulator.begin(range);
    const contrast = await compareRows(step, members, batch, scales, waits);
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

    await waits.until(() => collectives.barrier(step, 'reduce'));
    ledger.enter('reduce');
    const gradient = await collectives.allReduce(step, accumulator.blocks(), numParameters);
    // Every microbatch has its own place and zero elsewhere, so the order of addition is that of the microbatches.
    const shared = Float64Array.from([...ownSums, ...waits.list()]);
    const parts = await collectives.allGather(step, 'sums', shared);
    const microbatchSums = addUp(parts).subarray(0, ownSums.length);
    waits.blame(
      range.rank,
      parts.map((part) => part.subarray(ownSums.length)),
    );
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
    waits: Waits,
  ): Promise<ComparedRows> | undefined {
    if (programs.contrast === undefined) return undefined;
    const { params } = state;
    const names = system.contrast!.objectives.map((name) => objectives.indexOf(name));
    const place = {
      ...{ engine, members, step, objectives: names, scales },
      collectives: {
        allGather: (...call: Parameters<Collectives['allGather']>) =>
          waits.until(() => collectives.allGather(...call)),
        allGatherInto: (...call: Parameters<Collectives['allGatherInto']>) =>
          waits.until(() => collectives.allGatherInto(...call)),
      },
    };
    return compareGlobalBatch(programs.contrast, { params, frozen, microbatches }, place);
  }

  /** Waits for a batch: for its bytes while nothing else can go on, else for the decoders. */
  async function whileLoading<T>(load: () => Promise<T>): Promise<T> {
    const look = (): void => {
      ledger.enter(run.data.isOnlyFetching() ? 'fetch' : 'decode');
    };
    look();
    const timer = setInterval(look, LOOK_MS);
    try {
      return await load();
    } finally {
      clearInterval(timer);
    }
  }

  /** Of the wait for the commit, what was for the last to vote. */
  function blameLast(waitedMs: readonly number[], rank: number, ms: number): void {
    const last = waitedMs.indexOf(Math.min(...waitedMs));
    if (last !== rank && last >= 0) ledger.blame(last, Math.min(ms, waitedMs[rank] ?? 0));
  }

  /** The figures of all held-out clips, and those of this worker's share that did not decode. */
  async function evaluate(
    rank: number,
    worldSize: number,
    signal: AbortSignal,
  ): Promise<{ readonly figures: Figure[]; readonly skipped: SkippedSample[] }> {
    const { microbatchSize } = config.train;
    const { step, params } = state;
    const onBatch = (): void => {
      ledger.progress();
    };
    const skipped = new Map<number, SkippedSample>();
    const onSkipped = (clip: SubstitutedClip): void => {
      if (skipped.has(clip.sample)) return;
      skipped.set(clip.sample, { ...clip, place: 0 });
      const { sample, reason } = clip;
      log.warn({ sample, reason }, `a held-out clip does not count: ${clip.message}`);
    };
    const place = { collectives, rank, worldSize, step, signal, onBatch, onSkipped };
    const options = { run, engine, programs, frozen, microbatchSize, ...place };
    const figures = await evaluateHeldOut(options, params);
    return { figures, skipped: [...skipped.values()] };
  }
}

const NO_FIGURES = { figures: [], skipped: [] };

/** How often a step's sum is tried again by other generations when devices could not make it. */
const MAX_FAILED_SUMS = 2;

/** How exactly waiting for bytes is told from waiting for the decoders. */
const LOOK_MS = 20;

/** Codes of errors that another generation mends. */
const MEMBERSHIP_CODES = new Set([
  'GENERATION_CHANGED',
  'STALE_GENERATION',
  'ALL_REDUCE_FAILED',
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

/** Whether the weights that a finished run has left are whole. */
function holdsResult({ folder, plan }: Run): Promise<boolean> {
  return verifyStep(folder, { step: plan.totalSteps, runId: plan.runId }).then(
    () => true,
    () => false,
  );
}

/** How a run ended: `stopped` before its last step, to be gone on with. */
export type RunEnd = 'finished' | 'stopped';

/** What an error says of the end of the run; undefined where it says nothing. */
export function runEndOf(error: unknown): RunEnd | undefined {
  if (!(error instanceof VideoloomError)) return undefined;
  if (error.code === RUN_FINISHED) return 'finished';
  return error.code === 'RUN_STOPPED' ? 'stopped' : undefined;
}

function isMembershipChange(error: unknown, scope: AbortSignal): boolean {
  if (error instanceof VideoloomError && MEMBERSHIP_CODES.has(error.code)) return true;
  return (
    scope.aborted &&
    (error === scope.reason || (error instanceof Error && error.name === 'AbortError'))
  );
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
      '; the parameters are those of the step before. Train anew, into another --out, with a lower ' +
      'optimizer.learningRate or optimizer.clipNorm',
  );
}
