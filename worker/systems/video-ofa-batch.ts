/** Rows to the arrays that VideoOFA takes: prompts, frames as they are shown, and answers. Pure. */
import { openRng, shuffled, type Rng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { NO_LABEL } from '../losses/next-token.ts';
import { packPixels } from '../tokens/pixels.ts';
import { floatArray, intArray, packedFrames } from './host-arrays.ts';
import { questionGiven } from './question-given.ts';
import { wordsAt } from './subtitles.ts';
import { isOneFrame, type Given, type HostArray, type HostBatch, type Row } from './system.ts';
import { textKey } from './text-number.ts';

/** What is asked, and by which words: every answer is text of the same decoder. */
export const TASKS = ['caption', 'match', 'order'] as const;
export type Task = (typeof TASKS)[number];

const PROMPTS: Readonly<Record<Task, string>> = {
  caption: 'what does the video describe?',
  match: 'does the video describe "{caption}"?',
  order: 'in which order are the frames of "{caption}"?',
};
const [YES, NO] = ['yes', 'no'];

/** All words that prompts and answers have beside captions. */
export function ofaTexts(numFrames: number): string[] {
  const digits = Array.from({ length: numFrames }, (_, i) => String(i)).join(' ');
  return [
    ...Object.values(PROMPTS).map((prompt) => prompt.replace('{caption}', '')),
    YES,
    NO,
    digits,
  ];
}

/** Everything that turns rows into a microbatch. */
export interface OfaAssembly {
  readonly seed: number;
  readonly tokenizer: Pick<Tokenizer, 'encode' | 'special'>;
  readonly numFrames: number;
  readonly frameBytes: number;
  readonly promptLength: number;
  readonly answerLength: number;
  /** How often each is asked, in shares of their sum. */
  readonly tasks: Readonly<Record<Task, number>>;
  /** Whether a question of order names what the video shows. */
  readonly orderNamesCaption: boolean;
}

/** One task of a held-out question; undefined draws it, as training does. */
export interface OfaQuestion {
  readonly purpose: string;
  readonly task?: Task;
  readonly namesCaption?: boolean;
  /** Whether a question of order is of a part of what is said, drawn anew, and of the frames meanwhile; else of all. */
  readonly ofSome?: boolean;
}

export const OFA_TRAINING: OfaQuestion = { purpose: 'train', ofSome: true };

/**
 * A row a sample: the encoder's prompt and frames, and `[CLS] answer [SEP]` for the decoder. Frames of a question of
 * order are laid in another order, and nothing but their pixels tells the first one.
 */
export function assembleOfa(
  config: OfaAssembly,
  rows: readonly Row[],
  split: readonly Sample[],
  question: OfaQuestion,
): HostBatch {
  const { tokenizer, numFrames, frameBytes, promptLength, answerLength } = config;
  const { pad, cls, sep } = tokenizer.special;
  const bytes = new Uint8Array(rows.length * numFrames * frameBytes);
  const arrays = {
    ids: intArray(rows.length, promptLength),
    present: floatArray(rows.length, promptLength),
    answers: intArray(rows.length, answerLength),
    captionLabels: intArray(rows.length, answerLength),
    matchLabels: intArray(rows.length, answerLength),
    orderLabels: intArray(rows.length, answerLength),
    /** Where each shown frame stands in the film. */
    places: intArray(rows.length, numFrames),
  };
  arrays.ids.data.fill(pad);
  arrays.answers.data.fill(pad);
  for (const task of TASKS) arrays[`${task}Labels`].data.fill(NO_LABEL);
  const counts = { caption: 0, match: 0, order: 0 };
  let numTokens = 0;
  for (const [r, row] of rows.entries()) {
    const rng = openRng(config.seed, `video-ofa/${question.purpose}`, row.epoch, row.number);
    const task = question.task ?? drawTask(tasksOf(config.tasks, row), rng.fork('task'));
    const order = [...Array(numFrames).keys()];
    const shown = task === 'order' ? shuffled(order, rng.fork('order')) : order;
    for (const [at, frame] of shown.entries()) {
      const pixels = row.frames.subarray(frame * frameBytes, (frame + 1) * frameBytes);
      bytes.set(pixels, (r * numFrames + at) * frameBytes);
    }
    arrays.places.data.set(shown, r * numFrames);
    const namesCaption = question.namesCaption ?? config.orderNamesCaption;
    const ofSome = question.ofSome ?? false;
    const [named, answer] = asked(config, task, { row, rng, shown, split, namesCaption, ofSome });
    numTokens += setPrompt(config, arrays, r, promptNaming(task, named));
    const written = answerIds(config, answer);
    arrays.answers.data.set([cls, ...written, sep], r * answerLength);
    arrays[`${task}Labels`].data.set([...written, sep], r * answerLength + 1);
    counts[task] += written.length + 1;
    numTokens += written.length + 2;
  }
  const pixels = { data: packPixels(bytes), shape: [rows.length, bytes.length / 4 / rows.length] };
  return { arrays: { pixels, ...arrays }, counts, numTokens };
}

/** What is written of an answer, without the token that begins it and the one that ends it. */
export function answerIds(
  { tokenizer, answerLength }: Pick<OfaAssembly, 'tokenizer' | 'answerLength'>,
  answer: string,
): number[] {
  return tokenizer.encode(answer).slice(0, answerLength - 2);
}

/**
 * A question about each row's clip for the encoder to read, and no answer. None: what the video describes.
 */
export function assembleOfaQuestion(
  { tokenizer, promptLength }: Pick<OfaAssembly, 'tokenizer' | 'promptLength'>,
  rows: readonly Row[],
  question: string,
): HostBatch {
  const ids = intArray(rows.length, promptLength);
  const present = floatArray(rows.length, promptLength);
  ids.data.fill(tokenizer.special.pad);
  const prompt = promptOf(question);
  let numTokens = 0;
  for (let r = 0; r < rows.length; r++) {
    numTokens += setPrompt({ tokenizer, promptLength }, { ids, present }, r, prompt);
  }
  return { arrays: { pixels: packedFrames(rows), ids, present }, counts: {}, numTokens };
}

/** What {@link assembleOfaQuestion} gives of a question. */
export function ofaQuestionGiven(
  {
    tokenizer,
    promptLength,
  }: Pick<OfaAssembly, 'promptLength'> & { readonly tokenizer: Tokenizer },
  question: string,
): Given {
  return questionGiven(tokenizer, promptOf(question), promptLength);
}

function promptOf(question: string): string {
  return question === '' ? PROMPTS.caption : question;
}

function promptNaming(task: Task, caption: string): string {
  return PROMPTS[task].replace('{caption}', () => caption);
}

type Reading = Pick<OfaAssembly, 'tokenizer' | 'promptLength'>;

/** What the encoder reads of a prompt. */
function promptIds({ tokenizer, promptLength }: Reading, prompt: string): number[] {
  return tokenizer.encode(prompt).slice(0, promptLength);
}

/** Writes what the encoder reads of row `r`; gives the number of its tokens. */
function setPrompt(
  reading: Reading,
  { ids, present }: { readonly ids: HostArray; readonly present: HostArray },
  r: number,
  prompt: string,
): number {
  const words = promptIds(reading, prompt);
  const { promptLength } = reading;
  ids.data.set(words, r * promptLength);
  present.data.fill(1, r * promptLength, r * promptLength + words.length);
  return words.length;
}

/** Where all frames are one and the same, as of a picture, no order is asked if anything else can be. */
function tasksOf(tasks: Readonly<Record<Task, number>>, row: Row): Readonly<Record<Task, number>> {
  const isStill = row.timesSeconds.every((_, at) => isOneFrame(row, 0, at));
  return isStill && tasks.caption + tasks.match > 0 ? { ...tasks, order: 0 } : tasks;
}

function drawTask(tasks: Readonly<Record<Task, number>>, rng: Rng): Task {
  let left = rng.uniform() * TASKS.reduce((sum, task) => sum + tasks[task], 0);
  for (const task of TASKS) {
    left -= tasks[task];
    if (left < 0) return task;
  }
  return 'caption';
}

/** The caption that the prompt names, and the answer. */
function asked(
  reading: Reading,
  task: Task,
  {
    row,
    rng,
    shown,
    split,
    namesCaption,
    ofSome,
  }: {
    readonly row: Row;
    readonly rng: Rng;
    readonly shown: readonly number[];
    readonly split: readonly Sample[];
    readonly namesCaption: boolean;
    readonly ofSome: boolean;
  },
): [named: string, answer: string] {
  const {
    sample: { text },
    epoch,
    number,
  } = row;
  switch (task) {
    case 'caption':
      return ['', text];
    case 'order': {
      const order = orderOf(shown, row);
      if (!namesCaption) return ['', order.join(' ')];
      const parts = spokenParts(row);
      const [from, to] = ofSome ? runOf(parts.length, rng.fork('some')) : [0, parts.length];
      const named = parts.slice(from, to);
      const said = named.map(({ words }) => words).join(' ');
      return [
        said === '' ? text : said,
        named.flatMap(({ frames }) => frames.map((frame) => order[frame]!)).join(' '),
      ];
    }
    case 'match': {
      // Each clip is asked both ways, in turns.
      const wantsOther = (epoch + number) % 2 === 1;
      const other = wantsOther ? otherCaption(reading, text, split, rng.fork('other')) : undefined;
      return other === undefined ? [text, YES] : [other, NO];
    }
  }
}

/**
 * The shown frames in the order of the film: the first number says which of them comes first, of a frame that is shown
 * more than once the numbers ascend. What is written is then what stands at a frame, and not where a sentence stands in
 * the prompt, which nothing that is read carries with it.
 */
function orderOf(shown: readonly number[], row: Row): number[] {
  return [...shown.keys()].sort((a, b) => {
    const [first, second] = [shown[a]!, shown[b]!];
    return isOneFrame(row, first, second) ? a - b : first - second;
  });
}

/** The film's frames in runs during which the same is said, with what it is; one run of all where it is not known when. */
function spokenParts({ sample, timesSeconds }: Row): { words: string; frames: number[] }[] {
  const parts: { words: string; frames: number[] }[] = [];
  for (const [frame, seconds] of timesSeconds.entries()) {
    const words = wordsAt(sample.cues, seconds);
    const last = parts.at(-1);
    if (last?.words === words) last.frames.push(frame);
    else parts.push({ words, frames: [frame] });
  }
  return parts;
}

/** A run of `length` or fewer of them: every length is as likely, and every place of that length. */
function runOf(length: number, rng: Rng): [from: number, to: number] {
  const own = 1 + rng.integer(length);
  const from = rng.integer(length - own + 1);
  return [from, from + own];
}

/** Another clip's caption, drawn at random; undefined where none of some is read as other words. */
function otherCaption(
  reading: Reading,
  text: string,
  split: readonly Sample[],
  rng: Rng,
): string | undefined {
  const readOf = (caption: string): string =>
    textKey(promptIds(reading, promptNaming('match', caption)));
  const own = readOf(text);
  for (let k = 0; k < 16; k++) {
    const other = split[rng.integer(split.length)]!.text;
    if (other !== text && readOf(other) !== own) return other;
  }
  return undefined;
}
