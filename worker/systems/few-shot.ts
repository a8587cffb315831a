/** Conversations that begin with examples: other clips, each with a question and its answer. Pure. */
import { filledTemplate, type Piece } from './dialogue.ts';

export interface Shown {
  /** What stands for the clip. */
  readonly seen: readonly Piece[];
  readonly question: string;
}

export interface ShownExample extends Shown {
  readonly answer: string;
}

export interface FewShotTemplates {
  /** A conversation up to the answer, with {examples}, {seen} and {question}. */
  readonly template: string;
  /** What stands for an example, with {seen}, {question} and {answer}. */
  readonly exampleTemplate: string;
}

/**
 * The examples in their order, then what is asked. Where room is short, examples are cut as context is.
 * @throws VideoloomError `TEMPLATE_INVALID`
 */
export function fewShotPrompt(
  { template, exampleTemplate }: FewShotTemplates,
  examples: readonly ShownExample[],
  { seen, question }: Shown,
): Piece[] {
  return filledTemplate(template, {
    examples: examples.flatMap((example) =>
      filledTemplate(exampleTemplate, {
        seen: example.seen,
        question: [{ words: example.question, isContext: true }],
        answer: [{ words: example.answer, isContext: true }],
      }),
    ),
    seen,
    question: [{ words: question, isQuestion: true }],
  });
}
