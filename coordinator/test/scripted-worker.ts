/** A worker without a model, for tests of the coordinator: it says over real gRPC what it is told to say. */

import { setTimeout as sleep } from 'node:timers/promises';

import type {
  AttendRequest,
  CommitStepRequest,
  CommitStepResponse,
  ReportResultRequest,
  StepLease,
} from '../../proto/gen/videoloom/v1/coordinator.ts';
import { CoordinatorServiceService as Rpc } from '../../proto/gen/videoloom/v1/coordinator.ts';
import type { Generation, TimeLedger } from '../../proto/gen/videoloom/v1/run.ts';
import { call, callBidi, dial } from '../../proto/grpc.ts';
import type { Channel } from '../../proto/grpc.ts';
import { PROTOCOL_VERSION } from '../../proto/protocol.ts';
import { RunPlan } from '../../proto/run-plan.ts';

const LIMIT = { timeoutMs: 20_000 };

/** A plan for tests; time limits are long, so that only tests about time meet them. */
export function testPlan(overrides: Partial<RunPlan> = {}): RunPlan {
  return RunPlan.parse({
    runId: 'run-a',
    seed: 7,
    totalSteps: 6,
    microbatches: 4,
    microbatchSize: 2,
    numTrainSamples: 37,
    datasetDigest: 'd'.repeat(64),
    configDigest: 'c'.repeat(64),
    checkpointEverySteps: 3,
    detectWithinMs: 20_000,
    decodeTimeoutMs: 1000,
    ...overrides,
  });
}

/** A vote as every worker of the same step casts it. */
export function ballot(session: string, generation: number, step: number): CommitStepRequest {
  return {
    session,
    generation,
    step,
    objectives: [{ name: 'contrastive', lossSum: 8 / step, count: 8, correct: 2 }],
    gradientNorm: 1 / (step + 1),
    learningRate: 1e-3,
    numClips: 4,
    numTokens: 40,
    skipped: [],
  };
}

/** The result as every worker reports it. */
export function verdict(session: string, generation: number): ReportResultRequest {
  const figures = [{ name: 'recall@1', value: 0.5, chance: 0.1, untrained: 0.11, count: 100 }];
  return {
    session,
    generation,
    figures,
    weightsSha256: 'e'.repeat(64),
    time: undefined,
    skipped: [],
  };
}

/** What a worker's beats say. */
interface Beats {
  readonly beatMs: number;
  readonly phase: string;
  /** Settled, and once more in the step under way. */
  readonly time: TimeLedger | undefined;
}

/** A joined worker. */
export class ScriptedWorker {
  readonly workerId: string;
  readonly session: string;
  readonly channel: Channel;
  /** Settles with the error that ended the session, or undefined when it ended in peace. */
  readonly ended: Promise<unknown>;
  #latest: Generation | undefined;
  #isOver = false;
  readonly #leave = new AbortController();
  readonly #waiting = new Set<() => void>();

  private constructor(
    workerId: string,
    session: string,
    channel: Channel,
    { beatMs, phase, time }: Beats,
  ) {
    this.workerId = workerId;
    this.session = session;
    this.channel = channel;
    this.ended = this.#attend({ beatMs, phase, time });
  }

  static async join(
    address: string,
    workerId: string,
    {
      stateStep = 0,
      stateIn = 0,
      protocolVersion = PROTOCOL_VERSION,
      runId = 'run-a',
      engine = 'none',
      beatMs = 50,
      phase = 'compute',
      time = undefined as TimeLedger | undefined,
    } = {},
  ): Promise<ScriptedWorker> {
    const channel = dial(address);
    try {
      const { session } = await call(
        channel,
        Rpc.join,
        {
          protocolVersion,
          runId,
          workerId,
          host: 'here',
          tensorAddress: `${workerId}:1`,
          serviceAddress: `${workerId}:2`,
          metricsAddress: `${workerId}:3`,
          engine,
          stateStep,
          stateIn,
          process: workerId,
        },
        LIMIT,
      );
      return new ScriptedWorker(workerId, session, channel, { beatMs, phase, time });
    } catch (error) {
      channel.close();
      throw error;
    }
  }

  /** The newest generation that satisfies `wanted`, as soon as there is one. */
  async generation(wanted: (generation: Generation) => boolean = () => true): Promise<Generation> {
    for (;;) {
      if (this.#latest !== undefined && wanted(this.#latest)) return this.#latest;
      if (this.#isOver) throw new Error(`the session of ${this.workerId} has ended`);
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  async lease(generation: number, firstStep: number, numSteps = 1): Promise<StepLease[]> {
    const request = { session: this.session, generation, firstStep, numSteps };
    return (await call(this.channel, Rpc.leaseMicrobatches, request, LIMIT)).steps;
  }

  vote(
    generation: number,
    step: number,
    change: Partial<CommitStepRequest> = {},
  ): Promise<CommitStepResponse> {
    return call(
      this.channel,
      Rpc.commitStep,
      { ...ballot(this.session, generation, step), ...change },
      LIMIT,
    );
  }

  async reportPart(
    generation: number,
    step: number,
    files: { name: string; sizeBytes: number; sha256: string }[],
    failure = '',
  ): Promise<boolean> {
    const request = { session: this.session, generation, step, files, failure };
    return (await call(this.channel, Rpc.reportCheckpointPart, request, LIMIT)).complete;
  }

  async reportResult(generation: number, change: Partial<ReportResultRequest> = {}): Promise<void> {
    await call(
      this.channel,
      Rpc.reportResult,
      { ...verdict(this.session, generation), ...change },
      LIMIT,
    );
  }

  /** Goes without a word, as a killed process does. */
  async leave(): Promise<void> {
    this.#leave.abort(new Error('left'));
    await this.ended;
    this.channel.close();
  }

  async #attend({ beatMs, phase, time }: Beats): Promise<unknown> {
    const { session } = this;
    const { signal } = this.#leave;
    const startMs = performance.now();
    async function* beats(): AsyncGenerator<AttendRequest> {
      for (;;) {
        const phaseMs = Math.round(performance.now() - startMs);
        const told = { phase, step: 0, stateIn: 0, progress: 0, stillMs: phaseMs, phaseMs };
        yield { session, ...told, cpuMs: 0, leaving: false, time, stepTime: time };
        await sleep(beatMs, undefined, { signal });
      }
    }
    try {
      for await (const { generation } of callBidi(this.channel, Rpc.attend, beats(), {
        timeoutMs: Infinity,
        signal,
      })) {
        this.#latest = generation ?? this.#latest;
        this.#tell();
      }
      return undefined;
    } catch (error) {
      return error;
    } finally {
      this.#isOver = true;
      this.#tell();
    }
  }

  #tell(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }
}
