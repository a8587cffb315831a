import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UsageError } from '../../proto/errors.ts';
import { checkOutputFile, outputError } from '../../proto/output-path.ts';
import { drawnOf, openRng } from '../../proto/random.ts';
import { shownKey, type Sample, type SamplePart } from '../../video/index/sample.ts';
import { isFileFault } from '../../video/loading/file-fault.ts';
import type { Clip } from '../../video/loading/loader.ts';
import { rowsOf } from '../batches.ts';
import { openAnswering, type Answering } from '../generation/answers.ts';
import type { Run } from '../run.ts';
import type { Row } from '../systems/system.ts';
import { openTrainedRun, type TrainedRunOptions } from '../trained-run.ts';
import { plainAnswer, scoreAnswers, scoreCaptions, type Answered } from './scores/score.ts';
import type { Score } from './scores/bootstrap.ts';

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
      throw new UsageError(
        'NOTHING_HELD_OUT',
        `${folder} holds out no sample with words` +
          (question === '' ? '' : `, or only conversations in which nobody asks "${question}"`),
      );
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
 * What held-out samples ask, in their order: each question of a conversation, by itself, with its answer; of anything else
 * the text is a caption. What is said of the same media, as captions of data sets that have five a picture, are references
 * of one question.
 * @param question asked in place of theirs: captions are its references, and of conversations the answers to that question
 */
export function questionsOf(samples: readonly Sample[], question: string): HeldOutQuestion[] {
  const questions = new Map<string, HeldOutQuestion>();
  const ids = new Set<string>();
  const add = (
    found: Omit<HeldOutQuestion, 'references'>,
    where: string,
    reference: string,
  ): void => {
    const key = JSON.stringify([where, plainAnswer(found.question)]);
    const known = questions.get(key);
    if (known !== undefined) {
      questions.set(key, { ...known, references: [...known.references, reference] });
      return;
    }
    // Of a conversation with several questions each has an id.
    let id = found.id;
    for (let turn = 2; ids.has(id); turn++) id = `${found.id}/${turn}`;
    ids.add(id);
    questions.set(key, { ...found, id, references: [reference] });
  };
  for (const [number, { id, media, text, parts = [] }] of samples.entries()) {
    const where = media.length === 0 ? id : shownKey({ media });
    const turns = turnsOf(parts);
    for (const turn of turns) {
      if (question !== '' && plainAnswer(turn.question) !== plainAnswer(question)) continue;
      add({ id, sample: number, question: turn.question, kind: 'answer' }, where, turn.answer);
    }
    if (turns.length === 0 && text.trim() !== '')
      add({ id, sample: number, question, kind: 'caption' }, where, text);
  }
  return [...questions.values()];
}

/** What a user asks, and the words that answer it. */
function turnsOf(parts: readonly SamplePart[]): { question: string; answer: string }[] {
  const turns: { question: string; answer: string }[] = [];
  let asked: string[] = [];
  for (const { role, text = '' } of parts) {
    if (role === 'user') asked.push(text);
    if (role !== 'assistant') continue;
    const question = asked.join(' ').replaceAll(/\s+/g, ' ').trim();
    if (question !== '') turns.push({ question, answer: text });
    asked = [];
  }
  return turns;
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
  const load = (sample: number): Promise<Clip | undefined> =>
    heldOutLoader.load([{ sample, epoch: 0, substitutes: [] }]).then(
      ([clip]) => clip,
      (error: unknown) => {
        if (!isFileFault(error)) throw error;
        return undefined;
      },
    );
  const answers = new Map<HeldOutQuestion, string>();
  for (const [question, group] of groupedBy(asked, (each) => each.question)) {
    const size = config.train.microbatchSize;
    for (let start = 0; start < group.length; start += size) {
      const batch = group.slice(start, start + size);
      const clips = await Promise.all(batch.map(({ sample }) => load(sample)));
      const shown = batch.filter((_, at) => clips[at] !== undefined);
      const whole = clips.filter((clip) => clip !== undefined);
      if (whole.length === 0) continue;
      const rows = rowsOf(
        index.heldOut,
        whole.map(() => ({ epoch: 0 })),
        whole,
      );
      // One program for each number of rows: the last ones are filled up.
      const filled: Row[] = Array.from({ length: size }, (_, at) => rows[at % rows.length]!);
      const texts = await answering.ask(filled, question);
      for (const [at, one] of shown.entries()) answers.set(one, texts[at]!.text);
    }
  }
  const said = asked.flatMap((one) => {
    const answer = answers.get(one);
    return answer === undefined ? [] : [{ asked: one, answer }];
  });
  return { said, numSkipped: asked.length - said.length };
}

function groupedBy<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(keyOf(item));
    if (group === undefined) groups.set(keyOf(item), [item]);
    else group.push(item);
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
