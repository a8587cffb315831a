import { BLEU_ORDERS, bleuCounts, corpusBleu } from './bleu.ts';
import { meanScore, scored, type Score } from './bootstrap.ts';
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
