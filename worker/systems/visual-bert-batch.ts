/** What VisualBERT is shown: captions, then the regions of a picture, and what of the words is hidden. */
import { openRng, type Rng } from '../../proto/random.ts';
import { shownKey, type Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { boxesAt, gridBoxes, largestBoxes } from '../../video/world/region-boxes.ts';
import { maskWords, wordPositions } from '../tokens/masked-tokens.ts';
import { otherRow } from './frame-changes.ts';
import { floatArray, intArray } from './host-arrays.ts';
import { foreignSample } from './foreign-sample.ts';
import { exchanged, openPictureWords } from './picture-words.ts';
import { REGION_FEATURE_WIDTH, regionFeature, type RegionsOfFiles } from './regions.ts';
import type { HostBatch, Row } from './system.ts';
import { textKey } from './text-number.ts';
import { anyPicture } from './vision-part.ts';
import { wholeWords } from './whole-words.ts';

export interface VisualBertAssembly {
  readonly seed: number;
  readonly tokenizer: Tokenizer;
  readonly regionsOfFiles: RegionsOfFiles;
  readonly frameSize: number;
  readonly maxTokens: number;
  readonly wordMaskRatio: number;
  /** Regions of a picture; the largest where there are more. */
  readonly maxRegions: number;
  /** Columns and rows of the regular grid of a medium whose regions nobody tells. */
  readonly grid: number;
  readonly hasBoxes: boolean;
  readonly pictureWords: readonly (readonly string[])[];
  readonly blank: boolean;
  /** All of both splits: a picture may have several. */
  readonly samples: readonly Sample[];
}

/** What is asked of held-out rows. */
export type VisualBertQuestion = {
  /** Shows the regions of another row. */
  readonly isOther?: boolean;
} & (
  | { readonly kind: 'match' }
  /** One of these words is hidden, whole pieces; any word unless given. */
  | { readonly kind: 'word'; readonly among?: readonly string[] }
);

/** Numbers of a region, its box included. */
export function regionWidth(hasBoxes: boolean): number {
  return REGION_FEATURE_WIDTH + (hasBoxes ? 4 : 0);
}

/** Rows to batches; pure: the same rows give the same bytes on every worker. */
export function openVisualBertAssembler(assembly: VisualBertAssembly) {
  const { seed, tokenizer, regionsOfFiles, frameSize, maxTokens, maxRegions, hasBoxes } = assembly;
  const { special, firstWordId, vocabularySize } = tokenizer;
  const told = openPictureWords(tokenizer, assembly.pictureWords);
  const frameBytes = frameSize ** 2 * 3;
  const width = regionWidth(hasBoxes);
  const numWords = Math.max(1, Math.round(assembly.wordMaskRatio * (maxTokens - 2)));
  const grid = gridBoxes(assembly.grid);

  /** One sentence or two, [CLS] first [SEP] second [SEP], each cut to its share of the places. */
  const idsOf = (...texts: readonly string[]): Int32Array => {
    const most = Math.floor((maxTokens - 1) / texts.length) - 1;
    const words = texts.flatMap((text) => [...tokenizer.encode(text).slice(0, most), special.sep]);
    return Int32Array.from([special.cls, ...words]);
  };
  const groupOf = (text: string): string => textKey(told.groupedBy(idsOf(text)));
  /** Captions of each picture or clip of the splits. */
  const captions = new Map<string, Set<string>>();
  for (const sample of assembly.samples) {
    const place = shownKey(sample);
    captions.set(place, (captions.get(place) ?? new Set()).add(sample.text));
  }
  const otherCaptionsOf = (sample: Sample): string[] =>
    [...(captions.get(shownKey(sample)) ?? [])].filter((text) => text !== sample.text);

  /** Features and boxes (cx, cy, w, h) of what is seen in one frame of a row. */
  const regionsOf = (row: Row, purpose: string): Float32Array[] => {
    const numFrames = row.frames.length / frameBytes;
    const [chosen] = anyPicture(seed, `visual-bert/${purpose}`)(row, numFrames);
    const frame = row.frames.subarray(chosen! * frameBytes, (chosen! + 1) * frameBytes);
    const known = regionsOfFiles[row.sample.media[0]!.file];
    const seen =
      known == null ? grid : largestBoxes(boxesAt(known, row.timesSeconds[chosen!]!), maxRegions);
    return seen.map((box) => {
      const region = new Float32Array(width);
      if (assembly.blank) return region;
      region.set(regionFeature(frame, frameSize, box));
      const [left, top, right, bottom] = box;
      if (hasBoxes)
        region.set(
          [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top],
          REGION_FEATURE_WIDTH,
        );
      return region;
    });
  };

  const emptyArrays = (numRows: number) => {
    const arrays = {
      ids: intArray(numRows, maxTokens),
      segments: intArray(numRows, maxTokens),
      present: floatArray(numRows, maxTokens),
      regions: floatArray(numRows, maxRegions, width),
      regionsPresent: floatArray(numRows, maxRegions),
      wordPositions: intArray(numRows, numWords),
      wordLabels: intArray(numRows, numWords),
      wordWeights: floatArray(numRows, numWords),
      matchLabels: intArray(numRows),
      matchWeights: floatArray(numRows),
    };
    arrays.ids.data.fill(special.pad);
    return arrays;
  };
  type Arrays = ReturnType<typeof emptyArrays>;

  const putRegions = (arrays: Arrays, row: number, regions: readonly Float32Array[]): void => {
    for (const [i, region] of regions.entries()) {
      arrays.regions.data.set(region, (row * maxRegions + i) * width);
      arrays.regionsPresent.data[row * maxRegions + i] = 1;
    }
  };
  /** A text of which the words at `positions` are to be told, if they count. */
  const putText = (
    arrays: Arrays,
    row: number,
    text: {
      readonly own: Int32Array;
      readonly ids: Int32Array;
      readonly positions: readonly number[];
      /** Of the words of the sentence that a position is in, 0 or 1. */
      readonly counts: (sentence: number) => boolean;
    },
  ): void => {
    const first = text.own.indexOf(special.sep);
    arrays.ids.data.set(text.ids, row * maxTokens);
    arrays.present.data.fill(1, row * maxTokens, row * maxTokens + text.ids.length);
    const start = row * maxTokens + first + 1;
    arrays.segments.data.fill(1, start, row * maxTokens + text.ids.length);
    for (const [slot, at] of text.positions.entries()) {
      arrays.wordPositions.data[row * numWords + slot] = at;
      arrays.wordLabels.data[row * numWords + slot] = text.own[at]!;
      arrays.wordWeights.data[row * numWords + slot] = text.counts(at > first ? 1 : 0) ? 1 : 0;
    }
  };
  const batchOf = (arrays: Arrays): HostBatch => {
    const sum = ({ data }: { readonly data: Float32Array }): number =>
      data.reduce((a, b) => a + b, 0);
    return {
      arrays,
      counts: { mlm: sum(arrays.wordWeights), match: sum(arrays.matchWeights) },
      numTokens: sum(arrays.present) + sum(arrays.regionsPresent),
    };
  };

  /** Another sample's text that does not belong to the picture too; undefined where none is within reach. */
  const foreignText = (own: Sample, split: readonly Sample[], rng: Rng): string | undefined => {
    const alike = captions.get(shownKey(own));
    const fits = ({ text }: Sample): boolean =>
      alike?.has(text) !== true && groupOf(text) !== groupOf(own.text);
    return foreignSample(split, rng, fits)?.text;
  };

  const training = (rows: readonly Row[], split: readonly Sample[]): HostBatch => {
    const arrays = emptyArrays(rows.length);
    for (const [i, row] of rows.entries()) {
      const rng = openRng(seed, 'visual-bert/train', row.epoch, row.number);
      const foreign =
        rng.uniform() < 0.5 ? foreignText(row.sample, split, rng.fork('foreign')) : undefined;
      // With several captions the first is always the picture's own.
      const others = otherCaptionsOf(row.sample);
      const isPair = others.length > 0;
      const second = foreign ?? others[isPair ? rng.integer(others.length) : 0] ?? row.sample.text;
      const own = isPair ? idsOf(row.sample.text, second) : idsOf(second);
      const words = rng.fork('words');
      const { ids, positions } = maskWords(own, words, {
        ...{ firstWord: firstWordId, vocabularySize, maskId: special.mask },
        ...{ ratio: assembly.wordMaskRatio, limit: numWords },
      });
      putRegions(arrays, i, regionsOf(row, 'train'));
      // A hidden word has no right answer in a foreign picture.
      const counts = (sentence: number): boolean =>
        foreign === undefined || (isPair && sentence === 0);
      putText(arrays, i, { own, ids, positions, counts });
      arrays.matchLabels.data[i] = foreign === undefined ? 1 : 0;
      arrays.matchWeights.data[i] = 1;
    }
    return batchOf(arrays);
  };

  const question = (
    rows: readonly Row[],
    asked: VisualBertQuestion,
    split: readonly Sample[],
  ): HostBatch => {
    const arrays = emptyArrays(rows.length);
    const among =
      asked.kind === 'word' && asked.among !== undefined
        ? new Set(wholeWords(tokenizer, asked.among).values())
        : undefined;
    for (const [i, row] of rows.entries()) {
      const { text } = row.sample;
      const rng = openRng(seed, `visual-bert/${asked.kind}`, row.epoch, row.number);
      const other = asked.isOther === true ? otherRow(rows, i) : row;
      if (other !== undefined) putRegions(arrays, i, regionsOf(other, asked.kind));
      const ids = idsOf(text);
      if (asked.kind === 'word') {
        const choices = wordPositions(ids, firstWordId).filter(
          (at) => among?.has(ids[at]!) ?? true,
        );
        const positions = choices.length === 0 ? [] : [choices[rng.integer(choices.length)]!];
        const hidden = ids.map((id, at) => (positions.includes(at) ? special.mask : id));
        putText(arrays, i, { own: ids, ids: hidden, positions, counts: () => other !== undefined });
        continue;
      }
      const isMatch = (row.epoch + row.number) % 2 === 1;
      const [second] = otherCaptionsOf(row.sample);
      const asRead = (last: string): Int32Array =>
        second === undefined ? idsOf(last) : idsOf(text, last);
      const last = second ?? text;
      const said = isMatch
        ? last
        : assembly.pictureWords.length > 0
          ? exchanged(last, assembly.pictureWords, rng)
          : foreignText(row.sample, split, rng);
      const read = asRead(said ?? last);
      putText(arrays, i, { own: read, ids: read, positions: [], counts: () => false });
      arrays.matchLabels.data[i] = isMatch ? 1 : 0;
      // A word that is cut off can be exchanged, and then nothing is.
      const isAsked = isMatch || textKey(read) !== textKey(asRead(last));
      arrays.matchWeights.data[i] = isAsked && other !== undefined ? 1 : 0;
    }
    return batchOf(arrays);
  };

  return { training, question };
}
