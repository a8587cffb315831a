import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream } from '../proto/grpc.ts';
import { SUMMARY_FILE } from '../proto/run-plan.ts';
import {
  ask,
  ASK_AGAIN_MS,
  isCoordinatorAddress,
  isOver,
  PATIENCE_MS,
  unreachable,
  type Asking,
  type OperatorOptions,
} from './ask-run.ts';
import { hasEnded, showLeft } from './reports/left-run.ts';
import { openRunView, summary, type Outcome } from './view.ts';

export interface StatusOptions extends OperatorOptions {
  readonly json?: boolean;
  readonly watch?: boolean;
}

/**
 * Prints the status of a run: of its coordinator while that lives, else what it left behind.
 *
 * @throws UsageError `RUN_NOT_FOUND` when the folder has no run; VideoloomError `COORDINATOR_UNREACHABLE` when nobody
 *   answers at an address, or nobody any more for a run that is watched and has not ended
 */
export async function showStatus(run: string, options: StatusOptions): Promise<void> {
  const isAddress = await isCoordinatorAddress(run);
  const asJson = options.json === true;
  if (options.watch === true) {
    await watchStatus(run, { ...options, isAddress });
    return;
  }
  const status = await ask(run, { ...options, isAddress }, async (channel) => {
    const response = await call(channel, Rpc.getStatus, {}, { timeoutMs: 5000 });
    return response.status;
  });
  if (status !== undefined) print(status, asJson, run);
  else if (isAddress) throw unreachable(run);
  else await showWhatIsLeft(run, asJson);
}

/** Shows a run until it ends, past coordinators that are killed and started again. */
async function watchStatus(run: string, options: StatusOptions & Asking): Promise<void> {
  const asJson = options.json === true;
  const view = openRunView(process.stdout);
  let heardMs = performance.now();
  for (let isNew = true; ; isNew = false) {
    const askedMs = performance.now();
    const last = await ask(run, options, async (channel, isOurs) => {
      let latest: RunStatus | undefined;
      for await (const { status } of callStream(
        channel,
        Rpc.watchStatus,
        {},
        { timeoutMs: Infinity },
      )) {
        if (status === undefined || !isOurs(status)) return undefined;
        heardMs = performance.now();
        latest = status;
        if (asJson) process.stdout.write(`${JSON.stringify(status)}\n`);
        else view.show(status);
      }
      return latest;
    });
    if (last !== undefined && isOver(last)) {
      view.end();
      if (!asJson) print(last, asJson, run);
      return;
    }
    const isLate = performance.now() - heardMs > PATIENCE_MS;
    // A journal may be long: it is read when the coordinator falls silent, and once more before it is given up.
    const isToBeRead = isNew || isLate || heardMs > askedMs;
    if (!options.isAddress && isToBeRead && (await hasEnded(run))) {
      view.end();
      await showWhatIsLeft(run, asJson);
      return;
    }
    if (isLate) {
      view.end();
      throw unreachable(run, options.isAddress);
    }
    await delay(ASK_AGAIN_MS);
  }
}

/** The figures of a finished run, else how far it came. */
async function showWhatIsLeft(folder: string, asJson: boolean): Promise<void> {
  const left = await readJson<Outcome & { runId: string; step: number }>(
    join(folder, SUMMARY_FILE),
  );
  if (left === undefined) {
    await showLeft(folder, asJson);
    return;
  }
  const text = `${left.runId}: finished, step ${left.step}\n${summary(left, { folder })}`;
  process.stdout.write(`${asJson ? JSON.stringify(left) : text}\n`);
}

function print(status: RunStatus, asJson: boolean, folder: string): void {
  if (asJson) {
    process.stdout.write(`${JSON.stringify(status)}\n`);
    return;
  }
  const phase = Object.entries(RunPhase).find(([, value]) => value === status.phase)?.[0] ?? '';
  process.stdout.write(
    `${status.runId}: ${phase.toLowerCase()}, step ${status.committedStep} of ${status.totalSteps}\n` +
      `${summary(status, { folder })}\n`,
  );
}

async function readJson<T>(file: string): Promise<T | undefined> {
  try {
    return JSON.parse(await readFile(file, 'utf8')) as T;
  } catch {
    return undefined;
  }
}
