import { openRng } from '../../../proto/random.ts';
import { BLEU_ORDERS, bleuCounts, corpusBleu } from './bleu.ts';
import { captionWords } from './caption-words.ts';
import { ciderD } from './cider.ts';
import { rougeL } from './rouge.ts';
import { vqaAccuracy } from './vqa-accuracy.ts';

/** What was said of something, and what people said. */
export interface Answered {
  readonly id: string;
  readonly answer: string;
  /** One or more. */
  readonly references: readonly string[];
}

/** A caption and its references in words. */
export interface WordedCaption {
  readonly words: readonly string[];
  readonly references: readonly (readonly string[])[];
}

export interface Score {
  readonly name: string;
  readonly value: number;
  /** Between which the value lies in 95 % of 1,000 samples drawn from these with replacement. */
  readonly interval: readonly [number, number];
  readonly count: number;
}

/** BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of captions. */
export function scoreCaptions(answered: readonly Answered[]): Score[] {
  const captions = answered.map(({ answer, references }) => ({
    words: captionWords(answer),
    references: references.map(captionWords),
  }));
  const counts = captions.map(bleuCounts);
  const bleu = Array.from({ length: BLEU_ORDERS }, (_, at) => `BLEU-${at + 1}`);
  return [
    ...scored(bleu, captions.length, (drawn) => corpusBleu(drawn.map((at) => counts[at]!))),
    ...meanScore('ROUGE-L', captions.map(rougeL)),
    ...meanScore('CIDEr-D', ciderD(captions)),
  ];
}

/** Accuracy of short answers among those of several annotators. */
export function scoreVqa(answered: readonly Answered[]): Score[] {
  const scores = answered.map(({ answer, references }) => vqaAccuracy(answer, references));
  return meanScore('VQA accuracy', scores);
}

/** How many answers are one of the references, but for upper case, spaces and the mark that ends a sentence. */
export function scoreAnswers(answered: readonly Answered[]): Score[] {
  const scores = answered.map(({ answer, references }) =>
    references.some((each) => plainAnswer(each) === plainAnswer(answer)) ? 1 : 0,
  );
  return meanScore('exact match', scores);
}

/**
 * As it is compared: without case, and without the spaces around marks, which tokenizers put and leave out; what consists
 * of marks alone is left as it is.
 */
export function plainAnswer(text: string): string {
  const plain = text
    .normalize('NFC')
    .toLowerCase()
    .replaceAll(/\s+/g, ' ')
    .replaceAll(/ ?([^\p{L}\p{M}\p{N} ]) ?/gu, '$1')
    .trim();
  const withoutEnd = plain.replace(/[\s.!?]+$/, '');
  return withoutEnd === '' ? plain : withoutEnd;
}

function meanScore(name: string, values: readonly number[]): Score[] {
  return scored([name], values.length, (drawn) => [
    drawn.reduce((sum, at) => sum + values[at]!, 0) / drawn.length,
  ]);
}

const NUM_SAMPLES = 1000;

/** @param valuesOf the values, one a name, of the items with these numbers, of which one may come several times */
function scored(
  names: readonly string[],
  count: number,
  valuesOf: (items: readonly number[]) => readonly number[],
): Score[] {
  const rng = openRng(0, 'bootstrap');
  const samples = Array.from({ length: NUM_SAMPLES }, () =>
    valuesOf(Array.from({ length: count }, () => rng.integer(count))),
  );
  const values = valuesOf(Array.from({ length: count }, (_, item) => item));
  return names.map((name, which) => {
    const sorted = Float64Array.from(samples, (sample) => sample[which]!).sort();
    const at = (share: number): number => sorted[Math.round(share * (NUM_SAMPLES - 1))]!;
    return { name, value: values[which]!, interval: [at(0.025), at(0.975)], count };
  });
}

/** The scores as lines for people. */
export function scoreTable(scores: readonly Score[]): string {
  const rows = scores.map(({ name, value, interval, count }) => [
    name,
    value.toFixed(3),
    `${interval[0].toFixed(3)} to ${interval[1].toFixed(3)}`,
    String(count),
  ]);
  const all = [['', 'score', '95 %', 'n'], ...rows];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  return all
    .map((row) =>
      row
        .map((cell, column) =>
          column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!),
        )
        .join('  ')
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join('');
}
