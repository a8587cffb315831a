/**
 * WordPiece: words cut into the longest pieces that the vocabulary knows. The file is Hugging Face's `tokenizer.json`;
 * its own library encodes and decodes, so what is trained here reads the same in Python.
 */
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { VideoloomError } from '../../proto/errors.ts';

/** Tokens that stand for no word, by their ids. */
export const SPECIAL_TOKENS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[>]'] as const;

/** A `tokenizer.json`, parsed. */
export interface TokenizerFile {
  readonly version: '1.0';
  readonly truncation: null;
  readonly padding: null;
  readonly added_tokens: readonly {
    readonly id: number;
    readonly content: string;
    readonly single_word: boolean;
    readonly lstrip: boolean;
    readonly rstrip: boolean;
    readonly normalized: boolean;
    readonly special: boolean;
  }[];
  readonly normalizer: object;
  readonly pre_tokenizer: object;
  readonly post_processor: null;
  readonly decoder: object;
  readonly model: {
    readonly type: 'WordPiece';
    readonly unk_token: string;
    readonly continuing_subword_prefix: string;
    readonly max_input_chars_per_word: number;
    readonly vocab: Readonly<Record<string, number>>;
  };
}

/** Text to ids and back; adds no special tokens of its own. */
export interface Tokenizer {
  readonly vocabularySize: number;
  readonly special: {
    readonly pad: number;
    readonly unk: number;
    readonly cls: number;
    readonly sep: number;
    readonly mask: number;
    /** `[>]`, between text and video. Source: VideoBERT, arXiv:1904.01766, sec. 3.2. */
    readonly join: number;
  };
  /** Ids from here on are word pieces. */
  readonly firstWordId: number;
  encode(text: string): number[];
  /** Special tokens are left out. */
  decode(ids: readonly number[]): string;
  /** The piece of an id, as in the file. */
  pieceOf(id: number): string;
}

/** A tokenizer file that cannot be used. */
export class TokenizerError extends VideoloomError {}

const PREFIX = '##';
const MAX_WORD_CHARS = 100;

/**
 * Trains a vocabulary of at most `vocabularySize` pieces, special ones included; a small corpus gives fewer. Begins
 * with single characters and joins the pair of neighbours that is most frequent over all words, as Hugging Face's
 * trainer does; ties go to the pair that is first by code unit, so the outcome depends on the texts alone, not even on
 * their order.
 */
export function trainTokenizer(
  texts: Iterable<string>,
  { vocabularySize }: { vocabularySize: number },
): TokenizerFile {
  const words = countWords(texts);
  const pieces = new Set<string>(SPECIAL_TOKENS);
  for (const piece of alphabetOf(words).slice(0, Math.max(0, vocabularySize - pieces.size)))
    pieces.add(piece);
  const corpus = new PairCounts(words, pieces);
  while (pieces.size < vocabularySize) {
    const joined = corpus.joinMostFrequent();
    if (joined === undefined) break;
    pieces.add(joined);
  }
  return fileOf(pieces);
}

/** @throws TokenizerError TOKENIZER_INVALID if it is no WordPiece with the special tokens of this project. */
export function openTokenizer(file: TokenizerFile): Tokenizer {
  const vocab = file.model.vocab as Readonly<Record<string, number>> | undefined;
  const ids = SPECIAL_TOKENS.map((token) => vocab?.[token]);
  if (!vocab || ids.some((id) => id === undefined)) {
    const missing = SPECIAL_TOKENS.filter((_, i) => ids[i] === undefined);
    throw new TokenizerError(
      'TOKENIZER_INVALID',
      `this tokenizer lacks ${missing.join(', ')}; train one, or add these tokens to its vocabulary`,
    );
  }
  const tokenizer = libraryTokenizer(file);
  const [pad, unk, cls, sep, mask, join] = ids as [number, number, number, number, number, number];
  const pieces = Object.entries(vocab).sort(([, a], [, b]) => a - b);
  return {
    vocabularySize: pieces.length,
    special: { pad, unk, cls, sep, mask, join },
    firstWordId: Math.max(pad, unk, cls, sep, mask, join) + 1,
    encode: (text) => tokenizer.encode(text, { add_special_tokens: false }).ids,
    // The library refuses to decode nothing, and an answer may be empty.
    decode: (wanted) =>
      wanted.length === 0 ? '' : tokenizer.decode([...wanted], { skip_special_tokens: true }),
    pieceOf: (id) => pieces[id]?.[0] ?? '[UNK]',
  };
}

// What is used of the library; its own declarations do not resolve under Node's module rules.
interface LibraryTokenizer {
  readonly normalizer: { normalize(text: string): string };
  readonly pre_tokenizer: { pre_tokenize(text: string): string[] };
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(ids: number[], options: { skip_special_tokens: boolean }): string;
}

function libraryTokenizer(file: TokenizerFile): LibraryTokenizer {
  const Library = HuggingFaceTokenizer as unknown as new (
    file: object,
    config: object,
  ) => LibraryTokenizer;
  // Clean-up joins "do n't" and the like when decoding; Python's decode does the same by its WordPiece decoder.
  return new Library(file, { clean_up_tokenization_spaces: true });
}

