/** What is said about a clip, and how a conversation becomes tokens with places for what is seen and heard. Pure. */
import { NO_LABEL } from '../losses/next-token.ts';
import type { Sample } from '../../video/index/sample.ts';
import { VideoloomError } from '../../proto/errors.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { questionGiven } from './question-given.ts';
import type { Given, HostArray } from './system.ts';

/** A part of a conversation: words, or the places of soft tokens. */
export type Piece =
  | {
      readonly words: string;
      /** The model is to say these itself, and an end after them. */
      readonly isAnswer?: boolean;
      /** They are what is asked. */
      readonly isQuestion?: boolean;
    }
  | { readonly numSoft: number };

export interface Turn {
  readonly question: string;
  readonly answer: string;
}

/**
 * A template with its `{name}` filled in: `[CLS] {seen} {question} [>]`. Special tokens of the tokenizer may stand in
 * it.
 *
 * @throws VideoloomError `TEMPLATE_INVALID` for a name that there is nothing for, or a name of `values` that is missing
 */
export function filledTemplate(
  template: string,
  values: Readonly<Record<string, readonly Piece[]>>,
): Piece[] {
  const parts = template.split(/\{(\w+)\}/);
  const named = parts.filter((_, i) => i % 2 === 1);
  const unknown = named.find((name) => values[name] === undefined);
  const missing = Object.keys(values).find((name) => !named.includes(name));
  if (unknown !== undefined || missing !== undefined) {
    throw new VideoloomError(
      'TEMPLATE_INVALID',
      unknown !== undefined
        ? `the template ${template} has {${unknown}}; there is ${Object.keys(values)
            .map((name) => `{${name}}`)
            .join(', ')}`
        : `the template ${template} has no place for {${missing!}}`,
    );
  }
  return parts.flatMap((part, i): readonly Piece[] =>
    i % 2 === 1 ? values[part]! : part.trim() === '' ? [] : [{ words: part }],
  );
}

/** Questions and answers of a sample; of one that is no conversation its words are the answer to `describe`. */
export function turnsOf({ parts, text }: Sample, describe: string): Turn[] {
  if (parts?.some(({ role }) => role === 'assistant') !== true)
    return [{ question: describe, answer: text }];
  const turns: Turn[] = [];
  let question: string[] = [];
  for (const { role, text: words } of parts) {
    if (words === undefined) continue;
    if (role !== 'assistant') question.push(words);
    else {
      turns.push({ question: question.join(' '), answer: words });
      question = [];
    }
  }
  return turns;
}

export interface DialogueShape {
  readonly tokenizer: Tokenizer;
  /** Tokens of a row, soft ones included. */
  readonly length: number;
}

/** Host arrays of a batch of conversations, rows padded behind. */
export interface DialogueArrays {
  /** [B, L] int32 */
  readonly ids: HostArray & { readonly data: Int32Array };
  /** [B, L], 0 at padding */
  readonly present: HostArray & { readonly data: Float32Array };
  /** Which of the row's soft tokens stands here, -1 for none, [B, L] int32 */
  readonly softRows: HostArray & { readonly data: Int32Array };
  /** The token itself where it is to be said, else `NO_LABEL`, [B, L] int32 */
  readonly labels: HostArray & { readonly data: Int32Array };
  /** 1 where a label counts, [B, L] */
  readonly labelWeights: HostArray & { readonly data: Float32Array };
}

/**
 * Conversations as rows of equal length. What does not fit is cut off the end of the longest words that are no answer,
 * then off the answers' ends; the places of soft tokens never.
 *
 * @throws VideoloomError `PROMPT_TOO_LONG` where soft tokens alone leave no room
 */
