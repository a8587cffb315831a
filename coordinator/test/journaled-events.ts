import { join } from 'node:path';
import { readRunPlan } from '../../proto/run-plan.ts';
import { openEventCursor } from '../events/event-cursor.ts';
import { JOURNAL_FILE } from '../journal.ts';

/** Ids of all events that a run's journal holds, in order. */
export async function journaled(run: string): Promise<string[]> {
  const { runId } = await readRunPlan(run);
  const cursor = await openEventCursor(join(run, JOURNAL_FILE), runId);
  const ids: string[] = [];
  for (let event = await cursor.peek(); event !== undefined; event = await cursor.peek()) {
    ids.push(event.id);
    cursor.advance();
  }
  await cursor.close();
  return ids;
}
