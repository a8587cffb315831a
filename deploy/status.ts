import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { SUMMARY_FILE } from '../proto/run-plan.ts';
import {
  currentStatus,
  followRun,
  placeOf,
  unreachable,
  type OperatorOptions,
  type RunPlace,
} from './ask-run.ts';
import { showLeft } from './reports/left-run.ts';
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
  const place = await placeOf(run);
  const asJson = options.json === true;
  if (options.watch === true) {
    await watchStatus(place, options);
    return;
  }
  const status = await currentStatus(place, options);
  if (status !== undefined) print(status, asJson, place.run);
  else if (place.isAddress) throw unreachable(place);
  else await showWhatIsLeft(place.run, asJson);
}

/** Shows a run until it ends, past coordinators that are killed and started again. */
async function watchStatus(place: RunPlace, options: StatusOptions): Promise<void> {
  const asJson = options.json === true;
  const view = openRunView(process.stdout);
  const last = await followRun(place, options, {
    onStatus(status) {
      if (asJson) process.stdout.write(`${JSON.stringify(status)}\n`);
      else view.show(status);
    },
  }).finally(() => {
    view.end();
  });
  if (last === undefined) await showWhatIsLeft(place.run, asJson);
  else if (!asJson) print(last, asJson, place.run);
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
