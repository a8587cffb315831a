import { status } from '@grpc/grpc-js';

import { RpcError } from '../proto/grpc.ts';
import type { RunHistory } from './history.ts';
import type { RunState } from './run-state.ts';

/** A worker's name, host, and what it computes with: `xla/cuda`, an engine and its platform. */
interface Computer {
  readonly workerId: string;
  readonly host: string;
  readonly engine: string;
}

/**
 * Engines and platforms sum in other orders, so that the bits of a step would depend on who shared it: a run has one of
 * each, as its config names it, its committed steps were computed with, and its workers have.
 * @throws RpcError OTHER_ENGINE
 */
export function checkEngine(
  { plan, workers }: Pick<RunState, 'plan' | 'workers'>,
  { committedWith }: Pick<RunHistory, 'committedWith'>,
  joiner: Computer,
): void {
  const { workerId, engine } = joiner;
  if (plan.engine !== undefined && engine.split('/')[0] !== plan.engine)
    throw otherEngine(joiner, `the config of the run says ${plan.engine}`);
  if (committedWith !== undefined && engine !== committedWith)
    throw otherEngine(joiner, `the run was computed with ${committedWith} so far`);
  const other = workers.find((worker) => worker.workerId !== workerId && worker.engine !== engine);
  if (other !== undefined)
    throw otherEngine(joiner, `worker "${other.workerId}" computes with ${other.engine}`);
}

function otherEngine({ workerId, host, engine }: Computer, why: string): RpcError {
  return new RpcError(
    status.FAILED_PRECONDITION,
    'OTHER_ENGINE',
    `worker "${workerId}" on host ${host} computes with ${engine}, and ${why}: they give other bits. Start it with the same ` +
      '--engine and --plugin (PJRT_PLUGIN_PATH) on a machine that has such a device.',
  );
}
