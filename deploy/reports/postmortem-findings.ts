/** What the black boxes of a run's workers and its journal say together. Pure: the look at processes is an argument. */
import type { JournalRecord } from '../../coordinator/journal.ts';
import type { ReadBox } from '../../worker/black-box/read.ts';
import type { BoxOwner, BoxRecord } from '../../worker/black-box/record.ts';

/** What became of a process: `gone` without a word is killed, `paused` is stopped by a signal. */
export type Fate = 'running' | 'paused' | 'finished' | 'failed' | 'gone';

/** A collective that was begun and not ended. */
export interface OpenCollective {
  readonly name: string;
  readonly step: number;
  readonly sinceMs: number;
  /** Members of the generation that had not begun it; where all had, those that have stopped. */
  readonly waitsFor: readonly string[];
}

/** One process of a worker, as its box tells. */
export interface Story {
  readonly owner: BoxOwner;
  readonly fate: Fate;
  /** Code of the error that it ended with. */
  readonly exitCode: string | undefined;
  /** Whether a later process of the same worker has taken its place. */
  readonly isReplaced: boolean;
  readonly generation: number;
  /** The last step whose state it held. */
  readonly heldStep: number;
  readonly phase: string;
  readonly phaseSinceMs: number;
  readonly collective: OpenCollective | undefined;
  /** Its last sign of life. */
  readonly lastMs: number;
  /** Why the coordinator took it for lost, and when. */
  readonly loss: { readonly reason: string; readonly timeMs: number } | undefined;
}

/** A number that should be the same everywhere and is not. */
export interface Divergence {
  readonly kind: 'gradient' | 'weights';
  readonly step: number;
  /** Workers by what they had, most workers first. */
  readonly sides: readonly { readonly digest: number; readonly workers: readonly string[] }[];
  /** Who is alone against the others; undefined where nobody is in the majority. */
  readonly suspects: readonly string[] | undefined;
  /** The last step before it at which all had the same, of the same kind; 0 = none on record. */
  readonly lastEqualStep: number;
}

export interface TimelineEntry {
  readonly timeMs: number;
  readonly who: string;
  readonly what: string;
}

export interface Postmortem {
  readonly stories: readonly Story[];
  /** Of the processes that stopped without being replaced, or stand still, the first; of a finished run, none. */
  readonly firstStopped: Story | undefined;
  readonly divergence: Divergence | undefined;
  readonly isFinished: boolean;
  readonly timeline: readonly TimelineEntry[];
}

export interface PostmortemOptions {
  readonly boxes: readonly ReadBox[];
  readonly journal: readonly JournalRecord[];
  /** State letter of a process as the kernel has it; undefined when it is gone, `unknown` when nobody here can tell. */
  readonly stateOf: (owner: BoxOwner) => string | undefined;
}

/** A process that does nothing for so long while others wait for it stands still. */
const STILL_MS = 5000;
/** A process of another host is taken for gone when its box was silent so much longer than the youngest. */
const SILENT_MS = 3000;
const MAX_TIMELINE = 24;

export function examine({ boxes, journal, stateOf }: PostmortemOptions): Postmortem {
  const newestMs = Math.max(0, ...boxes.map(({ beatMs }) => beatMs));
  const drafts = boxes.map((box) => draftOf(box, { boxes, journal, newestMs, stateOf }));
  const stories = drafts.map((draft) => ({
    ...draft.story,
    collective: openCollectiveOf(draft, drafts),
  }));
  const isFinished = journal.some(({ type }) => type === 'finished');
  return {
    stories,
    firstStopped: isFinished ? undefined : firstStopped(stories),
    divergence: findDivergence(boxes),
    isFinished,
    timeline: timelineOf(stories, journal),
  };
}

interface Draft {
  readonly box: ReadBox;
  readonly story: Omit<Story, 'collective'>;
}

