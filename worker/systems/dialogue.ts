/** What is said about a clip, and how a conversation becomes tokens with places for what is seen and heard. Pure. */
import { NO_LABEL } from '../losses/next-token.ts';
import type { Sample } from '../../video/index/sample.ts';
import { VideoloomError } from '../../proto/errors.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import type { Given, HostArray } from './system.ts';

/** A part of a conversation: words, special tokens, or the places of soft tokens. */
export type Piece =
  | {
      readonly words: string;
      /** The model is to say these itself, and an end after them; the last piece of a conversation. */
      readonly isAnswer?: boolean;
      /** They are what is asked. */
      readonly isQuestion?: boolean;
      /** They are said of the clip beside the question. */
      readonly isContext?: boolean;
    }
  | { readonly ids: readonly number[] }
  | { readonly numSoft: number };

export interface Turn {
  readonly question: string;
  readonly answer: string;
  /** An answer that was liked less. */
  readonly rejected?: string;
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
    i % 2 === 1 ? values[part]! : part === '' ? [] : [{ words: part }],
  );
}

/** Questions and answers of a sample; of one that is no conversation its words are the answer to `describe`. */
export function turnsOf({ parts, text }: Sample, describe: string): Turn[] {
  if (parts?.some(({ role }) => role === 'assistant') !== true)
    return [{ question: describe, answer: text }];
  const turns: Turn[] = [];
  let question: string[] = [];
  for (const { role, text: words, rejected } of parts) {
    if (words === undefined) continue;
    if (role !== 'assistant') question.push(words);
    else {
      const less = rejected === undefined ? {} : { rejected };
      turns.push({ question: question.join(' '), answer: words, ...less });
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
 * Conversations as rows of equal length, up to the answer the same as they are when the answer is asked for. What does
 * not fit is cut off the ends of the longest context, then of the answer, which has no end token then, and of the
 * question; a template's words and the places of soft tokens never.
 *
 * @throws VideoloomError `PROMPT_TOO_LONG` where these leave no room for one token of the question and of the answer
 */
export function assembleDialogues(
  shape: DialogueShape,
  rows: readonly (readonly Piece[])[],
  { rowsOfOnePrompt = 1 }: { readonly rowsOfOnePrompt?: number | undefined } = {},
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
  const encoded = rows.map((pieces) => encodedPieces(shape, pieces));
  for (let first = 0; first < rows.length; first += rowsOfOnePrompt)
    cutAlike(encoded.slice(first, first + rowsOfOnePrompt));
  for (const [row, pieces] of encoded.entries()) {
    let at = row * length;
    let soft = 0;
    for (const { ids, numSoft, isAnswer } of pieces) {
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
  const { words: question } = pieces[at] as Extract<Piece, { readonly words: string }>;
  const { ids, isCut } = encoded[at]!;
  const read = encoded.map((piece) => tokenizer.decode(piece.ids).trim());
  const words = read.filter((part) => part !== '').join(' ');
  return {
    ...(isCut ? { question: read[at]!, cutTo: ids.length } : { question }),
    ...(words === read[at] ? {} : { words }),
  };
}

interface EncodedPiece {
  ids: number[];
  isCut: boolean;
  readonly numSoft: number;
  readonly isAnswer: boolean;
}

/** The pieces in tokens, cut to the length of a row. */
function encodedPieces(
  { tokenizer, length }: DialogueShape,
  pieces: readonly Piece[],
): readonly EncodedPiece[] {
  const encoded = pieces.map((piece): EncodedPiece => ({
    ids: 'ids' in piece ? [...piece.ids] : [],
    isCut: false,
    numSoft: 'numSoft' in piece ? piece.numSoft : 0,
    isAnswer: 'words' in piece && piece.isAnswer === true,
  }));
  for (let from = 0; from < pieces.length; from++) {
    const rest = pieces.slice(from);
    const end = rest.findIndex((piece) => !('words' in piece));
    const run = rest.slice(0, end === -1 ? undefined : end) as WordsPiece[];
    for (const [i, ids] of encodedRun(tokenizer, run, end === -1).entries())
      encoded[from + i]!.ids = ids;
    from += run.length;
  }
  cutToLength(pieces, encoded, length);
  return encoded;
}

type WordsPiece = Extract<Piece, { readonly words: string }>;

/**
 * The tokens of words that stand side by side, piece by piece. They are encoded as one text, for many tokenizers read a
 * space as a part of the word behind it. What is asked for is encoded without the answer and the spaces before it, as
 * nothing else is known when the model is asked.
 */
function encodedRun(tokenizer: Tokenizer, run: readonly WordsPiece[], isLast: boolean): number[][] {
  const answer = run.at(-1)?.isAnswer === true ? run.at(-1) : undefined;
  const given = (answer === undefined ? run : run.slice(0, -1)).map(({ words }) => words);
  // Spaces of a template between two places of soft tokens, or beside one, are no words.
  const isBlank = (words: string): boolean => words.trim() === '';
  const first = given.findIndex((words) => !isBlank(words));
  const last = given.findLastIndex((words) => !isBlank(words));
  const spoken = given.map((words, i) =>
    i < first || i > last ? '' : isLast && i === last ? words.replace(/ +$/, '') : words,
  );
  const text = first === -1 ? '' : spoken.join('');
  const prompt = tokenizer.encode(text);
  let read = '';
  let from = 0;
  const ids = spoken.map((words, i) => {
    read += words;
    // A token of two pieces is the second's.
    const isWhole = i >= last;
    const to = isWhole ? prompt.length : Math.max(from, numAlike(tokenizer.encode(read), prompt));
    const own = prompt.slice(from, to);
    from = to;
    return own;
  });
  if (answer === undefined) return ids;
  const words = answer.words.trim();
  const whole = tokenizer.encode(`${text}${text === '' || /\s$/.test(text) ? '' : ' '}${words}`);
  const said =
    numAlike(prompt, whole) === prompt.length
      ? whole.slice(prompt.length)
      : tokenizer.encode(words);
  return [...ids, [...said, tokenizer.special.sep]];
}

/** Rows of one prompt keep of each of its pieces what the one keeps that has the least room for it. */
function cutAlike(rows: readonly (readonly EncodedPiece[])[]): void {
  for (const [at, { isAnswer }] of rows[0]!.entries()) {
    if (isAnswer) continue;
    const fewest = Math.min(...rows.map((row) => row[at]!.ids.length));
    for (const row of rows) row[at]!.ids = row[at]!.ids.slice(0, fewest);
  }
}

/** How many of two rows' first tokens are the same. */
function numAlike(a: readonly number[], b: readonly number[]): number {
  const other = a.findIndex((id, i) => id !== b[i]);
  return other === -1 ? a.length : other;
}

function cutToLength(
  pieces: readonly Piece[],
  encoded: readonly EncodedPiece[],
  length: number,
): void {
  const size = (): number =>
    encoded.reduce((sum, { ids, numSoft }) => sum + ids.length + numSoft, 0);
  const cut = (kind: 'isContext' | 'isAnswer' | 'isQuestion', fewest: number): void => {
    const own = encoded.filter((_, i) => (pieces[i] as Partial<WordsPiece>)[kind] === true);
    for (let over = size() - length; over > 0; over = size() - length) {
      const longest = own.reduce<EncodedPiece | undefined>(
        (best, piece) => (piece.ids.length > (best?.ids.length ?? fewest) ? piece : best),
        undefined,
      );
      if (longest === undefined) break;
      longest.ids = longest.ids.slice(0, Math.max(fewest, longest.ids.length - over));
      longest.isCut = true;
    }
  };
  cut('isContext', 0);
  cut('isAnswer', 1);
  cut('isQuestion', 1);
  if (size() > length) {
    throw new VideoloomError(
      'PROMPT_TOO_LONG',
      `a conversation has ${size()} tokens with nothing left to cut, and there is room for ${length}: raise ` +
        'model.length, or shorten model.template',
    );
  }
}
