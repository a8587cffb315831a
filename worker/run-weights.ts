/** The weights of a run: those that it began with and does not train, and those of its newest checkpoint. */
import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  newestCheckpointStep,
} from '../proto/checkpoint-manifest.ts';
import { UsageError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { RUN_PLAN_FILE } from '../proto/run-plan.ts';
import type { TensorData } from './checkpoint/format.ts';
import { loadCheckpoint } from './checkpoint/load.ts';
import { readSafetensorsStream } from './checkpoint/stream.ts';
import { isOptimizerTensor } from './state.ts';

/** In a run's folder: what its parameters are not drawn for. */
export const INITIAL_FILE = 'initial.safetensors';

export type Weights = Map<string, TensorData>;

/**
 * All weights of a run by name, as they are after its newest checkpoint, or that of a step.
 * @throws UsageError `INIT_INVALID` where there are none yet
 */
export async function weightsOfRun(folder: string, ofStep?: number): Promise<Weights> {
  if (!(await exists(join(folder, RUN_PLAN_FILE)))) throw invalid(`${folder} is no run folder`);
  const step = ofStep ?? (await newestCheckpointStep(folder));
  if (step === undefined) throw invalid(`the run in ${folder} has no checkpoint: train it first`);
  const trained = await loadCheckpoint(
    join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)),
  );
  const own = [...trained].filter(([name]) => !isOptimizerTensor(name));
  return new Map([...(await readInitialWeights(folder)), ...own]);
}

/** What {@link INITIAL_FILE} holds; nothing where there is none. */
export async function readInitialWeights(folder: string): Promise<Weights> {
  const file = join(folder, INITIAL_FILE);
  return (await exists(file))
    ? readSafetensorsStream(createReadStream(file, { highWaterMark: 4 << 20 }))
    : new Map();
}

function invalid(message: string): UsageError {
  return new UsageError('INIT_INVALID', message);
}