function draftOf(
  box: ReadBox,
  { boxes, journal, newestMs, stateOf }: PostmortemOptions & { readonly newestMs: number },
): Draft {
  const { owner, records, beatMs } = box;
  const exit = last(records, ({ kind }) => kind === 'exit');
  const phase = last(records, ({ kind }) => kind === 'phase');
  const lastMs = Math.max(beatMs, records.at(-1)?.timeMs ?? 0);
  const loss = journal.find(
    (record) =>
      record.type === 'worker-lost' &&
      record.workerId === owner.workerId &&
      Date.parse(record.time) >= lastMs - 2 * STILL_MS,
  );
  const hasLater = boxes.some(
    (other) => other.owner.workerId === owner.workerId && other.owner.openedMs > owner.openedMs,
  );
  const story = {
    ...{ owner, lastMs, isReplaced: hasLater },
    fate: fateOf(exit, stateOf(owner), newestMs - lastMs > SILENT_MS),
    exitCode: exit === undefined || exit.text === 'finished' ? undefined : exit.text,
    generation: Math.max(0, ...records.map(({ generation }) => generation)),
    heldStep: last(records, ({ kind }) => kind === 'step')?.step ?? 0,
    phase: phase?.text ?? 'start',
    phaseSinceMs: phase?.timeMs ?? owner.openedMs,
    loss:
      loss?.type === 'worker-lost'
        ? { reason: loss.reason, timeMs: Date.parse(loss.time) }
        : undefined,
  };
  return { box, story };
}

function fateOf(exit: BoxRecord | undefined, state: string | undefined, isSilent: boolean): Fate {
  if (exit !== undefined) return exit.text === 'finished' ? 'finished' : 'failed';
  if (state === undefined || state === 'Z' || state === 'X') return 'gone';
  if (state === 'T' || state === 't') return 'paused';
  return state === 'unknown' && isSilent ? 'gone' : 'running';
}

const hasStopped = ({ fate }: Pick<Story, 'fate'>): boolean =>
  fate !== 'running' && fate !== 'finished';

function openCollectiveOf({ box }: Draft, drafts: readonly Draft[]): OpenCollective | undefined {
  const at = box.records.findLastIndex(({ kind }) => kind === 'begin');
  const begun = box.records[at];
  if (begun === undefined) return undefined;
  const isOver = box.records
    .slice(at + 1)
    .some(({ kind, text }) => (kind === 'end' && text === begun.text) || kind === 'failed');
  if (isOver) return undefined;
  const { generation, step, text: name, timeMs: sinceMs } = begun;
  const members =
    last(
      box.records,
      ({ kind, generation: of }) => kind === 'generation' && of === generation,
    )?.text.split(' ') ?? [];
  const others = members.filter((workerId) => workerId !== box.owner.workerId);
  const latest = (workerId: string): Draft | undefined =>
    drafts.findLast(({ story }) => story.owner.workerId === workerId);
  const hasBegun = (workerId: string): boolean =>
    latest(workerId)?.box.records.some(
      (record) =>
        record.kind === 'begin' &&
        record.text === name &&
        record.step === step &&
        record.generation === generation,
    ) === true;
  const missing = others.filter((workerId) => !hasBegun(workerId));
  const stopped = others.filter((workerId) => {
    const draft = latest(workerId);
    return draft === undefined || hasStopped(draft.story);
  });
  return { name, step, sinceMs, waitsFor: missing.length > 0 ? missing : stopped };
}

function firstStopped(stories: readonly Story[]): Story | undefined {
  const current = stories.filter(({ isReplaced }) => !isReplaced);
  const stopped = current.filter(hasStopped).sort((a, b) => a.lastMs - b.lastMs);
  // Who ends with an error names what happened to it; who ends without a word before it is why.
  if (stopped[0] !== undefined) return stopped[0];
  const awaited = new Set(current.flatMap(({ collective }) => collective?.waitsFor ?? []));
  return current
    .filter(
      ({ owner, collective, phaseSinceMs, lastMs, fate }) =>
        fate === 'running' &&
        collective === undefined &&
        awaited.has(owner.workerId) &&
        lastMs - phaseSinceMs > STILL_MS,
    )
    .sort((a, b) => a.phaseSinceMs - b.phaseSinceMs)[0];
}

