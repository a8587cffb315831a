/** What FLAVA is shown of clips and texts: pairs, pictures alone and texts alone, and what of them is hidden. */
import { openRng, type Rng } from '../../proto/random.ts';
import { shownKey, type Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { patchFeatures } from '../../video/visual-words/patch-features.ts';
import {
  assignVisualWords,
  type VisualVocabulary,
} from '../../video/visual-words/visual-vocabulary.ts';
import { blockMask } from '../tokens/block-mask.ts';
import { maskWords, wordPositions } from '../tokens/masked-tokens.ts';
import { foreignSample } from './foreign-sample.ts';
import { otherRow } from './frame-changes.ts';
import { floatArray, intArray } from './host-arrays.ts';
import { exchanged, openPictureWords } from './picture-words.ts';
import type { HostArray, HostBatch, Row } from './system.ts';
import { textKey, textNumbers } from './text-number.ts';
import { anyPicture, packedPictures, type PictureShape } from './vision-part.ts';
import { wholeWords } from './whole-words.ts';

/** Everything that turns rows into a microbatch. */
export interface FlavaAssembly {
  readonly seed: number;
  readonly tokenizer: Tokenizer;
  readonly vocabulary: VisualVocabulary;
  readonly picture: PictureShape;
  readonly patchSize: number;
  /** Word pieces of a text, [CLS] and [SEP] included. */
  readonly maxTokens: number;
  readonly wordMaskRatio: number;
  readonly maskedPatches: number;
  readonly leastBlock: number;
  /** Shares of the samples with words that are shown as one modality alone. */
  readonly unpaired: { readonly pictures: number; readonly texts: number };
  /** Share of the pairs whose masked text is another sample's. */
  readonly mismatchedShare: number;
  readonly pictureWords: readonly (readonly string[])[];
}

/** What a row has. A text alone is of a sample without media, or of one whose picture is not to be known. */
export type RowKind = 'pair' | 'picture' | 'text';

/** What is asked of held-out rows. */
export type FlavaQuestion =
  | {
      readonly kind: 'word';
      /** One of these is hidden, whole pieces; any word unless given. */
      readonly among?: readonly string[];
      /** Shows another row's picture. */
      readonly isOther?: boolean;
    }
  | { readonly kind: 'patch' | 'match' };

/** By the sample itself, as sources give it. */
export function ownKind({ media, text }: Pick<Sample, 'media' | 'text'>): RowKind {
  if (media.length === 0) return 'text';
  return text.trim() === '' ? 'picture' : 'pair';
}

/** Arrays of masked rows; the weights say what of them counts, all 0 at first. */
function maskedArrays(
  numRows: number,
  { numPatches, maskedPatches, maxTokens, wordMaskRatio }: FlavaAssembly & { numPatches: number },
) {
  const numWords = Math.max(1, Math.round(wordMaskRatio * (maxTokens - 2)));
  const [patches, words] = [[numRows, maskedPatches] as const, [numRows, numWords] as const];
  return {
    hiddenPatches: floatArray(numRows, numPatches),
    patchPositions: intArray(...patches),
    patchLabels: intArray(...patches),
    patchAloneWeights: floatArray(...patches),
    patchJointWeights: floatArray(...patches),
    maskedIds: intArray(numRows, maxTokens),
    maskedPresent: floatArray(numRows, maxTokens),
    wordPositions: intArray(...words),
    wordLabels: intArray(...words),
    wordAloneWeights: floatArray(...words),
    wordJointWeights: floatArray(...words),
    matchLabels: intArray(numRows),
    matchWeights: floatArray(numRows),
  };
}

type MaskedArrays = ReturnType<typeof maskedArrays>;

export type FlavaAssembler = ReturnType<typeof openFlavaAssembler>;

/** Of a sample the number of the first one of its split that shows the same. */
function firstOfEachMedium() {
  const known = new WeakMap<readonly Sample[], Map<string, number>>();
  return (sample: Sample, number: number, split: readonly Sample[]): number => {
    let first = known.get(split);
    if (first === undefined) {
      first = new Map();
      for (const [at, each] of split.entries())
        if (!first.has(shownKey(each))) first.set(shownKey(each), at);
      known.set(split, first);
    }
    return first.get(shownKey(sample)) ?? number;
  };
}

/** Rows to batches; pure: the same rows give the same bytes on every worker. */
export function openFlavaAssembler(assembly: FlavaAssembly) {
  const { seed, tokenizer, vocabulary, picture, patchSize, maxTokens, pictureWords } = assembly;
  const { special, firstWordId, vocabularySize } = tokenizer;
  const told = openPictureWords(tokenizer, pictureWords);
  const numPatches = (picture.frameSize / patchSize) ** 2;
  const pictureBytes = picture.framesPerWindow * picture.frameSize ** 2 * 3;
  const frame = { size: picture.frameSize, patchSize };

  const idsOf = (text: string): Int32Array =>
    Int32Array.from([special.cls, ...tokenizer.encode(text).slice(0, maxTokens - 2), special.sep]);
  const groupOf = (text: string): ArrayLike<number> => told.groupedBy(idsOf(text));
  const rngOf = ({ epoch, number }: Row, purpose: string): Rng =>
    openRng(seed, `flava/${purpose}`, epoch, number);

  const firstOf = firstOfEachMedium();
  /**
   * In training some media and their texts give one modality alone, the same in every epoch: what belongs to it is never
   * shown.
   */
  const trainingKind = (
    { sample, number }: Pick<Row, 'sample' | 'number'>,
    split: readonly Sample[],
  ): RowKind => {
    const kind = ownKind(sample);
    if (kind !== 'pair') return kind;
    const { pictures, texts } = assembly.unpaired;
    const draw = openRng(seed, 'flava/kind', firstOf(sample, number, split)).uniform();
    if (draw < pictures) return 'picture';
    return draw < pictures + texts ? 'text' : 'pair';
  };

  const put = (array: HostArray, row: number, values: ArrayLike<number>): void => {
    const size = array.data.length / array.shape[0]!;
    array.data.set(values, row * size);
  };
  const fill = (array: HostArray, row: number, value: number, count: number): void => {
    const start = row * (array.data.length / array.shape[0]!);
    array.data.fill(value, start, start + count);
  };

  /** A text of which some places are to be told; `positions` count [CLS]. */
  const putWords = (
    arrays: MaskedArrays,
    row: number,
    { own, ids, positions }: { own: Int32Array; ids: Int32Array; positions: readonly number[] },
  ): void => {
    put(arrays.maskedIds, row, ids);
    fill(arrays.maskedPresent, row, 1, ids.length);
    put(arrays.wordPositions, row, positions);
    put(
      arrays.wordLabels,
      row,
      positions.map((at) => own[at]!),
    );
  };
  const blankTexts = (arrays: MaskedArrays): void => {
    arrays.maskedIds.data.fill(special.pad);
  };
  /** Hides blocks of a picture and writes down which visual words they are. */
  const putPatches = (arrays: MaskedArrays, row: number, shown: Uint8Array, rng: Rng): void => {
    const grid = picture.frameSize / patchSize;
    const { maskedPatches: numMasked, leastBlock } = assembly;
    const options = { numMasked, leastBlock, isExact: true };
    const { masked } = blockMask({ height: grid, width: grid }, options, rng);
    const codes = assignVisualWords(vocabulary, patchFeatures(shown, frame));
    for (const at of masked) arrays.hiddenPatches.data[row * numPatches + at] = 1;
    put(arrays.patchPositions, row, masked);
    put(
      arrays.patchLabels,
      row,
      Array.from(masked, (at) => codes[at]!),
    );
  };

  const packed = (
    rows: readonly Row[],
    purpose: string,
  ): { readonly pixels: HostArray; readonly shown: (row: Row) => Uint8Array } => {
    const choose = anyPicture(seed, `flava/${purpose}`);
    return {
      pixels: packedPictures(rows, picture, choose),
      shown(row) {
        const [chosen] = choose(row, row.frames.length / pictureBytes);
        return row.frames.subarray(chosen! * pictureBytes, (chosen! + 1) * pictureBytes);
      },
    };
  };

  /** Whole texts, [CLS] words [SEP]. */
  const textArrays = (texts: readonly string[], ...shape: number[]) => {
    const [ids, present] = [intArray(...shape, maxTokens), floatArray(...shape, maxTokens)];
    ids.data.fill(special.pad);
    for (const [i, text] of texts.entries()) {
      const own = idsOf(text);
      ids.data.set(own, i * maxTokens);
      present.data.fill(1, i * maxTokens, i * maxTokens + own.length);
    }
    return { ids, present };
  };

  /** Another sample's text that does not belong to the picture too; undefined where none is within reach. */
  const foreignText = ({ sample }: Row, split: readonly Sample[], rng: Rng): string | undefined => {
    const own = textKey(groupOf(sample.text));
    const place = shownKey(sample);
    const fits = (other: Sample): boolean =>
      other.text.trim() !== '' && shownKey(other) !== place && textKey(groupOf(other.text)) !== own;
    return foreignSample(split, rng, fits)?.text;
  };

  const counted = (arrays: MaskedArrays, numPairs: number): HostBatch['counts'] => {
    const sum = ({ data }: HostArray): number => [...data].reduce((a, b) => a + b, 0);
    return {
      mim: sum(arrays.patchAloneWeights),
      mlm: sum(arrays.wordAloneWeights),
      contrastive: numPairs,
      'mmm-image': sum(arrays.patchJointWeights),
      'mmm-text': sum(arrays.wordJointWeights),
      itm: sum(arrays.matchWeights),
    };
  };
  const numTokensOf = (rows: readonly Row[], present: HostArray): number =>
    rows.length * (1 + numPatches) + [...present.data].reduce((a, b) => a + b, 0);

  const training = (rows: readonly Row[], split: readonly Sample[]): HostBatch => {
    const { pixels, shown } = packed(rows, 'train');
    const arrays = maskedArrays(rows.length, { ...assembly, numPatches });
    const pairWeights = floatArray(rows.length);
    blankTexts(arrays);
    const numWords = arrays.wordPositions.shape[1]!;
    for (const [i, row] of rows.entries()) {
      const kind = trainingKind(row, split);
      const rng = rngOf(row, 'train');
      putPatches(arrays, i, shown(row), rng.fork('patches'));
      const foreign =
        kind === 'pair' && rng.uniform() < assembly.mismatchedShare
          ? foreignText(row, split, rng.fork('foreign'))
          : undefined;
      const own = idsOf(foreign ?? row.sample.text);
      const words = rng.fork('words');
      const { ids, positions } = maskWords(own, words, {
        ...{ firstWord: firstWordId, vocabularySize, maskId: special.mask },
        ...{ ratio: assembly.wordMaskRatio, limit: numWords },
      });
      putWords(arrays, i, { own, ids, positions });
      const { patchAloneWeights, patchJointWeights, wordAloneWeights, wordJointWeights } = arrays;
      if (kind === 'picture') fill(patchAloneWeights, i, 1, assembly.maskedPatches);
      if (kind === 'text') fill(wordAloneWeights, i, 1, positions.length);
      if (kind !== 'pair') continue;
      pairWeights.data[i] = 1;
      arrays.matchWeights.data[i] = 1;
      arrays.matchLabels.data[i] = foreign === undefined ? 1 : 0;
      if (foreign !== undefined) continue; // a hidden word or patch has no right answer in another's company
      fill(patchJointWeights, i, 1, assembly.maskedPatches);
      fill(wordJointWeights, i, 1, positions.length);
    }
    const texts = rows.map(({ sample }) => sample.text);
    const numPairs = pairWeights.data.reduce((a, b) => a + b, 0);
    return {
      arrays: {
        ...{ pixels, ...arrays, ...textArrays(texts, rows.length), pairWeights },
        captions: textNumbers(texts.map(groupOf)),
      },
      counts: counted(arrays, numPairs),
      numTokens: numTokensOf(rows, arrays.maskedPresent),
    };
  };

  /** One thing is asked and hidden, all else is shown. */
  const question = (
    rows: readonly Row[],
    asked: FlavaQuestion,
    split: readonly Sample[],
  ): HostBatch => {
    const isOther = asked.kind === 'word' && asked.isOther === true;
    const others = rows.map((row, i) => (isOther ? otherRow(rows, i) : row));
    const seen = rows.map((row, i) => ({ ...row, frames: (others[i] ?? row).frames }));
    const { shown, pixels } = packed(seen, asked.kind);
    const among =
      asked.kind === 'word' && asked.among !== undefined
        ? new Set(wholeWords(tokenizer, asked.among).values())
        : undefined;
    const arrays = maskedArrays(rows.length, { ...assembly, numPatches });
    blankTexts(arrays);
    for (const [i, row] of rows.entries()) {
      const { text } = row.sample;
      const rng = rngOf(row, asked.kind);
      const ids = idsOf(text);
      switch (asked.kind) {
        case 'word': {
          const known = wordPositions(ids, firstWordId);
          const choices = known.filter((at) => among?.has(ids[at]!) ?? true);
          const positions = choices.length === 0 ? [] : [choices[rng.integer(choices.length)]!];
          const hidden = ids.map((id, at) => (positions.includes(at) ? special.mask : id));
          putWords(arrays, i, { own: ids, ids: hidden, positions });
          if (others[i] !== undefined) fill(arrays.wordJointWeights, i, 1, positions.length);
          break;
        }
        case 'patch':
          putWords(arrays, i, { own: ids, ids, positions: [] });
          putPatches(arrays, i, shown(row), rng);
          fill(arrays.patchAloneWeights, i, 1, assembly.maskedPatches);
          break;
        case 'match': {
          const isMatch = (row.epoch + row.number) % 2 === 1;
          const other = isMatch
            ? text
            : pictureWords.length > 0
              ? exchanged(text, pictureWords, rng)
              : foreignText(row, split, rng);
          const read = idsOf(other ?? text);
          putWords(arrays, i, { own: read, ids: read, positions: [] });
          arrays.matchLabels.data[i] = isMatch ? 1 : 0;
          // A word that is cut off can be exchanged, and then nothing is.
          const isAsked = isMatch || textKey(read) !== textKey(ids);
          arrays.matchWeights.data[i] = isAsked ? 1 : 0;
          break;
        }
      }
    }
    return {
      arrays: { pixels, ...arrays },
      counts: counted(arrays, 0),
      numTokens: numTokensOf(rows, arrays.maskedPresent),
    };
  };

  /** Whole pictures, for the question which caption is theirs. */
  const pictures = (rows: readonly Row[]): HostBatch => ({
    arrays: { pixels: packed(rows, 'recall').pixels },
    counts: { contrastive: rows.length },
    numTokens: rows.length * (1 + numPatches),
  });

  /** The same text with `[MASK]`s at `places` among its words beside each row's first picture. */
  const toFillIn = (
    rows: readonly Row[],
    { ids: words, places }: { readonly ids: readonly number[]; readonly places: readonly number[] },
  ): HostBatch => {
    const ids = Int32Array.from([special.cls, ...words, special.sep]);
    const arrays = {
      ...maskedArrays(rows.length, { ...assembly, numPatches }),
      wordPositions: intArray(rows.length, places.length),
    };
    blankTexts(arrays);
    for (const i of rows.keys()) {
      put(arrays.maskedIds, i, ids);
      fill(arrays.maskedPresent, i, 1, ids.length);
      put(
        arrays.wordPositions,
        i,
        places.map((place) => 1 + place),
      );
    }
    const { hiddenPatches, maskedIds, maskedPresent, wordPositions: positions } = arrays;
    return {
      arrays: {
        pixels: packedPictures(rows, picture, () => [0]),
        ...{ hiddenPatches, maskedIds, maskedPresent, wordPositions: positions },
      },
      counts: {},
      numTokens: numTokensOf(rows, maskedPresent),
    };
  };

  return { idsOf, groupOf, textArrays, training, question, pictures, toFillIn, numPatches };
}