function fileOf(pieces: ReadonlySet<string>): TokenizerFile {
  const vocab = Object.fromEntries([...pieces].map((piece, id) => [piece, id]));
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: SPECIAL_TOKENS.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: null,
    decoder: { type: 'WordPiece', prefix: PREFIX, cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: '[UNK]',
      continuing_subword_prefix: PREFIX,
      max_input_chars_per_word: MAX_WORD_CHARS,
      vocab,
    },
  };
}

/** Words with their counts, cut and normalised by the code that will cut and normalise at use. */
function countWords(texts: Iterable<string>): Map<string, number> {
  const { normalizer, pre_tokenizer: preTokenizer } = libraryTokenizer(
    fileOf(new Set(SPECIAL_TOKENS)),
  );
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const word of preTokenizer.pre_tokenize(normalizer.normalize(text))) {
      if (Array.from(word).length <= MAX_WORD_CHARS) counts.set(word, (counts.get(word) ?? 0) + 1);
    }
  }
  return counts;
}

/** First pieces of a word: its characters, all but the first with the prefix. */
function charactersOf(word: string): string[] {
  return Array.from(word, (character, i) => (i === 0 ? character : PREFIX + character));
}

/** The most frequent characters first. */
function alphabetOf(words: ReadonlyMap<string, number>): string[] {
  const counts = new Map<string, number>();
  for (const [word, count] of words) {
    for (const piece of charactersOf(word)) counts.set(piece, (counts.get(piece) ?? 0) + count);
  }
  return [...counts].sort(([a, m], [b, n]) => n - m || compare(a, b)).map(([piece]) => piece);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

interface Pair {
  readonly left: string;
  readonly right: string;
  count: number;
  /** Words that hold it, or held it once. */
  readonly words: Set<number>;
}

/** All neighbours in all words, by frequency, kept up to date while pairs are joined. */
class PairCounts {
  readonly #words: { pieces: string[]; count: number }[] = [];
  readonly #pairs = new Map<string, Pair>();
  readonly #queue = new PairQueue();

  constructor(words: ReadonlyMap<string, number>, known: ReadonlySet<string>) {
    for (const [word, count] of words) {
      const pieces = charactersOf(word);
      // A word with a character outside of the alphabet becomes [UNK] as a whole.
      if (pieces.length < 2 || pieces.some((piece) => !known.has(piece))) continue;
      const at = this.#words.push({ pieces, count }) - 1;
      this.#count(at, 1);
    }
    for (const pair of this.#pairs.values()) this.#queue.push(pair);
  }

  /** Joins the most frequent pair everywhere and gives the new piece; undefined when all words are whole. */
  joinMostFrequent(): string | undefined {
    const pair = this.#queue.pop();
    if (!pair) return undefined;
    const { left, right } = pair;
    const joined = left + right.slice(PREFIX.length);
    for (const at of [...pair.words]) {
      this.#count(at, -1);
      const word = this.#words[at]!;
      const pieces: string[] = [];
      for (let i = 0; i < word.pieces.length; i++) {
        const isPair = word.pieces[i] === left && word.pieces[i + 1] === right;
        pieces.push(isPair ? joined : word.pieces[i]!);
        if (isPair) i++;
      }
      word.pieces = pieces;
      for (const changed of this.#count(at, 1)) this.#queue.push(changed);
    }
    return joined;
  }

  #count(at: number, sign: 1 | -1): Set<Pair> {
    const { pieces, count } = this.#words[at]!;
    const touched = new Set<Pair>();
    for (let i = 0; i + 1 < pieces.length; i++) {
      const [left, right] = [pieces[i]!, pieces[i + 1]!];
      const key = `${left} ${right}`; // pieces hold no space
      let pair = this.#pairs.get(key);
      if (!pair) {
        pair = { left, right, count: 0, words: new Set() };
        this.#pairs.set(key, pair);
      }
      pair.count += sign * count;
      if (sign === 1) pair.words.add(at);
      else pair.words.delete(at);
      touched.add(pair);
    }
    return touched;
  }
}

/** Pairs by count, then by code unit. An entry whose count has changed since is put back where it belongs. */
class PairQueue {
  readonly #heap: { pair: Pair; count: number }[] = [];

  push(pair: Pair): void {
    const heap = this.#heap;
    let at = heap.push({ pair, count: pair.count }) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(heap[at]!, heap[parent]!)) break;
      [heap[at], heap[parent]] = [heap[parent]!, heap[at]!];
      at = parent;
    }
  }

  /** The most frequent pair that still occurs. */
  pop(): Pair | undefined {
    for (;;) {
      const top = this.#removeTop();
      if (!top) return undefined;
      if (top.count === top.pair.count && top.count > 0) return top.pair;
      if (top.pair.count > 0 && top.pair.count < top.count) this.push(top.pair);
    }
  }

  #removeTop(): { pair: Pair; count: number } | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (heap.length === 0 || !last) return top;
    heap[0] = last;
    for (let at = 0; ;) {
      let first = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < heap.length && isBefore(heap[child]!, heap[first]!)) first = child;
      }
      if (first === at) return top;
      [heap[at], heap[first]] = [heap[first]!, heap[at]!];
      at = first;
    }
  }
}

function isBefore(a: { pair: Pair; count: number }, b: { pair: Pair; count: number }): boolean {
  if (a.count !== b.count) return a.count > b.count;
  return (compare(a.pair.left, b.pair.left) || compare(a.pair.right, b.pair.right)) < 0;
}
