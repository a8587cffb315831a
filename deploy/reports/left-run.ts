import { join } from 'node:path';
import { lastEventId } from '../../coordinator/events/event-cursor.ts';
import { emptyHistory, extendHistory } from '../../coordinator/history.ts';
import { JOURNAL_FILE, readJournal } from '../../coordinator/journal.ts';
import { newestCheckpointStep } from '../../proto/checkpoint-manifest.ts';
import { exists } from '../../proto/exists.ts';
import { printable } from '../../proto/printable.ts';
import { readRunPlan, SUMMARY_FILE } from '../../proto/run-plan.ts';
import { shellWord } from '../../proto/shell-word.ts';

/** How a run stands that nobody leads. */
type LeftState = 'prepared' | 'gone' | 'stopped' | 'failed' | 'finished';

/** Whether a run has come to an end: it is finished, has failed or was stopped, and nobody has begun again since. */
export async function hasEnded(run: string): Promise<boolean> {
  // A coordinator that opens a finished run writes nothing behind its end but that it did.
  if (await exists(join(run, SUMMARY_FILE))) return true;
  const { state } = readLeft(run);
  return state !== 'prepared' && state !== 'gone';
}

/** Id of the last event that the journal of a run tells; empty where it cannot be read or tells none. */
export async function lastEventOf(run: string, runId: string): Promise<string> {
  return (await lastEventId(join(run, JOURNAL_FILE), runId).catch(() => undefined)) ?? '';
}

/**
 * Prints what is known of a run whose coordinator does not answer: how far it came and how it ended, which it gives.
 * @throws UsageError RUN_PLAN_INVALID
 */
export async function showLeft(run: string, asJson: boolean): Promise<LeftState> {
  const { runId, totalSteps } = await readRunPlan(run);
  const { state: told, failure, step } = readLeft(run);
  // One that is finished may have been opened again since.
  const state = (await exists(join(run, SUMMARY_FILE))) ? 'finished' : told;
  const checkpoint = await newestCheckpointStep(run);
  if (asJson) {
    const left = { runId, state, step, totalSteps, checkpoint, failure: failure || undefined };
    process.stdout.write(`${JSON.stringify(left)}\n`);
    return state;
  }
  const how = {
    prepared: 'prepared, and not begun',
    gone: `its coordinator does not answer (killed, or cut off), at step ${step} of ${totalSteps}`,
    stopped: `stopped at step ${step} of ${totalSteps}`,
    failed: `failed at step ${step} of ${totalSteps}`,
    finished: `finished, step ${step}`,
  }[state];
  const kept = checkpoint === undefined ? 'no checkpoint yet' : `newest checkpoint ${checkpoint}`;
  const lines = [
    `${runId}: ${how}${state === 'prepared' ? '' : ` (${kept})`}`,
    ...(failure === '' ? [] : [`  ${printable(failure)}`]),
    ...(state === 'finished' ? [] : [`go on with: videoloom resume ${shellWord(run)}`]),
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
  return state;
}

function readLeft(run: string): { state: LeftState; failure: string; step: number } {
  const history = emptyHistory();
  let state = 'prepared' as LeftState;
  let failure = '';
  readJournal(join(run, JOURNAL_FILE), (record) => {
    extendHistory(history, record);
    if (record.type === 'opened') [state, failure] = ['gone', ''];
    else if (record.type === 'stopped' || record.type === 'finished') state = record.type;
    else if (record.type === 'failed')
      [state, failure] = ['failed', `${record.code}: ${record.message}`];
  });
  return { state, failure, step: history.committedStep };
}
