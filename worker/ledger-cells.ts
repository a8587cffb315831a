/**
 * The numbers behind a worker's time ledger, in memory that its threads share: one thread writes them, and the one that
 * sends the beats reads them, also while the first is busy.
 */
import type { TimeLedger } from '../proto/gen/videoloom/v1/run.ts';
import {
  ACTIVITIES,
  NO_TIME,
  STEP_ACTIVITIES,
  sumLedgers,
  type Activity,
} from '../proto/time-ledger.ts';

/** What a worker does; a step that comes to nothing is booked as redone later. */
export type Phase = Exclude<Activity, 'redo'>;

/** Milliseconds on the clock that all threads of a process share. */
export function clockMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** What one look at the cells gives. */
export interface Pulse {
  readonly phase: Phase;
  /** Signs of progress since the start. */
  readonly progress: number;
  /** Since the last of them, or since the phase began. */
  readonly stillMs: number;
  readonly phaseMs: number;
  /** The committed step whose state is in memory, and the generation that committed it. */
  readonly heldStep: number;
  readonly heldIn: number;
  readonly isLeaving: boolean;
  /** Since the start, without the step under way. */
  readonly settled: TimeLedger;
  /** The step under way. */
  readonly step: TimeLedger;
}

/** Places of the single numbers. */
const AT = {
  phase: 1,
  signs: 2,
  signMs: 3,
  phaseMs: 4,
  bookedMs: 5,
  startMs: 6,
  isInStep: 7,
  heldStep: 8,
  isLeaving: 9,
  heldIn: 10,
} as const;
type Place = Exclude<keyof typeof AT, never>;
const FIRST_LIST = 11;

/** Ranks told as waited for: all of them, by each worker of a large run, would be numbers by the million. */
export const MAX_TOLD_RANKS = 16;

/** Where an activity's time is counted, milliseconds. */
type Book = 'settled' | 'step';

/** One writer; readers open the same buffer. */
export class LedgerCells {
  readonly buffer: SharedArrayBuffer;
  readonly #values: Float64Array;
  /** Odd while the writer is in the middle of a change. */
  readonly #version: Int32Array;
  readonly #numRanks: number;

  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.#values = new Float64Array(buffer);
    this.#version = new Int32Array(buffer, 0, 1);
    this.#numRanks = (this.#values.length - FIRST_LIST) / 2 - ACTIVITIES.length;
  }

  /** For a run whose generations have at most so many ranks. */
  static create(numRanks: number): LedgerCells {
    const numCells = FIRST_LIST + 2 * (ACTIVITIES.length + numRanks);
    return new LedgerCells(new SharedArrayBuffer(8 * numCells));
  }

  /** Runs `change`, which no reader sees half of. */
  write(change: () => void): void {
    Atomics.add(this.#version, 0, 1);
    change();
    Atomics.add(this.#version, 0, 1);
  }

  get(place: Place): number {
    return this.#values[AT[place]]!;
  }

  set(place: Place, value: number): void {
    this.#values[AT[place]] = value;
  }

  add(book: Book, activity: Activity, ms: number): void {
    this.#values[this.#first(book) + ACTIVITIES.indexOf(activity)]! += ms;
  }

  addWait(book: Book, rank: number, ms: number): void {
    if (rank >= this.#numRanks) return;
    this.#values[this.#first(book) + ACTIVITIES.length + rank]! += ms;
  }

  /** Empties the book of the step and gives what stood in it. */
  takeStep(): { readonly activities: readonly number[]; readonly waits: readonly number[] } {
    const first = this.#first('step');
    const end = first + ACTIVITIES.length + this.#numRanks;
    const taken = [...this.#values.subarray(first, end)];
    this.#values.fill(0, first, end);
    return {
      activities: taken.slice(0, ACTIVITIES.length),
      waits: taken.slice(ACTIVITIES.length),
    };
  }

  /** Everything as it stands at `nowMs`, the phase that runs included. */
  pulse(nowMs = clockMs()): Pulse {
    for (let looks = 0; ; looks++) {
      const before = Atomics.load(this.#version, 0);
      const seen = this.#look(nowMs);
      // A writer that stays odd was stopped within its change: what there is has to do.
      if ((before % 2 === 0 && Atomics.load(this.#version, 0) === before) || looks === 1000)
        return seen;
    }
  }

  #look(nowMs: number): Pulse {
    const phase = ACTIVITIES[this.get('phase')] as Phase;
    const running = { activity: phase, ms: Math.max(0, nowMs - this.get('bookedMs')) };
    const isOfStep = this.get('isInStep') === 1 && isStepActivity(phase);
    const step = this.#ledgerOf('step', isOfStep ? running : undefined);
    const settled = this.#ledgerOf('settled', isOfStep ? undefined : running);
    const wallSeconds = Math.max(0, nowMs - this.get('startMs')) / 1000;
    return {
      phase,
      progress: this.get('signs'),
      stillMs: Math.max(0, Math.round(nowMs - this.get('signMs'))),
      phaseMs: Math.max(0, Math.round(nowMs - this.get('phaseMs'))),
      heldStep: this.get('heldStep'),
      heldIn: this.get('heldIn'),
      isLeaving: this.get('isLeaving') === 1,
      step,
      settled: { ...settled, wallSeconds: wallSeconds - step.wallSeconds },
    };
  }

  #ledgerOf(book: Book, running: { activity: Activity; ms: number } | undefined): TimeLedger {
    const first = this.#first(book);
    let wallSeconds = 0;
    const seconds = ACTIVITIES.map((activity, i) => {
      const ms = this.#values[first + i]! + (running?.activity === activity ? running.ms : 0);
      wallSeconds += ms / 1000;
      return [`${activity}Seconds`, ms / 1000] as const;
    });
    const waits = this.#values.subarray(
      first + ACTIVITIES.length,
      first + ACTIVITIES.length + this.#numRanks,
    );
    const longest = Array.from(waits, (ms, rank) => ({ rank, ms }))
      .filter(({ ms }) => ms > 0)
      .sort((a, b) => b.ms - a.ms)
      .slice(0, MAX_TOLD_RANKS);
    return {
      ...NO_TIME,
      ...Object.fromEntries(seconds),
      waitByRankSeconds: Object.fromEntries(longest.map(({ rank, ms }) => [rank, ms / 1000])),
      wallSeconds,
    };
  }

  #first(book: Book): number {
    return book === 'settled' ? FIRST_LIST : FIRST_LIST + ACTIVITIES.length + this.#numRanks;
  }
}

/** Whether time in a phase belongs to the step under way. */
export function isStepActivity(phase: Activity): boolean {
  return (STEP_ACTIVITIES as readonly string[]).includes(phase);
}

/** Both books together. */
export function totalOf({ settled, step }: Pick<Pulse, 'settled' | 'step'>): TimeLedger {
  return sumLedgers([settled, step]);
}
