import { readFile } from 'node:fs/promises';
import { CoordinatorServiceService as Rpc } from '../../../proto/gen/videoloom/v1/coordinator.ts';
import type { Member } from '../../../proto/gen/videoloom/v1/run.ts';
import { call, dial } from '../../../proto/grpc.ts';
import { openRng } from '../../../proto/random.ts';
import { fuzzFrames } from './frames.ts';
import { fuzzRpc } from './rpc.ts';

export interface FuzzOptions {
  /** Of the coordinator, in plain text on the loopback, so that what is sent gets as far as it can. */
  readonly coordinatorAddress: string;
  readonly runId: string;
  readonly seed: number;
  /** Of each sort: gRPC messages and tensor frames. */
  readonly messages: number;
}

export interface FuzzReport {
  readonly rpc: Record<string, number>;
  readonly frames: Record<string, number>;
}

/** Fuzzes coordinator and workers of a run that trains, gRPC and tensor ports at once. */
export async function fuzzRun({
  coordinatorAddress,
  runId,
  seed,
  messages,
}: FuzzOptions): Promise<FuzzReport> {
  const members = await membersOf(coordinatorAddress);
  const servers = [coordinatorAddress, ...members.map(({ serviceAddress }) => serviceAddress)];
  const rng = openRng(seed, 'fuzz');
  const [rpc, frames] = await Promise.all([
    fuzzRpc(servers, { runId, rng: rng.fork('rpc'), count: messages }),
    fuzzFrames(members, { runId, rng: rng.fork('frames'), count: messages }),
  ]);
  return { rpc, frames };
}

/** The members of the running generation. */
export async function membersOf(coordinatorAddress: string): Promise<readonly Member[]> {
  const channel = dial(coordinatorAddress);
  try {
    const { status } = await call(channel, Rpc.getStatus, {}, { timeoutMs: 10_000 });
    return status?.generation?.members ?? [];
  } finally {
    channel.close();
  }
}

/** Memory of a process, MiB; 0 when it is gone. */
export async function residentMebibytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024;
}
