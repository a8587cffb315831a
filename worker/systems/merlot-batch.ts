/** Rows to the arrays that MERLOT takes. Pure: the same rows give the same bytes on every worker. */
import { openRng, shuffled, type Rng } from '../../proto/random.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { PAIR_CLASSES } from '../models/merlot.ts';
import { idsBetween, maskingBudget, wordPositions } from '../tokens/masked-tokens.ts';
import { floatArray, intArray, packedFrames } from './host-arrays.ts';
import { isOneFrame, type HostBatch, type Row } from './system.ts';
import { wordsAt } from './subtitles.ts';
import { TEXT_NUMBERS, textNumbers } from './text-number.ts';

/** Everything that turns rows into a microbatch. */
export interface MerlotAssembly {
  readonly seed: number;
  readonly tokenizer: Pick<Tokenizer, 'encode' | 'special' | 'firstWordId' | 'vocabularySize'>;
  readonly numSegments: number;
  readonly groupSize: number;
  readonly segmentLength: number;
  readonly maskRatio: number;
  readonly shuffleShare: number;
  /** What a pair counts whose frames have their places told, of a hundredth. */
  readonly toldWeight: number;
  /** Whether the joint encoder reads the words. */
  readonly showsWords: boolean;
}

/** What is hidden and asked. Training asks everything at once; an evaluation asks one thing. */
export interface MerlotQuestion {
  /** Keys the randomness apart from other questions. */
  readonly purpose: string;
  readonly words: 'train' | 'asked' | 'shown' | 'blank';
  readonly order: 'train' | 'asked' | 'told';
}

export const MERLOT_TRAINING: MerlotQuestion = { purpose: 'train', words: 'train', order: 'train' };

/** Of a pair in which a frame is shuffled; whole numbers add up to the same in every order. */
const SHUFFLED_WEIGHT = 100;
/** How often a pick takes no, one or two neighbours with it. Source: MERLOT's released code. */
const REACH = [0.625, 0.25, 0.125] as const;

export function numMaskSlots({ groupSize, segmentLength, maskRatio }: MerlotAssembly): number {
  return maskingBudget(groupSize * (segmentLength - 1), maskRatio);
}

/** A piece that starts a segment, its words, and padding. */
export function segmentIds(
  text: string,
  { tokenizer, segmentLength }: Pick<MerlotAssembly, 'tokenizer' | 'segmentLength'>,
): number[] {
  const { cls, pad } = tokenizer.special;
  const ids = [cls, ...tokenizer.encode(text).slice(0, segmentLength - 1)];
  return [...ids, ...new Array<number>(segmentLength - ids.length).fill(pad)];
}

/**
 * Segments of frame and words in groups; G groups of g segments are B rows of S. A group is shuffled with a share of
 * the chances: two or more of its frames get, instead of their places, rows of the table that say nothing of them, in
 * random order. Source: Zellers et al. 2021, arXiv:2106.02636, sec. 3.2, and the released data loader, whose test of
 * whether a pair is easy (`idx < 64`) holds for every pair; here it asks what it says.
 */
