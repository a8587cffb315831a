import { createHash } from 'node:crypto';
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
import type { TimeLimits } from '../proto/time-limits.ts';
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
  const hash = createHash('sha256');
  const copy = copies.get(state) ?? { host: readState(state), numReaders: 0 };
  copies.set(state, copy);
  copy.numReaders++;
  try {
    for (const chunk of safetensorsStream(await copy.host)) {
      hash.update(chunk);
      yield { chunk: Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength), sha256: '' };
    }
    yield { chunk: NO_BYTES, sha256: hash.digest('hex') };
  } finally {
    copy.numReaders--;
    if (copy.numReaders === 0) copies.delete(state);
  }
}

/** One copy for all who join at once, however many. */
const copies = new WeakMap<TrainingState, { host: Promise<HostState>; numReaders: number }>();

const NO_BYTES = Buffer.alloc(0);

/** What a transfer has to abide by. */
export interface FetchOptions {
  readonly signal: AbortSignal;
  readonly security: Security;
  readonly limits: TimeLimits;
  /** Told of every piece that came. */
  readonly onProgress?: () => void;
}

/**
 * The state of a committed step from the first peer that holds it, as its SHA-256 says that it was sent. A peer that is
 * still applying the step is asked again; who gave the generation up aborts `signal`.
 *
 * @throws VideoloomError `NO_PEER_STATE` when there is nobody to ask, or nobody has it in time.
 */
export async function fetchState(
  peers: readonly Member[],
  wanted: { readonly generation: number; readonly step: number },
  options: FetchOptions,
): Promise<HostState> {
  const { signal, limits } = options;
  const endMs = performance.now() + limits.peerStateMs;
  for (let waitMs = limits.beatMs / 40; ; waitMs = Math.min(limits.renewMs, 2 * waitMs)) {
    const reasons: string[] = [];
    for (const peer of peers) {
      try {
        return await fetchFrom(peer, wanted, options);
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

async function fetchFrom(
  { serviceAddress, workerId }: Member,
  wanted: { readonly generation: number; readonly step: number },
  { signal, security, limits, onProgress }: FetchOptions,
): Promise<HostState> {
  const channel = dial(serviceAddress, { security, peer: { role: 'worker', workerId } });
  try {
    const stream = callStream(channel, Rpc.fetchState, wanted, {
      timeoutMs: limits.barrierMs,
      signal,
    });
    return await readSafetensorsStream(checkedChunks(stream, workerId, onProgress));
  } finally {
    channel.close();
  }
}

/** The bytes, which at their end have to be those that were sent. */
async function* checkedChunks(
  stream: AsyncIterable<FetchStateResponse>,
  workerId: string,
  onProgress: (() => void) | undefined,
): AsyncGenerator<Uint8Array> {
  const hash = createHash('sha256');
  let expected = '';
  for await (const { chunk, sha256 } of stream) {
    expected = sha256;
    onProgress?.();
    if (chunk.length === 0) continue;
    hash.update(chunk);
    yield chunk;
  }
  const found = hash.digest('hex');
  if (found === expected) return;
  throw new VideoloomError(
    'STATE_DAMAGED',
    `the state from worker "${workerId}" has SHA-256 ${found}, it was sent as ${expected || 'nothing whole'}; ` +
      'look after the memory and the network of both hosts',
    { retryable: true },
  );
}
