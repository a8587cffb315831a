import { join } from 'node:path';
import { readRunPlan } from '../../proto/run-plan.ts';
import { eventIds } from '../events/event-cursor.ts';
import { JOURNAL_FILE } from '../journal.ts';

/** Ids of all events that a run's journal holds, in order. */
export async function journaled(run: string): Promise<string[]> {
  const { runId } = await readRunPlan(run);
  const ids: string[] = [];
  for await (const id of eventIds(join(run, JOURNAL_FILE), runId)) ids.push(id);
  return ids;
}