/** The first step at which two processes, or one and itself before a restart, had different bits of the same. */
export function findDivergence(boxes: readonly ReadBox[]): Divergence | undefined {
  const seen = new Map<string, Map<number, Set<string>>>();
  for (const { owner, records } of boxes) {
    for (const { kind, step, generation, digest } of records) {
      if (kind !== 'gradient' && kind !== 'weights') continue;
      const key = `${kind} ${step} ${owner.sameBitsAlways ? 0 : generation}`;
      const sides = seen.get(key) ?? new Map<number, Set<string>>();
      seen.set(key, sides);
      sides.set(digest, (sides.get(digest) ?? new Set()).add(owner.workerId));
    }
  }
  const all = [...seen].map(([key, sides]) => {
    const [kind, step] = key.split(' ') as ['gradient' | 'weights', string];
    return { kind, step: Number(step), sides };
  });
  // A wrong gradient makes wrong weights of its own step, wrong weights a wrong gradient of the next.
  const rank = (kind: string): number => (kind === 'gradient' ? 0 : 1);
  all.sort((a, b) => a.step - b.step || rank(a.kind) - rank(b.kind));
  const first = all.find(({ sides }) => sides.size > 1);
  if (first === undefined) return undefined;
  const sides = [...first.sides]
    .map(([digest, workers]) => ({ digest, workers: [...workers].sort() }))
    .sort((a, b) => b.workers.length - a.workers.length);
  const isClear = sides[0]!.workers.length > sides[1]!.workers.length;
  const lastEqual = all.findLast(
    ({ kind, step, sides: { size } }) => kind === first.kind && step < first.step && size === 1,
  );
  return {
    ...{ kind: first.kind, step: first.step, sides },
    suspects: isClear ? sides.slice(1).flatMap(({ workers }) => workers) : undefined,
    lastEqualStep: lastEqual?.step ?? 0,
  };
}

function timelineOf(stories: readonly Story[], journal: readonly JournalRecord[]): TimelineEntry[] {
  const entries = journal.flatMap((record): TimelineEntry[] => {
    const what = whatOf(record);
    return what === undefined ? [] : [{ timeMs: Date.parse(record.time), who: 'journal', what }];
  });
  const commit = journal.findLast(({ type }) => type === 'commit');
  if (commit?.type === 'commit')
    entries.push({
      ...{ timeMs: Date.parse(commit.time), who: 'journal' },
      what: `step ${commit.step} committed, the last`,
    });
  for (const { owner, fate, lastMs, exitCode, phase, phaseSinceMs, collective } of stories) {
    const who = `${owner.workerId} (${owner.pid})`;
    entries.push({ timeMs: owner.openedMs, who, what: `started on ${owner.host}` });
    if (fate !== 'finished')
      entries.push({ timeMs: phaseSinceMs, who, what: `last phase: ${phase}` });
    if (collective !== undefined)
      entries.push({
        ...{ timeMs: collective.sinceMs, who },
        what: `began "${collective.name}" of step ${collective.step} and did not end it`,
      });
    if (fate === 'gone' || fate === 'paused')
      entries.push({ timeMs: lastMs, who, what: 'last sign of life' });
    else if (fate !== 'running')
      entries.push({
        timeMs: lastMs,
        who,
        what: exitCode === undefined ? 'finished' : `ended: ${exitCode}`,
      });
  }
  return entries.sort((a, b) => a.timeMs - b.timeMs).slice(-MAX_TIMELINE);
}

/** The events of a journal that tell of more than an ordinary step. */
function whatOf(record: JournalRecord): string | undefined {
  switch (record.type) {
    case 'opened':
      return `a coordinator took the run (process ${record.pid})`;
    case 'worker-lost':
      return `${record.workerId} lost: ${record.reason}`;
    case 'generation':
      return `generation ${record.generation} after step ${record.committedStep}: ${record.members.map(({ workerId }) => workerId).join(', ')}`;
    case 'restored':
      return `went back to step ${record.step} (${record.from})`;
    case 'checkpoint-failed':
    case 'checkpoint-damaged':
      return `${record.type} at step ${record.step}: ${record.message}`;
    case 'stop-requested':
    case 'finished':
      return record.type;
    case 'stopped':
      return `stopped at step ${record.step}`;
    case 'failed':
      return `failed: ${record.code}: ${record.message}`;
    default:
      return undefined;
  }
}

function last(
  records: readonly BoxRecord[],
  matches: (record: BoxRecord) => boolean,
): BoxRecord | undefined {
  return records.findLast(matches);
}