export function assembleDialogues(
  shape: DialogueShape,
  rows: readonly (readonly Piece[])[],
): DialogueArrays {
  const { tokenizer, length } = shape;
  const { pad } = tokenizer.special;
  const ints = (fill: number): HostArray & { data: Int32Array } => ({
    data: new Int32Array(rows.length * length).fill(fill),
    shape: [rows.length, length],
  });
  const floats = (): HostArray & { data: Float32Array } => ({
    data: new Float32Array(rows.length * length),
    shape: [rows.length, length],
  });
  const arrays = {
    ids: ints(pad),
    present: floats(),
    softRows: ints(-1),
    labels: ints(NO_LABEL),
    labelWeights: floats(),
  };
  for (const [row, pieces] of rows.entries()) {
    let at = row * length;
    let soft = 0;
    for (const { ids, numSoft, isAnswer } of encodedPieces(shape, pieces)) {
      arrays.present.data.fill(1, at, at + ids.length + numSoft);
      for (const id of ids) {
        arrays.ids.data[at] = id;
        if (isAnswer) {
          arrays.labels.data[at] = id;
          arrays.labelWeights.data[at] = 1;
        }
        at++;
      }
      for (let i = 0; i < numSoft; i++) arrays.softRows.data[at++] = soft++;
    }
  }
  return arrays;
}

/** The tokens of a row. */
export function readIds(
  { ids, present }: Pick<DialogueArrays, 'ids' | 'present'>,
  row: number,
): Int32Array {
  const [, length] = ids.shape as [number, number];
  return ids.data
    .subarray(row * length, (row + 1) * length)
    .filter((_, at) => present.data[row * length + at] !== 0);
}

/** What {@link assembleDialogues} makes of a conversation up to the answer, as people read it. */
export function dialogueGiven(
  shape: DialogueShape,
  pieces: readonly Piece[],
): Pick<Given, 'question' | 'cutTo' | 'words'> {
  const { tokenizer } = shape;
  const encoded = encodedPieces(shape, pieces);
  const at = pieces.findIndex((piece) => 'words' in piece && piece.isQuestion === true);
  const question = pieces[at] as Extract<Piece, { readonly words: string }>;
  const read = encoded.map(({ ids }) => tokenizer.decode(ids));
  const words = read.filter((part) => part !== '').join(' ');
  return {
    ...questionGiven(tokenizer, question.words, encoded[at]!.ids.length),
    ...(words === read[at] ? {} : { words }),
  };
}

interface EncodedPiece {
  ids: number[];
  readonly numSoft: number;
  readonly isAnswer: boolean;
}

/** The pieces in tokens, cut to the length of a row. */
function encodedPieces(
  { tokenizer, length }: DialogueShape,
  pieces: readonly Piece[],
): readonly EncodedPiece[] {
  const encoded = pieces.map((piece): EncodedPiece => {
    if ('numSoft' in piece) return { ids: [], numSoft: piece.numSoft, isAnswer: false };
    const isAnswer = piece.isAnswer === true;
    const ids = tokenizer.encode(piece.words);
    return { ids: isAnswer ? [...ids, tokenizer.special.sep] : ids, numSoft: 0, isAnswer };
  });
  cutToLength(encoded, length);
  return encoded;
}

function cutToLength(pieces: readonly EncodedPiece[], length: number): void {
  const size = (): number =>
    pieces.reduce((sum, { ids, numSoft }) => sum + ids.length + numSoft, 0);
  for (const isAnswer of [false, true]) {
    const own = pieces.filter((piece) => piece.isAnswer === isAnswer && piece.ids.length > 0);
    for (let over = size() - length; over > 0; over = size() - length) {
      const longest = own.reduce<(typeof own)[number] | undefined>(
        (best, piece) => (piece.ids.length > (best?.ids.length ?? 1) ? piece : best),
        undefined,
      );
      if (longest === undefined) break;
      longest.ids = longest.ids.slice(0, Math.max(1, longest.ids.length - over));
    }
  }
  if (size() > length) {
    throw new VideoloomError(
      'PROMPT_TOO_LONG',
      `a conversation has ${size()} tokens with nothing left to cut, and there is room for ${length}: raise model.length`,
    );
  }
}
