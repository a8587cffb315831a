/** The thread of `copier.ts`: puts checkpoints into the store, so that hashing and sending hold nobody up. */
import { parentPort, workerData } from 'node:worker_threads';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import type { CopierSetting, CopyAnswer, CopyCommand } from './copier.ts';
import { copyCheckpoint, copyRunFiles, pruneCopies } from './copy-run.ts';
import { openRunStore } from './run-store.ts';

const setting = workerData as CopierSetting;
const { folder, runId } = setting;
const say = (answer: CopyAnswer): void => {
  parentPort!.postMessage(answer);
};
const store = openRunStore(setting.store, runId, {
  onProgress: (numBytes) => {
    say({ type: 'progress', numBytes });
  },
});
/** What the last attempt put of the checkpoint of a step. */
let begun = { step: 0, done: new Set<string>() };

parentPort!.on('message', ({ step }: CopyCommand) => {
  copy(step).then(say, (error: unknown) => {
    const code = error instanceof VideoloomError ? error.code : 'BUG';
    const isRetryable = error instanceof VideoloomError && error.retryable;
    say({ type: 'failed', step, code, message: messageOf(error), isRetryable });
  });
});

async function copy(step: number): Promise<CopyAnswer> {
  await copyRunFiles(folder, store);
  if (begun.step !== step) begun = { step, done: new Set() };
  const outcome = await copyCheckpoint(folder, step, store, { done: begun.done });
  let pruneFailure: string | undefined;
  let removed: readonly number[] = [];
  try {
    removed = await pruneCopies(store, setting);
  } catch (error) {
    pruneFailure = messageOf(error);
  }
  return { type: 'ended', step, outcome, removed, pruneFailure };
}
