import { setTimeout as delay } from 'node:timers/promises';
import type { UntypedServiceImplementation } from '@grpc/grpc-js';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import type { Member, TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import {
  WorkerServiceService as Rpc,
  type FetchStateRequest,
  type FetchStateResponse,
  type GetWorkerStatusResponse,
} from '../proto/gen/videoloom/v1/worker.ts';
import { callStream, demandRole, dial, serverStream, unary } from '../proto/grpc.ts';
import type { Security } from '../proto/security.ts';
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
    fetchState: serverStream(({ generation, step }: FetchStateRequest, context) => {
      demandRole(context, 'worker');
      return sendState(published(), generation, step);
    }),
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
 * The state of a committed step from the first peer that holds it. A peer that is still applying the step is asked
 * again; who gave the generation up aborts `signal`.
 *
 * @throws VideoloomError `NO_PEER_STATE` when there is nobody to ask, or nobody has it within a minute.
 */
export async function fetchState(
  peers: readonly Member[],
  wanted: { readonly generation: number; readonly step: number },
  { signal, security }: { readonly signal: AbortSignal; readonly security: Security },
): Promise<HostState> {
  const endMs = performance.now() + PEER_STATE_TIMEOUT_MS;
  for (let waitMs = 50; ; waitMs = Math.min(2000, 2 * waitMs)) {
    const reasons: string[] = [];
    for (const peer of peers) {
      try {
        return await fetchFrom(peer, wanted, { signal, security });
      } catch (error) {
        signal.throwIfAborted();
        reasons.push(`${peer.workerId}: ${messageOf(error)}`);
      }
    }
    if (peers.length === 0 || performance.now() > endMs) {
      throw new VideoloomError(
        'NO_PEER_STATE',
        `no worker gave the state of step ${wanted.step} (${reasons.join('; ') || 'there is no other worker'}); ` +
          'stop the run and start it again: it resumes from its last checkpoint',
      );
    }
    await delay(waitMs, undefined, { signal });
  }
}

const PEER_STATE_TIMEOUT_MS = 60_000;

async function fetchFrom(
  { serviceAddress, workerId }: Member,
  wanted: { readonly generation: number; readonly step: number },
  { signal, security }: { readonly signal: AbortSignal; readonly security: Security },
): Promise<HostState> {
  const channel = dial(serviceAddress, { security, peer: { role: 'worker', workerId } });
  try {
    return await readSafetensorsStream(
      chunksOf(callStream(channel, Rpc.fetchState, wanted, { timeoutMs: 600_000, signal })),
    );
  } finally {
    channel.close();
  }
}

async function* chunksOf(stream: AsyncIterable<FetchStateResponse>): AsyncGenerator<Uint8Array> {
  for await (const { chunk } of stream) yield chunk;
}
