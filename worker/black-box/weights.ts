import { compareNames } from '../checkpoint/format.ts';
import { parameterNames, readState, type TrainingState } from '../state.ts';
import type { BlackBox } from './black-box.ts';
import { digestOf } from './recorders.ts';

/** Steps between two digests of the weights, the same on every worker: reading them back costs more than a record. */
const EVERY_STEPS = 16;

/** Records that a step is in the state and, now and then, what its parameters are. */
export async function recordState(
  box: BlackBox,
  state: TrainingState,
  generation: number,
): Promise<void> {
  const { step } = state;
  box.record('step', { generation, step });
  if (step % EVERY_STEPS !== 0) return;
  const host = await readState(state, parameterNames(state));
  const sorted = [...host].sort(([a], [b]) => compareNames(a, b));
  const digest = digestOf(sorted.map(([, { data }]) => data));
  box.record('weights', { generation, step, digest });
}
