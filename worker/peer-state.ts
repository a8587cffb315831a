import type { UntypedServiceImplementation } from '@grpc/grpc-js';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import type { Member, TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import {
  WorkerServiceService as Rpc,
  type FetchStateRequest,
  type FetchStateResponse,
  type GetWorkerStatusResponse,
} from '../proto/gen/videoloom/v1/worker.ts';
import { callStream, dial, serverStream, unary } from '../proto/grpc.ts';
import { readSafetensorsStream, safetensorsStream } from './checkpoint/stream.ts';
import { readState, type HostState, type TrainingState } from './state.ts';

/** What a worker shows to its peers. */
export interface PublishedState {
  readonly workerId: string;
  readonly generation: number;
  readonly state: TrainingState | undefined;
  readonly phase: string;
  readonly time: TimeLedger;
}

/** The worker's RPCs over what `published` gives at the time of the call. */
export function workerService(published: () => PublishedState): UntypedServiceImplementation {
  return {
    fetchState: serverStream(({ generation, step }: FetchStateRequest) =>
      sendState(published(), generation, step),
    ),
    getWorkerStatus: unary((): GetWorkerStatusResponse => {
      const { workerId, generation, state, phase, time } = published();
      return { workerId, generation, step: state?.step ?? 0, phase, time };
    }),
  };
}

/**
 * The copy is made before the first chunk leaves: the generation that asks has the asker in it, so that no step can
 * be committed, and no buffer be reused, before the asker has its state.
 */
async function* sendState(
  { generation: ownGeneration, state }: PublishedState,
  generation: number,
  step: number,
): AsyncGenerator<FetchStateResponse> {
  if (state?.step !== step || ownGeneration > generation) {
    throw new VideoloomError(
      'STATE_NOT_HELD',
      `asked for the state of step ${step} in generation ${generation}, this worker holds step ${state?.step ?? 0} ` +
        `in generation ${ownGeneration}; ask another worker`,
      { retryable: true },
    );
  }
  for (const chunk of safetensorsStream(await readState(state)))
    yield { chunk: Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength) };
}

/**
 * The state of a committed step from the first peer that holds it.
 *
 * @throws VideoloomError `NO_PEER_STATE` when none gives it.
 */
export async function fetchState(
  peers: readonly Member[],
  { generation, step }: { readonly generation: number; readonly step: number },
  signal: AbortSignal,
): Promise<HostState> {
  const reasons: string[] = [];
  for (const { workerId, serviceAddress } of peers) {
    const channel = dial(serviceAddress);
    try {
      const stream = callStream(
        channel,
        Rpc.fetchState,
        { generation, step },
        { timeoutMs: 600_000, signal },
      );
      return await readSafetensorsStream(chunksOf(stream));
    } catch (error) {
      signal.throwIfAborted();
      reasons.push(`${workerId}: ${messageOf(error)}`);
    } finally {
      channel.close();
    }
  }
  throw new VideoloomError(
    'NO_PEER_STATE',
    `no worker gave the state of step ${step} (${reasons.join('; ') || 'there is no other worker'}); ` +
      'stop the run and start it again: it resumes from its last checkpoint',
  );
}

async function* chunksOf(stream: AsyncIterable<FetchStateResponse>): AsyncGenerator<Uint8Array> {
  for await (const { chunk } of stream) yield chunk;
}
