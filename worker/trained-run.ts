import { join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  newestCheckpointStep,
} from '../proto/checkpoint-manifest.ts';
import { UsageError } from '../proto/errors.ts';
import type { Engine } from './backend/engine.ts';
import { uploadBatch } from './batches.ts';
import { loadCheckpoint } from './checkpoint/load.ts';
import { blank } from './initializer.ts';
import { withoutReference } from './reference-parameters.ts';
import { openRunEngine } from './run-engine.ts';
import { openRun, type Run } from './run.ts';
import { stateFromHost } from './state.ts';
import { disposeTree, type TensorTree } from './tree.ts';

export interface TrainedRunOptions {
  readonly folder: string;
  readonly pluginPath?: string | undefined;
  readonly cacheDir: string;
  /** Whether held-out figures are asked for: those of preferences compare with what the run began with. */
  readonly hasReference?: boolean;
}

/** A run with the parameters of its newest checkpoint on the device, to ask it things. */
export interface TrainedRun {
  readonly run: Run;
  readonly engine: Engine;
  readonly step: number;
  readonly params: TensorTree;
  /** The system's frozen arrays, as programs take them. */
  readonly frozen: TensorTree;
  /** Idempotent. */
  close(): Promise<void>;
}

/** @throws UsageError `NO_CHECKPOINT` when the run has none yet; what {@link openRun} throws */
export async function openTrainedRun(options: TrainedRunOptions): Promise<TrainedRun> {
  const { folder, pluginPath = '', cacheDir } = options;
  const run = await openRun(folder);
  let engine: Engine | undefined;
  const close = async (): Promise<void> => {
    engine?.close();
    await run.close();
  };
  try {
    const step = await newestCheckpointStep(folder);
    if (step === undefined) {
      throw new UsageError(
        'NO_CHECKPOINT',
        `${folder} has no checkpoint yet: let it train a little longer`,
      );
    }
    engine = await openRunEngine(run, { engine: run.config.engine.name, pluginPath, cacheDir });
    const host = await loadCheckpoint(join(folder, CHECKPOINTS_FOLDER, checkpointFolderName(step)));
    const form = { params: run.system.init(blank()) };
    const { params } = stateFromHost(engine, form, step, host);
    disposeTree(form.params);
    const arrays =
      options.hasReference === true ? run.system.frozen : withoutReference(run.system.frozen);
    const frozen = uploadBatch(engine, { arrays, counts: {}, numTokens: 0 });
    return { run, engine, step, params, frozen, close };
  } catch (error) {
    await close();
    throw error;
  }
}
