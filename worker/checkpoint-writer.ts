import { join } from 'node:path';
import { checkpointFolderName, CHECKPOINTS_FOLDER } from '../proto/checkpoint-manifest.ts';
import { messageOf } from '../proto/errors.ts';
import type { Log } from '../proto/log.ts';
import type { Engine } from './backend/engine.ts';
import { openFileWriter } from './checkpoint/file-writer.ts';
import { saveCheckpointPart, shareOf } from './checkpoint/save.ts';
import { takeSnapshot } from './checkpoint/snapshot.ts';
import type { WorkerMetrics } from './metrics.ts';
import type { Session } from './session.ts';
import { stateSizes, type TrainingState } from './state.ts';

/** Writes this worker's share of checkpoints in the background. */
export interface CheckpointWriter {
  /** Pieces that have been written so far. */
  readonly numWritten: number;
  /**
   * Takes a snapshot of the share and writes it while training goes on. One write runs at a time: the next waits for
   * it.
   */
  begin(
    state: TrainingState,
    member: { generation: number; rank: number; worldSize: number },
  ): Promise<void>;
  /** Until the running write is reported. */
  settled(): Promise<void>;
  close(): Promise<void>;
}

export function openCheckpointWriter({
  engine,
  runFolder,
  session,
  log,
  metrics,
}: {
  readonly engine: Engine;
  readonly runFolder: string;
  readonly session: Session;
  readonly log: Log;
  readonly metrics: WorkerMetrics;
}): CheckpointWriter {
  const files = openFileWriter();
  let writing: Promise<void> = Promise.resolve();
  return {
    get numWritten() {
      return files.numWritten;
    },
    async begin(state, { generation, rank, worldSize }) {
      await writing;
      const { step } = state;
      const sizes = stateSizes(state);
      const snapshot = await takeSnapshot(engine, state, shareOf(sizes, rank, worldSize));
      const startMs = performance.now();
      const write = async (): Promise<void> => {
        const dir = join(runFolder, CHECKPOINTS_FOLDER, checkpointFolderName(step));
        const { tensors } = snapshot;
        const part = { dir, rank, worldSize, tensors, sizes };
        const saved = await saveCheckpointPart(part, files).finally(() => {
          snapshot.release();
        });
        const complete = await session.reportCheckpointPart({
          generation,
          step,
          files: saved,
          failure: '',
        });
        metrics.checkpointWritten((performance.now() - startMs) / 1000, saved);
        log.info({ step, complete }, 'checkpoint share written');
      };
      writing = write().catch(async (error: unknown) => {
        // Training goes on: the checkpoint before this one is still whole.
        log.error({ step }, `checkpoint share not written: ${messageOf(error)}`);
        metrics.checkpointFailed(error);
        await session
          .reportCheckpointPart({ generation, step, files: [], failure: messageOf(error) })
          .catch((cause: unknown) => {
            log.warn({ step }, `could not report the failed checkpoint: ${messageOf(cause)}`);
          });
      });
    },
    settled: () => writing,
    async close() {
      await writing;
      await files.close();
    },
  };
}
