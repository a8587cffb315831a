/** The weights of a run: those that it began with and does not train, and those of its newest checkpoint. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  newestCheckpointStep,
} from '../proto/checkpoint-manifest.ts';
import { UsageError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { readRunPlan, RUN_PLAN_FILE } from '../proto/run-plan.ts';
import { SafetensorsInvalid, type TensorData } from './checkpoint/format.ts';
import { hashedRead } from './checkpoint/hashed-read.ts';
import { loadCheckpoint } from './checkpoint/load.ts';
import { readSafetensorsStream } from './checkpoint/stream.ts';
import type { RunConfig } from './config-fields.ts';
import { isOptimizerTensor } from './state.ts';

/** In a run's folder, where {@link needsInitialWeights}: what its parameters are not drawn for. */
export const INITIAL_FILE = 'initial.safetensors';

export type Weights = Map<string, TensorData>;

/** What of a run's config tells whether it begins with any. */
export type Beginning = {
  readonly init: RunConfig['init'];
  readonly train: Pick<RunConfig['train'], 'frozen'>;
};

/** Whether parameters are taken from elsewhere, or frozen, so that no checkpoint has them. */
export function needsInitialWeights({ init, train }: Beginning): boolean {
  return init.length > 0 || train.frozen.length > 0;
}

/**
 * All weights of a run by name, as they are after its newest checkpoint, or that of a step.
 * @throws UsageError `INIT_INVALID` where there are none yet; as {@link readInitialWeights}
 */
export async function weightsOfRun(
  folder: string,
  config: Beginning,
  ofStep?: number,
): Promise<Weights> {
  if (!(await exists(join(folder, RUN_PLAN_FILE)))) throw invalid(`${folder} is no run folder`);
  const step = ofStep ?? (await newestCheckpointStep(folder));
  if (step === undefined) throw invalid(`the run in ${folder} has no checkpoint: train it first`);
  const trained = await loadCheckpoint(
    join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)),
  );
  const own = [...trained].filter(([name]) => !isOptimizerTensor(name));
  const { initialSha256 } = await readRunPlan(folder);
  return new Map([...(await readInitialWeights(folder, config, initialSha256)), ...own]);
}

/**
 * What {@link INITIAL_FILE} holds; nothing where the run needs none, whatever lies there.
 * @param sha256 of the file, as the run's plan has it; undefined for a run of an older version, whose plan has none
 * @throws UsageError INITIAL_WEIGHTS_MISSING, INITIAL_WEIGHTS_DAMAGED
 */
export async function readInitialWeights(
  folder: string,
  config: Beginning,
  sha256: string | undefined,
): Promise<Weights> {
  if (!needsInitialWeights(config)) return new Map();
  const file = join(folder, INITIAL_FILE);
  if (await exists(file)) return readWeights(file, sha256);
  // With drawn ones in their place, this worker would train another model than the others.
  const why = config.init.length > 0 ? 'init' : 'train.frozen';
  throw new UsageError(
    'INITIAL_WEIGHTS_MISSING',
    `${file} is missing: the run begins with its weights, as ${why} of its config says. ${MEND}`,
  );
}

const MEND = 'Copy it from the folder that the run was prepared in, or prepare the run anew';

async function readWeights(file: string, wanted: string | undefined): Promise<Weights> {
  const hash = createHash('sha256');
  const damaged = (why: string): UsageError =>
    new UsageError(
      'INITIAL_WEIGHTS_DAMAGED',
      `${file} is not the file that the run was prepared with: ${why}. With it, another model would be trained. ${MEND}`,
    );
  let weights: Weights;
  try {
    weights = await readSafetensorsStream(hashedRead(file, hash));
  } catch (error) {
    if (error instanceof SafetensorsInvalid) throw damaged('it is cut off, or no safetensors file');
    throw error;
  }
  const found = hash.digest('hex');
  if (wanted !== undefined && found !== wanted)
    throw damaged(`its SHA-256 is ${found}, and the plan of the run has ${wanted}`);
  return weights;
}

function invalid(message: string): UsageError {
  return new UsageError('INIT_INVALID', message);
}
