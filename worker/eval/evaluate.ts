import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UsageError } from '../../proto/errors.ts';
import { checkOutputFile, outputError } from '../../proto/output-path.ts';
import { drawnOf, openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import { rowsOf } from '../batches.ts';
import { openAnswering, type Answering } from '../generation/answers.ts';
import type { Run } from '../run.ts';
import type { Row } from '../systems/system.ts';
import { openTrainedRun, type TrainedRunOptions } from '../trained-run.ts';
import { scoreAnswers, scoreCaptions, type Answered, type Score } from './scores/score.ts';

export interface EvaluateOptions extends TrainedRunOptions {
  /** Asked of every clip, in place of what the samples ask; empty: theirs, or what the system asks by itself. */
  readonly question: string;
  /** How many are asked at most, evenly drawn. */
  readonly limit: number;
  /** JSON Lines with what was said; undefined: in the run folder. */
  readonly out?: string | undefined;
  readonly say: (line: string) => void;
}

/** A question about a held-out sample's media. */
export interface HeldOutQuestion {
  readonly id: string;
  /** Number of the sample. */
  readonly sample: number;
  /** Empty where the system asks by itself. */
  readonly question: string;
  readonly references: readonly string[];
  /** A caption is scored by its words, an answer by being right. */
  readonly kind: 'caption' | 'answer';
}

export interface Evaluated {
  readonly scores: readonly Score[];
  readonly file: string;
  readonly step: number;
}

/**
 * Has the newest checkpoint of a run caption its held-out clips, or answer their questions, and scores what it says.
 *
 * @throws UsageError `NO_CHECKPOINT`, `OUT_NOT_WRITABLE`, `EVALUATE_UNAVAILABLE` where the system writes no text,
 *   `NOTHING_HELD_OUT`; errors of the data
 */
export async function evaluate(options: EvaluateOptions): Promise<Evaluated> {
  const { folder, limit, question, say } = options;
  const file = options.out ?? join(folder, 'answers.jsonl');
  await checkOutputFile(file);
  const trained = await openTrainedRun(options);
  const { run, engine, step, params, frozen } = trained;
  let answering: Answering | undefined;
  try {
    const { answers, name } = run.system;
    if (answers === undefined) {
      throw new UsageError(
        'EVALUATE_UNAVAILABLE',
        `${name} writes no text: its held-out figures are those of videoloom probe`,
      );
    }
    const all = questionsOf(run.index.heldOut, question);
    if (all.length === 0)
      throw new UsageError('NOTHING_HELD_OUT', `${folder} holds out no sample with words`);
    const asked = drawnOf(all, limit, openRng(run.config.train.seed, 'evaluate'));
    answering = openAnswering(engine, answers, { params, frozen });
    const { said, numSkipped } = await answersTo(run, asked, answering);
    if (numSkipped > 0)
      say(`${numSkipped} of ${asked.length} clips do not decode, and do not count`);
    const lines = said.map(({ asked: { id, question: own, references }, answer }) =>
      JSON.stringify({ id, ...(own === '' ? {} : { question: own }), answer, references }),
    );
    await writeFile(file, lines.map((line) => `${line}\n`).join('')).catch((error: unknown) => {
      throw outputError(error, file);
    });
    return { scores: scoresOf(said), file, step };
  } finally {
    answering?.close();
    await trained.close();
  }
}

/**
 * What held-out samples ask, in their order: each turn of a conversation that begins with a question is one with its answer;
 * of anything else the text is a caption. Captions of the same media, as of data sets that have five a picture, are
 * references of one question.
 * @param question asked in place of theirs, to which then their captions are the references
 */
export function questionsOf(samples: readonly Sample[], question: string): HeldOutQuestion[] {
  const questions = new Map<string, HeldOutQuestion>();
  const add = (
    found: Omit<HeldOutQuestion, 'references'>,
    key: string,
    reference: string,
  ): void => {
    const known = questions.get(key);
    questions.set(key, {
      ...(known ?? found),
      references: [...(known?.references ?? []), reference],
    });
  };
  for (const [number, { id, media, text, parts = [] }] of samples.entries()) {
    const where = JSON.stringify(media);
    const asksAt = parts.findIndex(({ role }) => role === 'user');
    const answersAt = parts.findIndex(({ role }, at) => role === 'assistant' && at > asksAt);
    if (question === '' && asksAt >= 0 && answersAt > 0) {
      const turn = parts.slice(asksAt, answersAt).map((part) => part.text ?? '');
      const own = turn.join(' ').replaceAll(/\s+/g, ' ').trim();
      const found = { id, sample: number, question: own, kind: 'answer' } as const;
      add(found, JSON.stringify([where, own]), parts[answersAt]!.text ?? '');
    } else if (text.trim() !== '') {
      const found = { id, sample: number, question, kind: 'caption' } as const;
      add(found, where, text);
    }
  }
  return [...questions.values()];
}

interface Said {
  readonly asked: HeldOutQuestion;
  readonly answer: string;
}

/** Answers in order of the questions; those about clips that do not decode are left out. */
async function answersTo(
  { index, config, heldOutLoader }: Run,
  asked: readonly HeldOutQuestion[],
  answering: Answering,
): Promise<{ said: Said[]; numSkipped: number }> {
  const { signal } = new AbortController();
  const answers = new Map<HeldOutQuestion, string>();
  for (const [question, group] of groupedBy(asked, (each) => each.question)) {
    const size = config.train.microbatchSize;
    for (let start = 0; start < group.length; start += size) {
      const batch = group.slice(start, start + size);
      const leases = batch.map(({ sample }) => ({
        sample,
        epoch: 0,
        substitutes: othersThan(sample, asked),
      }));
      const clips = await heldOutLoader.load(leases, signal);
      const rows = rowsOf(index.heldOut, leases, clips);
      // One program for each number of rows: the last ones are filled up.
      const filled: Row[] = Array.from({ length: size }, (_, at) => rows[at % rows.length]!);
      const texts = await answering.ask(filled, question);
      for (const [at, one] of batch.entries())
        if (clips[at]!.skipped === undefined) answers.set(one, texts[at]!.text);
    }
  }
  const said = asked.flatMap((one) => {
    const answer = answers.get(one);
    return answer === undefined ? [] : [{ asked: one, answer }];
  });
  return { said, numSkipped: asked.length - said.length };
}

/** Clips that stand in for one that does not decode, so that its batch is whole. */
function othersThan(sample: number, asked: readonly HeldOutQuestion[]): number[] {
  const others = asked.map((each) => each.sample).filter((each) => each !== sample);
  return others.slice(0, 4);
}

function groupedBy<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    groups.set(key, [...(groups.get(key) ?? []), item]);
  }
  return groups;
}

function scoresOf(said: readonly Said[]): Score[] {
  const of = (kind: HeldOutQuestion['kind']): Answered[] =>
    said.flatMap(({ asked, answer }) =>
      asked.kind === kind ? [{ id: asked.id, answer, references: asked.references }] : [],
    );
  const [captions, answers] = [of('caption'), of('answer')];
  return [
    ...(captions.length === 0 ? [] : [...scoreCaptions(captions), ...scoreAnswers(captions)]),
    ...(answers.length === 0 ? [] : scoreAnswers(answers)),
  ];
}
