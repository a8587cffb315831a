import { closeSync, openSync, readSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { join } from 'node:path';

/** A line of a run's journal, so far as drills read it. */
export interface JournalEvent {
  readonly type: string;
  /** When it was written, milliseconds since 1970. */
  readonly atMs: number;
  readonly step?: number;
  readonly generation?: number;
  readonly workerId?: string;
  readonly reason?: string;
  readonly message?: string;
  readonly phase?: string;
  readonly firstPosition?: number;
  readonly numSamples?: number;
  readonly pid?: number;
  readonly code?: string;
  readonly weightsSha256?: string;
  readonly members?: readonly { readonly workerId: string }[];
}

/** A run's journal, read while it is written. */
export interface RunJournal {
  /** All that was read so far. */
  readonly events: readonly JournalEvent[];
  /** Reads what is new. */
  poll(): void;
  /**
   * The first event from index `from` on that `fits`; undefined when there is none until `limitMs` have passed, the
   * signal aborts or the run is over.
   */
  next(
    fits: (event: JournalEvent) => boolean,
    options: {
      readonly from: number;
      readonly limitMs: number;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<JournalEvent | undefined>;
  /** The last step committed; a run that was thrown back has a lower one than before. */
  committedStep(): number;
  /** Workers of the last generation. */
  members(): readonly string[];
  isOver(): boolean;
}

const POLL_MS = 10;
const OVER: ReadonlySet<string> = new Set(['finished', 'failed']);

/** Follows the journal of the run in `folder`, which need not be there yet. */
export function followJournal(folder: string): RunJournal {
  const path = join(folder, 'journal.jsonl');
  const events: JournalEvent[] = [];
  const chunk = Buffer.allocUnsafe(1 << 16);
  let [position, rest] = [0, Buffer.alloc(0)];
  const poll = (): void => {
    let file: number;
    try {
      file = openSync(path, 'r');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
      throw error;
    }
    try {
      for (;;) {
        const length = readSync(file, chunk, 0, chunk.length, position);
        if (length === 0) break;
        position += length;
        rest = Buffer.concat([rest, chunk.subarray(0, length)]);
        for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
          const event = parse(rest.toString('utf8', 0, end));
          if (event !== undefined) events.push(event);
          rest = rest.subarray(end + 1);
        }
      }
    } finally {
      closeSync(file);
    }
  };
  const isOver = (): boolean => {
    const last = events.findLast(({ type }) => OVER.has(type) || type === 'opened');
    return last !== undefined && OVER.has(last.type);
  };
  return {
    events,
    poll,
    isOver,
    async next(fits, { from, limitMs, signal }) {
      const endMs = performance.now() + limitMs;
      for (let index = from; ;) {
        poll();
        for (; index < events.length; index++) if (fits(events[index]!)) return events[index]!;
        if (isOver() || signal?.aborted === true || performance.now() > endMs) return undefined;
        await delay(POLL_MS);
      }
    },
    committedStep: () =>
      events.findLast(({ type }) => type === 'commit' || type === 'restored')?.step ?? 0,
    members: () =>
      (events.findLast(({ type }) => type === 'generation')?.members ?? []).map(
        ({ workerId }) => workerId,
      ),
  };
}

/** A line that a killed coordinator has torn belongs to nobody: its successor cuts it off. */
function parse(line: string): JournalEvent | undefined {
  try {
    const { time, ...event } = JSON.parse(line) as Omit<JournalEvent, 'atMs'> & { time: string };
    return { ...event, atMs: Date.parse(time) };
  } catch {
    return undefined;
  }
}
