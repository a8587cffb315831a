/** What CM3leon reads: one stream of words and codes, some with a span told at the end, and what is asked of held-out ones. */
import { openRng, type Rng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { patchFeatures } from '../../video/visual-words/patch-features.ts';
import {
  assignVisualWords,
  type VisualVocabulary,
} from '../../video/visual-words/visual-vocabulary.ts';
import { padPrompts } from '../generation/prompts.ts';
import { NO_LABEL, numNextTokens } from '../losses/next-token.ts';
import { drawnSpan, withSpanLast, type Span } from '../tokens/infill-span.ts';
import { withFramesOfOthers } from './frame-changes.ts';
import { floatArray, intArray } from './host-arrays.ts';
import type { HostArray, HostBatch, Row } from './system.ts';
import { textClasses } from './text-number.ts';
import { anyPicture } from './vision-part.ts';

/** Everything that turns rows into a microbatch. */
export interface Cm3leonAssembly {
  readonly seed: number;
  readonly tokenizer: Tokenizer;
  readonly codebook: VisualVocabulary;
  readonly frameSize: number;
  readonly patchSize: number;
  /** Word pieces of a text; longer ones are cut. */
  readonly textTokens: number;
  /** Most tokens of a sequence; at least {@link streamLength}. */
  readonly positions: number;
  /** Share of the rows whose picture stands before its text. */
  readonly pictureFirst: number;
  /** Shares of the rows with a span of their text, or of their picture, at the end; of the spans that are all of it. */
  readonly spans: { readonly text: number; readonly picture: number; readonly whole: number };
  /** In training each row has the picture of another. */
  readonly permuted: boolean;
}

/** The vocabulary: word pieces, codes from `firstCode` on, and what tells where what stands. */
export interface StreamVocabulary {
  readonly size: number;
  readonly firstCode: number;
  readonly numCodes: number;
  /** Where a document begins and ends. */
  readonly eos: number;
  /** Behind the tokens of each modality. */
  readonly break: number;
  /** Where a span is told at the end. */
  readonly mask: number;
  /** Before the span that is told. */
  readonly infill: number;
  readonly pad: number;
}

/** The codes and `<infill>` follow the words; the other marks are special tokens of the tokenizer. */
export function streamVocabulary(
  { vocabularySize: firstCode, special: { sep: eos, join, mask, pad } }: Tokenizer,
  numCodes: number,
): StreamVocabulary {
  const infill = firstCode + numCodes;
  return { size: infill + 1, firstCode, numCodes, eos, break: join, mask, infill, pad };
}

/** Most tokens of a sequence: `<eos> text <break> picture <break> <eos>`, and `<mask>` and `<infill>` of a span. */
export function streamLength(textTokens: number, numPatches: number): number {
  return textTokens + numPatches + 6;
}

/** In what way a caption is asked. */
export type CaptionForm = 'infilled' | 'continued';

export type Cm3leonAssembler = ReturnType<typeof openCm3leonAssembler>;

/** Rows to batches; pure: the same rows give the same bytes on every worker. */
export function openCm3leonAssembler(assembly: Cm3leonAssembly) {
  const { seed, tokenizer, codebook, frameSize, patchSize, textTokens, positions, spans } =
    assembly;
  const vocabulary = streamVocabulary(tokenizer, codebook.numWords);
  const { eos, mask, infill, pad, firstCode } = vocabulary;
  const marks = new Set([eos, vocabulary.break, mask, pad]);
  const numPatches = (frameSize / patchSize) ** 2;
  const length = streamLength(textTokens, numPatches);
  // Beside what is written into a text, which may be as long as one.
  const mostGiven = Math.min(textTokens, positions - (length - 1));
  const frameBytes = frameSize ** 2 * 3;

  // What a text spells like a mark is none: spans end at those that are.
  const wordsOf = (text: string): number[] =>
    tokenizer
      .encode(text)
      .filter((id) => !marks.has(id))
      .slice(0, textTokens);
  const codesOf = ({ frames }: Row, frame: number): number[] => {
    const shown = frames.subarray(frame * frameBytes, (frame + 1) * frameBytes);
    const codes = assignVisualWords(codebook, patchFeatures(shown, { size: frameSize, patchSize }));
    return Array.from(codes, (code) => firstCode + code);
  };
  /** One frame of a clip: for a purpose another one each epoch, else the first. */
  const pictureOf = (row: Row, purpose?: string): number[] => {
    if (purpose === undefined) return codesOf(row, 0);
    const choose = anyPicture(seed, `cm3leon/${purpose}`);
    return codesOf(row, choose(row, row.frames.length / frameBytes)[0]!);
  };

  /** `<eos> a <break> b <break>`, and where each of them stands. */
  const streamOf = (
    ...modalities: readonly (readonly number[])[]
  ): { readonly ids: readonly number[]; readonly places: readonly Span[] } => {
    const ids = [eos];
    const places = modalities.map((tokens): Span => {
      const start = ids.length;
      ids.push(...tokens, vocabulary.break);
      return { start, end: start + tokens.length };
    });
    return { ids, places };
  };

  /** A span of the modality at a place, which never crosses a `<break>`; undefined where it is empty. */
  const spanIn = ({ start, end }: Span, rng: Rng): Span | undefined => {
    if (end === start) return undefined;
    if (rng.uniform() < spans.whole) return { start, end };
    const own = drawnSpan(end - start, rng);
    return { start: start + own.start, end: start + own.end };
  };

  const trainingIds = (row: Row): number[] => {
    const rng = openRng(seed, 'cm3leon/train', row.epoch, row.number);
    const [words, codes] = [wordsOf(row.sample.text), pictureOf(row, 'train')];
    const isPictureFirst = rng.uniform() < assembly.pictureFirst;
    const { ids, places } = isPictureFirst ? streamOf(codes, words) : streamOf(words, codes);
    const [textPlace, picturePlace] = isPictureFirst
      ? [places[1]!, places[0]!]
      : [places[0]!, places[1]!];
    const draw = rng.uniform();
    const place =
      draw < spans.text ? textPlace : draw < spans.text + spans.picture ? picturePlace : undefined;
    const span = place && spanIn(place, rng);
    return [...(span === undefined ? ids : withSpanLast(ids, span, vocabulary)), eos];
  };

  /** Sequences, padded behind to one length: ids and what is asked of them, [...shape, L]. */
  const sequences = (
    all: readonly (readonly number[])[],
    ...shape: number[]
  ): { readonly ids: HostArray; readonly labels: HostArray & { readonly data: Int32Array } } => {
    const [ids, labels] = [intArray(...shape, length), intArray(...shape, length)];
    ids.data.fill(pad);
    labels.data.fill(NO_LABEL);
    for (const [i, own] of all.entries()) {
      ids.data.set(own, i * length);
      // Where a span is missing is drawn, and nothing that could be known.
      const wanted = own.map((id) => (id === mask ? NO_LABEL : id));
      labels.data.set(wanted, i * length);
    }
    return { ids, labels };
  };
  const batchOf = (
    { ids, labels }: ReturnType<typeof sequences>,
    numTokens: number,
    more: HostBatch['arrays'] = {},
  ): HostBatch => ({
    arrays: { ids, labels, ...more },
    counts: { [OBJECTIVE]: numNextTokens(labels.data, length) },
    numTokens,
  });
  const tokensIn = (all: readonly (readonly number[])[]): number =>
    all.reduce((sum, own) => sum + own.length, 0);

  const training = (rows: readonly Row[]): HostBatch => {
    const all = (assembly.permuted ? withFramesOfOthers(rows) : rows).map(trainingIds);
    return batchOf(sequences(all, rows.length), tokensIn(all));
  };

  /**
   * Whole captions that are told behind their pictures; `captionWeights` [B, L] has 1 where a caption and its end stand,
   * `answerClasses` [B] tells which of all captions it is, and every row counts, `answerWeights` [B].
   */
  const captions = (
    rows: readonly Row[],
    form: CaptionForm,
    classOf: (text: string) => number,
  ): HostBatch => {
    const told = rows.map((row) => {
      const [words, codes] = [wordsOf(row.sample.text), pictureOf(row, 'caption')];
      const stream = form === 'continued' ? streamOf(codes, words) : streamOf(words, codes);
      const ids =
        form === 'continued'
          ? [...stream.ids, eos]
          : [...withSpanLast(stream.ids, stream.places[0]!, vocabulary), eos];
      const end = form === 'continued' ? ids.length - 1 : ids.length;
      return { ids, start: end - 1 - words.length, end };
    });
    const all = told.map(({ ids }) => ids);
    const captionWeights = floatArray(rows.length, length);
    const [answerClasses, answerWeights] = [intArray(rows.length), floatArray(rows.length)];
    for (const [i, { start, end }] of told.entries()) {
      captionWeights.data.fill(1, i * length + start, i * length + end);
      answerClasses.data[i] = classOf(rows[i]!.sample.text);
      answerWeights.data[i] = 1;
    }
    const asked = { captionWeights, answerClasses, answerWeights };
    return batchOf(sequences(all, rows.length), tokensIn(all), asked);
  };

  /**
   * Each row's picture behind each of its captions, `candidates` [B, K, L]; `candidateWeights` [B, K, L] has 1 where the
   * picture is predicted, `answers` [B] is the number of its own caption, and rows without one do not count.
   */
  const comparison = (
    rows: readonly Row[],
    captionsOf: (row: Row) => { readonly texts: readonly string[]; readonly own: number },
  ): HostBatch => {
    const asked = rows.map((row) => ({ ...captionsOf(row), codes: pictureOf(row, 'compare') }));
    const all = asked.flatMap(({ texts, codes }) =>
      texts.map((text) => streamOf(wordsOf(text), codes).ids),
    );
    const { ids: candidates } = sequences(all, rows.length, asked[0]!.texts.length);
    const data = Float32Array.from(candidates.data, (id) =>
      id >= firstCode && id < infill ? 1 : 0,
    );
    const [answers, answerWeights] = [intArray(rows.length), floatArray(rows.length)];
    for (const [i, { own }] of asked.entries()) {
      answers.data[i] = Math.max(0, own);
      answerWeights.data[i] = own < 0 ? 0 : 1;
    }
    return {
      arrays: {
        ...{ candidates, answers, answerWeights },
        candidateWeights: { data, shape: candidates.shape },
      },
      counts: { [OBJECTIVE]: rows.length },
      numTokens: tokensIn(all),
    };
  };

  const prompts = (rows: readonly (readonly number[])[], longest: number) => {
    const { ids, present, shape } = padPrompts(rows, { padId: pad, length: longest });
    return { ids: { data: ids, shape }, present: { data: present, shape } };
  };
  /** A text with one place to fill in, in two halves, of which the end is cut where they have no place together. */
  const halves = (text: string): readonly [before: number[], after: number[]] => {
    const [before = '', ...after] = text.split('[MASK]');
    const first = wordsOf(before).slice(0, mostGiven);
    return [first, wordsOf(after.join(' ')).slice(0, mostGiven - first.length)];
  };
  /** What is to be written into a text at its first `[MASK]`, beside each row's first picture. */
  const toInfill = (rows: readonly Row[], text: string): HostBatch => {
    const [before, after] = halves(text);
    const all = rows.map((row) => [
      ...streamOf([...before, mask, ...after], pictureOf(row)).ids,
      infill,
    ]);
    return { arrays: prompts(all, length), counts: {}, numTokens: tokensIn(all) };
  };
  /** Pictures to be drawn of texts, and of none in particular. */
  const toDraw = (texts: readonly string[]): HostBatch => {
    const asked = texts.map((text) => [...streamOf(wordsOf(text)).ids]);
    const unasked = texts.map(() => [...streamOf([mask]).ids]);
    const { ids: unaskedIds, present: unaskedPresent } = prompts(unasked, textTokens + 2);
    return {
      arrays: { ...prompts(asked, textTokens + 2), unaskedIds, unaskedPresent },
      counts: {},
      numTokens: tokensIn(asked),
    };
  };

  return {
    ...{ vocabulary, numPatches, length, mostGiven, wordsOf },
    ...{ training, captions, comparison, toInfill, toDraw, pictureOf },
  };
}

/** The objective: every token but `<mask>`, given those before it. */
export const OBJECTIVE = 'next-token';

/**
 * Captions to choose among for a picture: its own, at a place that is drawn, and others of the split, `count` in all or as
 * many as there are. What is read the same is one caption.
 */
export function captionsAmong(
  split: readonly Sample[],
  {
    count,
    idsOf,
    seed,
  }: {
    readonly count: number;
    readonly idsOf: (text: string) => ArrayLike<number>;
    readonly seed: number;
  },
) {
  const { texts, classOf } = textClasses(
    split.map(({ text }) => text),
    idsOf,
  );
  const size = Math.min(count, texts.length);
  return {
    size,
    of({ sample, number, epoch }: Row): {
      readonly texts: readonly string[];
      readonly own: number;
    } {
      const rng = openRng(seed, 'cm3leon/captions', epoch, number);
      const own = classOf(sample.text);
      const chosen: string[] = [];
      const taken = new Set([own]);
      while (chosen.length < size - 1) {
        const at = rng.integer(texts.length);
        if (taken.has(at)) continue;
        taken.add(at);
        chosen.push(texts[at]!);
      }
      const place = rng.integer(size);
      return { texts: chosen.toSpliced(place, 0, sample.text), own: place };
    },
  };
}
