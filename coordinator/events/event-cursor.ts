/** The events of a journal in their order, each in its envelope. */
import { eventSubject, type CloudEvent, type RunEventName } from '../../proto/run-events.ts';
import { spellNumbers } from '../json-numbers.ts';
import { openEventTable } from './event-table.ts';
import { followJournal } from './journal-follower.ts';

/** An event as it is sent. */
export interface OutgoingEvent {
  /** @see CloudEvent.id */
  readonly id: string;
  /** Number of its record. */
  readonly seq: number;
  readonly timeMs: number;
  /** Of NATS. */
  readonly subject: string;
  /** JSON of a {@link CloudEvent}. */
  readonly payload: string;
}

/** A place in the events of a journal. */
export interface EventCursor {
  /** The event at this place; undefined where the journal ends for now. @throws VideoloomError JOURNAL_NOT_FOLLOWED */
  peek(): Promise<OutgoingEvent | undefined>;
  /** Goes on to the next one. */
  advance(): void;
  /** Number of the last record that was read. */
  readonly seq: number;
  close(): Promise<void>;
}

/** Opens the journal at `path` at its first event. */
export async function openEventCursor(path: string, runId: string): Promise<EventCursor> {
  const journal = await followJournal(path);
  const eventsOf = openEventTable();
  let waiting: OutgoingEvent[] = [];
  let seq = 0;
  return {
    async peek() {
      while (waiting.length === 0) {
        const next = await journal.next();
        if (next === undefined) return undefined;
        const { record, checksum } = next;
        ({ seq } = record);
        waiting = eventsOf(record).map(({ name, about, data }, nth) => {
          const id = `${runId}:${seq}:${checksum}${nth === 0 ? '' : `.${nth}`}`;
          const event = envelope(runId, { id, name, about, time: record.time, data });
          return {
            ...{ id, seq, timeMs: Date.parse(record.time), subject: eventSubject(runId, name) },
            payload: JSON.stringify(event, spellNumbers),
          };
        });
      }
      return waiting[0];
    },
    advance() {
      waiting.shift();
    },
    get seq() {
      return seq;
    },
    close: () => journal.close(),
  };
}

/** Ids of all events of a journal as it is now, in order. */
export async function* eventIds(path: string, runId: string): AsyncGenerator<string> {
  const cursor = await openEventCursor(path, runId);
  try {
    for (let event = await cursor.peek(); event !== undefined; event = await cursor.peek()) {
      yield event.id;
      cursor.advance();
    }
  } finally {
    await cursor.close();
  }
}

/** Id of the last event of a journal as it is now; undefined where it has none. */
export async function lastEventId(path: string, runId: string): Promise<string | undefined> {
  let last: string | undefined;
  for await (const id of eventIds(path, runId)) last = id;
  return last;
}

interface Told {
  readonly id: string;
  readonly name: RunEventName;
  readonly about: string | undefined;
  readonly time: string;
  readonly data: CloudEvent['data'];
}

function envelope(runId: string, { id, name, about, time, data }: Told): CloudEvent {
  return {
    ...{ specversion: '1.0', id, source: `/videoloom/runs/${runId}`, type: `videoloom.${name}` },
    ...(about === undefined ? {} : { subject: about }),
    ...{ time, datacontenttype: 'application/json', data },
  };
}