export function assembleMerlot(
  config: MerlotAssembly,
  rows: readonly Row[],
  question: MerlotQuestion,
): HostBatch {
  const { tokenizer, numSegments, groupSize, segmentLength } = config;
  const { special, firstWordId, vocabularySize } = tokenizer;
  const groupsPerRow = numSegments / groupSize;
  const numGroups = rows.length * groupsPerRow;
  const [length, slots] = [groupSize * segmentLength, numMaskSlots(config)];
  const arrays = {
    pixels: packedFrames(rows),
    ids: intArray(rows.length, numSegments * segmentLength),
    present: floatArray(rows.length, numSegments * segmentLength),
    jointPresent: floatArray(numGroups, length),
    moments: intArray(numGroups, groupSize),
    candidateWeights: floatArray(numGroups, length),
    draws: floatArray(numGroups, length),
    reachLeft: floatArray(numGroups, length),
    reachRight: floatArray(numGroups, length),
    replacements: intArray(numGroups, length),
    maskWeights: floatArray(numGroups, slots),
    pairLabels: intArray(numGroups, 2, groupSize, groupSize),
    pairWeights: floatArray(numGroups, 2, groupSize, groupSize),
  };
  const counts = {
    'frame-text': rows.length * numSegments,
    'masked-token': 0,
    'frame-order': 0,
  };
  let numTokens = 0;
  const texts: (readonly number[])[] = [];
  const showsWords = config.showsWords && question.words !== 'blank';
  const randomId = idsBetween(firstWordId, vocabularySize);

  for (const [r, row] of rows.entries()) {
    const rng = openRng(config.seed, `merlot/${question.purpose}`, row.epoch, row.number);
    for (let s = 0; s < numSegments; s++) {
      const text = wordsAt(row.sample.cues, row.timesSeconds[s]!);
      const ids = segmentIds(text, config);
      arrays.ids.data.set(ids, (r * numSegments + s) * segmentLength);
      texts.push(ids);
    }
    for (let k = 0; k < groupsPerRow; k++) {
      const group = r * groupsPerRow + k;
      const own = rng.fork('group', k);
      const at = group * length;
      const ids = arrays.ids.data.subarray(at, at + length);
      for (const [i, id] of ids.entries()) {
        const isThere = id === special.pad ? 0 : 1;
        arrays.present.data[at + i] = isThere;
        arrays.jointPresent.data[at + i] = showsWords ? isThere : 0;
        numTokens += isThere;
      }

      if (showsWords && question.words !== 'shown') {
        const words = wordPositions(ids, firstWordId);
        const budget = Math.min(slots, maskingBudget(words.length, config.maskRatio));
        // An evaluation leaves no choice to the model, so that it is known how often each word is asked.
        const candidates =
          question.words === 'asked' ? shuffled(words, own.fork('asked')).slice(0, budget) : words;
        arrays.maskWeights.data.fill(1, group * slots, group * slots + budget);
        counts['masked-token'] += budget;
        const draw = own.fork('mask');
        for (const position of candidates) {
          arrays.candidateWeights.data[at + position] = 1;
          arrays.draws.data[at + position] = -Math.log(1 - draw.uniform());
          arrays.reachLeft.data[at + position] = reach(draw);
          arrays.reachRight.data[at + position] = reach(draw);
          // BERT's rule, drawn for every word; it holds for those that are chosen.
          const rule = question.words === 'asked' ? 0 : draw.uniform();
          arrays.replacements.data[at + position] =
            rule < 0.8 ? special.mask : rule < 0.9 ? randomId(draw) : ids[position]!;
        }
      }

      const isShuffled = isShuffledOf(config, question, own.fork('shuffle'));
      arrays.moments.data.set(
        momentsOf(config, k, isShuffled, own.fork('order')),
        group * groupSize,
      );
      const coins = own.fork('pairs');
      for (let kind = 0; kind < 2; kind++) {
        for (let i = 0; i < groupSize; i++) {
          for (let j = 0; j < groupSize; j++) {
            const place = ((group * 2 + kind) * groupSize + i) * groupSize + j;
            const { same, before, after } = PAIR_CLASSES;
            arrays.pairLabels.data[place] = i === j ? same : i < j ? before : after;
            if (kind === 0 && i === j) continue; // a frame with itself
            if (kind === 1 && !showsWords) continue;
            if (i !== j && isOneFrame(row, k * groupSize + i, k * groupSize + j)) continue;
            const isHard = isShuffled[j]! || (kind === 0 && isShuffled[i]!);
            const weight = isHard ? SHUFFLED_WEIGHT : config.toldWeight;
            if (question.order === 'train') arrays.pairWeights.data[place] = weight;
          }
        }
      }
      if (question.order === 'asked') {
        // Each two frames once, asked one way round or the other, so that no constant answer is right.
        for (let i = 0; i < groupSize; i++) {
          for (let j = i + 1; j < groupSize; j++) {
            const [a, b] = coins.uniform() < 0.5 ? [i, j] : [j, i];
            if (isOneFrame(row, k * groupSize + i, k * groupSize + j)) continue;
            arrays.pairWeights.data[(group * 2 * groupSize + a) * groupSize + b] = 1;
          }
        }
      }
    }
  }
  for (const weight of arrays.pairWeights.data) counts['frame-order'] += weight;
  const { data } = textNumbers(texts);
  const shape = [rows.length, numSegments, TEXT_NUMBERS];
  return { arrays: { ...arrays, textNumbers: { data, shape } }, counts, numTokens };
}

function isShuffledOf(
  { groupSize, shuffleShare }: MerlotAssembly,
  { order }: MerlotQuestion,
  rng: Rng,
): boolean[] {
  if (order === 'asked') return new Array<boolean>(groupSize).fill(true);
  const count =
    order === 'train' && rng.uniform() < shuffleShare ? 2 + rng.integer(groupSize - 1) : 0;
  const chosen = shuffled([...Array(groupSize).keys()], rng).slice(0, count);
  return Array.from({ length: groupSize }, (_, i) => chosen.includes(i));
}

/** Rows of the table of moments for the k-th group's frames. */
function momentsOf(
  { numSegments, groupSize }: MerlotAssembly,
  k: number,
  isShuffled: readonly boolean[],
  rng: Rng,
): number[] {
  const unknown = shuffled([...Array(groupSize).keys()], rng);
  return isShuffled.map((hidden, i) => (hidden ? numSegments + unknown[i]! : k * groupSize + i));
}

function reach(rng: Rng): number {
  const draw = rng.uniform();
  if (draw < REACH[0]) return 0;
  return draw < REACH[0] + REACH[1] ? 1 : 2;
}
