import { WorkerServiceService } from '../proto/gen/videoloom/v1/worker.ts';
import { reachedAt } from '../proto/address.ts';
import { messageOf, UsageError, VideoloomError } from '../proto/errors.ts';
import { dial, serve } from '../proto/grpc.ts';
import { openLog } from '../proto/log.ts';
import { serveMetrics } from '../proto/metrics.ts';
import { checkReach, refusalLog, warnWhileInsecure, type Security } from '../proto/security.ts';
import { timeLimits } from '../proto/time-limits.ts';
import { enginePlugin, type EngineName } from './backend/engine.ts';
import { openBlackBox, type BlackBox } from './black-box/black-box.ts';
import { recordedCollectives, recordedLedger } from './black-box/recorders.ts';
import { openLedger } from './ledger.ts';
import { coordinatorKeyValues } from './key-values.ts';
import { openWorkerMetrics } from './metrics.ts';
import { ownHostTowards } from './own-host.ts';
import type { OpenDeviceSum } from './parallel/device-sum.ts';
import { openCollectives } from './parallel/mesh-collectives.ts';
import { gpuJoin, openSumProcesses } from './parallel/sum-child.ts';
import { workerService, type PublishedState } from './peer-state.ts';
import { openRunEngine } from './run-engine.ts';
import { describeRun, openRunData } from './run.ts';
import { runEndOf, train, type RunEnd } from './train.ts';

export interface WorkerOptions {
  readonly folder: string;
  readonly coordinatorAddress: string;
  readonly workerId: string;
  readonly engine: EngineName;
  /** Empty: the config's. */
  readonly pluginPath: string;
  /** Where other workers reach this one; undefined: where the coordinator would. */
  readonly listenHost: string | undefined;
  readonly metricsAddress: string;
  readonly cacheDir: string;
  readonly logFile: string;
  readonly security: Security;
  /** How long it looks for a coordinator at least, of which there is none or none any more. */
  readonly waitMs: number;
  /** Aborts when this worker is to leave in order. */
  readonly leaving: AbortSignal;
}

/**
 * One worker process from start to end: opens what training needs, trains, closes it in reverse order. Tells how the run
 * ended.
 * @throws VideoloomError as `train`
 */
export async function runWorker(options: WorkerOptions): Promise<RunEnd> {
  const { folder, workerId, security } = options;
  const listenHost = options.listenHost ?? (await ownHostTowards(options.coordinatorAddress));
  checkReach(security, `${listenHost}:0`, `worker ${workerId} would listen on`);
  let blackBox: BlackBox | undefined;
  const closing: (() => Promise<void> | void)[] = [];
  const secrets = security.token === undefined ? [] : [security.token];
  let log = openLog({ worker_id: workerId }, { file: options.logFile, secrets });
  closing.push(warnWhileInsecure(security, log));
  try {
    const described = await describeRun(folder);
    const { plan, host, config } = described;
    const ledger = openLedger({ numRanks: plan.microbatches });
    log = log.child({ run_id: plan.runId });
    // Decoders start in processes of their own, and meanwhile the engine in this one.
    const opening = openRunData(described);
    opening.catch(() => undefined); // it is waited for below, where that ends this worker
    closing.push(() =>
      opening.then(
        (run) => run.close(),
        () => undefined,
      ),
    );
    blackBox = await openBlackBox({
      ...{ runFolder: folder, runId: plan.runId, workerId, host, log },
      // A ring adds in an order that depends on the number of workers.
      sameBitsAlways: config.cluster.allReduce !== 'ring',
    });
    closing.push(() => blackBox?.close());
    const pluginPath = options.pluginPath || (config.engine.pluginPath ?? '');
    const engine = await openRunEngine(described, { ...options, pluginPath });
    closing.push(() => {
      engine.close();
    });
    const run = await opening;
    const metrics = openWorkerMetrics(ledger, () => run.counters());
    const metricsServer = await serveMetrics(metrics.registry, options.metricsAddress);
    closing.push(() => metricsServer.close());
    const { allReduce, gradientPrecision, sharedMemory } = config.cluster;
    let openDeviceSum: OpenDeviceSum | undefined;
    if (allReduce === 'nccl') {
      if (engine.platform === 'cpu') throw new UsageError('CONFIG_INVALID', NO_GPUS_TO_SUM_ON);
      const { patience: keepalive } = timeLimits(plan);
      const peer = { role: 'coordinator' } as const;
      const channel = dial(options.coordinatorAddress, { security, peer, keepalive });
      closing.push(() => {
        channel.close();
      });
      const { runId } = plan;
      openDeviceSum = openSumProcesses({
        pluginPath: await enginePlugin({ ...options, pluginPath }),
        join: gpuJoin,
        keyValues: (generation) => coordinatorKeyValues(channel, { runId, generation }),
      });
    }
    const collectives = await openCollectives({
      listenAddress: `${listenHost}:0`,
      runId: plan.runId,
      workerId,
      timeoutMs: timeLimits(plan).barrierMs,
      security,
      allReduce: allReduce === 'ring' ? 'ring' : 'tree',
      openDeviceSum,
      precision: gradientPrecision,
      sharedMemory,
      onProgress: () => {
        ledger.progress();
      },
    });
    closing.push(() => collectives.close());

    let published: Pick<PublishedState, 'state' | 'generation'> = {
      state: undefined,
      generation: 0,
    };
    const service = workerService(() => ({
      ...published,
      workerId,
      phase: ledger.phase,
      time: ledger.total(),
    }));
    const server = await serve(
      [{ definition: WorkerServiceService, handlers: service }],
      `${listenHost}:0`,
      security,
      refusalLog(log, 'a connection to the worker'),
    );
    closing.push(() => server.close());
    log.info(
      { metrics: metricsServer.address, service: server.address, tensors: collectives.address },
      'worker is up',
    );

    const end = await train({
      run,
      engine,
      collectives: recordedCollectives(collectives, blackBox),
      coordinatorAddress: options.coordinatorAddress,
      security,
      workerId,
      serviceAddress: server.address,
      metricsAddress: reachedAt(metricsServer.address, listenHost),
      publish: (state, generation) => {
        published = { state, generation };
      },
      ledger: recordedLedger(ledger, blackBox),
      blackBox,
      leaving: options.leaving,
      waitMs: options.waitMs,
      metrics,
      log,
    });
    blackBox.record('exit', { text: 'finished' });
    return end;
  } catch (error) {
    const code = error instanceof VideoloomError ? error.code : 'BUG';
    // It ended without this worker, which was a spare, came late or was being started again.
    const end = runEndOf(error);
    if (end !== undefined) {
      blackBox?.record('exit', { text: 'finished' });
      log.info(`the run is ${end}`);
      return end;
    }
    blackBox?.record('exit', { text: code });
    if (code === 'LEFT') log.info('left in order');
    else
      log.fatal(
        { code, stack: error instanceof Error ? error.stack : undefined },
        messageOf(error),
      );
    throw error;
  } finally {
    for (const close of closing.reverse()) await close();
  }
}

const NO_GPUS_TO_SUM_ON =
  'cluster.allReduce is nccl, which sums on GPUs, and the plugin of this worker drives a CPU: set engine.pluginPath to ' +
  'cuda13, cuda12 or rocm7, or cluster.allReduce to tree';
