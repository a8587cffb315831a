import { join } from 'node:path';
import {
  checkpointFolderName,
  CHECKPOINTS_FOLDER,
  newestCheckpointStep,
} from '../proto/checkpoint-manifest.ts';
import { messageOf } from '../proto/errors.ts';
import type { Log } from '../proto/log.ts';
import { timeLimits } from '../proto/time-limits.ts';
import type { Engine } from './backend/engine.ts';
import { openFileWriter } from './checkpoint/file-writer.ts';
import { saveCheckpointPart, shareOf } from './checkpoint/save.ts';
import { takeSnapshot } from './checkpoint/snapshot.ts';
import type { WorkerMetrics } from './metrics.ts';
import type { Run } from './run.ts';
import { openCopier } from './run-store/copier.ts';
import type { Session } from './session.ts';
import { stateSizes, type TrainingState } from './state.ts';

/** Writes this worker's share of checkpoints in the background, and has complete ones copied where there is a store. */
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
  /** A generation has begun with this worker as its first: what the store lacks of the newest checkpoint is copied. */
  catchUp(): Promise<void>;
  /**
   * Until the running write is reported, and then until its copy is in the store, within limits.
   * @param onProgress told whenever the copy has come on
   */
  settled(onProgress?: () => void): Promise<void>;
  close(): Promise<void>;
}

/** A store that takes nothing for so long is not waited for at the end of a run. */
const COPY_STILL_MS = 60_000;

export function openCheckpointWriter({
  engine,
  run,
  session,
  log,
  metrics,
}: {
  readonly engine: Engine;
  readonly run: Pick<Run, 'folder' | 'plan' | 'config'>;
  readonly session: Session;
  readonly log: Log;
  readonly metrics: WorkerMetrics;
}): CheckpointWriter {
  const files = openFileWriter();
  const { keep, keepHours, store } = run.config.checkpoint;
  const { runId } = run.plan;
  const setting = { folder: run.folder, runId, keep, keepHours: keepHours ?? undefined };
  const copier =
    store === null
      ? undefined
      : openCopier({ ...setting, store }, { log, metrics: metrics.copies });
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
      let isOnDisk = false;
      const write = async (): Promise<void> => {
        const dir = join(run.folder, CHECKPOINTS_FOLDER, checkpointFolderName(step));
        const { tensors } = snapshot;
        const part = { dir, rank, worldSize, tensors, sizes };
        const saved = await saveCheckpointPart(part, files).finally(() => {
          snapshot.release();
        });
        isOnDisk = true;
        const report = { generation, step, files: saved, failure: '' };
        // Once more where the answer may have been lost: it is taken once.
        const complete = await session
          .reportCheckpointPart(report)
          .catch(() => session.reportCheckpointPart(report));
        metrics.checkpointWritten((performance.now() - startMs) / 1000, saved);
        log.info({ step, complete }, 'checkpoint share written');
        // Whoever wrote the last share is told so; the others are not.
        if (complete) copier?.copy(step);
      };
      writing = write().catch(async (error: unknown) => {
        // Training goes on: the checkpoint before this one is still whole.
        const what = isOnDisk ? 'written, and the coordinator does not take it' : 'not written';
        log.error({ step }, `checkpoint share ${what}: ${messageOf(error)}`);
        metrics.checkpointFailed(error);
        await session
          .reportCheckpointPart({ generation, step, files: [], failure: messageOf(error) })
          .catch((cause: unknown) => {
            log.warn({ step }, `could not report the failed checkpoint: ${messageOf(cause)}`);
          });
      });
    },
    async catchUp() {
      const step = copier === undefined ? undefined : await newestCheckpointStep(run.folder);
      if (step !== undefined) copier?.copy(step);
    },
    async settled(onProgress) {
      await writing;
      const limitMs = timeLimits(run.plan).barrierMs / 2;
      const limits = { limitMs, stillMs: Math.min(COPY_STILL_MS, limitMs) };
      await copier?.settled({ ...limits, ...(onProgress === undefined ? {} : { onProgress }) });
    },
    async close() {
      await writing;
      await copier?.close();
      await files.close();
    },
  };
}
