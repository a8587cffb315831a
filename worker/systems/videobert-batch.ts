import { openRng, type Rng } from '../../proto/random.ts';
import { chooseSpans } from '../tokens/masked-frames.ts';
import { applyMask, choosePositions, idsBetween, wordPositions } from '../tokens/masked-tokens.ts';
import type { HostArray, HostBatch } from './system.ts';

/** One clip as VideoBERT sees it: word pieces and visual words. */
export interface VideoBertExample {
  /** Row of the sample in its split and its epoch: they key the randomness. */
  readonly number: number;
  readonly epoch: number;
  readonly textIds: Int32Array;
  readonly visualWords: Int32Array;
}

export interface SpecialIds {
  readonly pad: number;
  readonly cls: number;
  readonly sep: number;
  readonly mask: number;
  /** `[>]`, between sentence and video. */
  readonly join: number;
  /** Ids from here on are ordinary word pieces. */
  readonly firstWord: number;
}

/** Everything that turns examples into a microbatch. */
export interface AssemblyConfig {
  readonly seed: number;
  readonly special: SpecialIds;
  readonly textVocabulary: number;
  readonly visualVocabulary: number;
  readonly maxTextTokens: number;
  readonly numWindows: number;
  readonly textMaskRatio: number;
  readonly visualMaskRatio: number;
  /** Visual words are hidden in runs of this many. */
  readonly visualMaskSpan: number;
  /** Where a question varies the speed, every s-th visual word is shown, s drawn from 1 to this. */
  readonly visualStrides: number;
  /** Shares of the samples that are shown with one modality alone; the rest have both. */
  readonly textOnlyShare: number;
  readonly videoOnlyShare: number;
  /** Share of the pairs whose text is another sample's: only their alignment counts, so few keep the masks useful. */
  readonly mismatchedShare: number;
  /** `text` and `video` make the one-modality models that the full one is compared with. */
  readonly modalities: 'both' | 'text' | 'video';
}

/** What is hidden and asked. Training asks everything at once; an evaluation asks one thing. */
export interface Question {
  /** Keys the randomness apart from other questions. */
  readonly purpose: string;
  readonly hideText: boolean;
  readonly hideVideo: boolean;
  /** A question of an evaluation: as much is hidden as can be, and all of it masked, instead of BERT's 80/10/10. */
  readonly maskAll: boolean;
  readonly alignment: 'random' | 'matched' | 'alternate';
  /**
   * Windows that are hidden all together, in place of some drawn ones: `all` of them, to tell the video from the text
   * alone; the `later` half, to tell what comes from what was. As many of them are asked as a batch has room for.
   */
  readonly windows?: 'all' | 'later';
  /** Shows no text. */
  readonly isSilent?: boolean;
  /** Shows films at several speeds; see {@link AssemblyConfig.visualStrides}. */
  readonly variesSpeed?: boolean;
}

export const TRAINING: Question = {
  purpose: 'train',
  hideText: true,
  hideVideo: true,
  maskAll: false,
  alignment: 'random',
  variesSpeed: true,
};

export function sequenceLength({ maxTextTokens, numWindows }: AssemblyConfig): number {
  return maxTextTokens + numWindows + 3;
}

/**
 * Examples to the arrays of a `VideoBertBatch`: `[CLS] w1..wn [>] v1..vm [SEP]`, text padded before `[>]`. A
 * mismatched pair takes the text of another row of the split, and only its alignment counts: a hidden word has no
 * right answer in a foreign video. Pure: the same examples give the same bytes on every worker.
 * Source: Sun et al. 2019, arXiv:1904.01766, sec. 3.2-3.3.
 */
export function assembleVideoBert(
  config: AssemblyConfig,
  examples: readonly VideoBertExample[],
  question: Question,
  foreignText: (rng: Rng, own: VideoBertExample) => Int32Array | undefined,
): HostBatch {
  const { special, maxTextTokens, numWindows, textVocabulary, visualVocabulary } = config;
  const [batch, length] = [examples.length, sequenceLength(config)];
  const numText = Math.max(1, Math.round(config.textMaskRatio * maxTextTokens));
  const numVisual = Math.max(1, Math.round(config.visualMaskRatio * numWindows));
  const ints = (...shape: number[]): HostArray & { data: Int32Array } => ({
    data: new Int32Array(shape.reduce((a, b) => a * b)),
    shape,
  });
  const floats = (...shape: number[]): HostArray & { data: Float32Array } => ({
    data: new Float32Array(shape.reduce((a, b) => a * b)),
    shape,
  });
  const arrays = {
    ids: ints(batch, length),
    segments: floats(batch, length),
    present: floats(batch, length),
    textPositions: ints(batch, numText),
    textLabels: ints(batch, numText),
    textWeights: floats(batch, numText),
    visualPositions: ints(batch, numVisual),
    visualLabels: ints(batch, numVisual),
    visualWeights: floats(batch, numVisual),
    matched: floats(batch),
    alignmentWeights: floats(batch),
  };
  const counts = { 'masked-token': 0, 'masked-frame': 0, alignment: 0 };
  let numTokens = 0;

  for (const [row, example] of examples.entries()) {
    const rng = openRng(
      config.seed,
      `videobert/${question.purpose}`,
      example.epoch,
      example.number,
    );
    const [textShown, videoShown] = modalitiesOf(config, question, example, rng);
    const foreign =
      textShown && videoShown && wantsForeign(config, question, example, rng)
        ? foreignText(rng, example)
        : undefined;
    const textIds = (foreign ?? example.textIds).subarray(0, maxTextTokens);

    const text = hide(textIds, textShown && question.hideText, rng, {
      choose: () =>
        choosePositions(
          wordPositions(textIds, special.firstWord),
          { ratio: config.textMaskRatio, limit: numText },
          rng,
        ),
      maskId: special.mask,
      randomId: idsBetween(special.firstWord, textVocabulary),
      maskAll: question.maskAll,
    });
    const shownWords = question.variesSpeed ? atSomeSpeed(example, config) : example.visualWords;
    const numShown = shownWords.length;
    // As large a share is hidden of few as of many.
    const mostHidden = Math.max(1, Math.round(config.visualMaskRatio * numShown));
    const visualIds = shownWords.map((word) => textVocabulary + 1 + word);
    const visual = hide(visualIds, videoShown && question.hideVideo, rng, {
      choose: () => {
        if (question.windows !== undefined) return windowsOf(question.windows, numShown);
        // Training hides up to as many as a question does: it also has to see what goes with the words.
        const count = question.maskAll ? mostHidden : 1 + rng.integer(mostHidden);
        return chooseSpans(numShown, { count, span: config.visualMaskSpan }, rng);
      },
      maskId: textVocabulary,
      randomId: idsBetween(textVocabulary + 1, textVocabulary + 1 + visualVocabulary),
      maskAll: question.maskAll,
    });

    const at = row * length;
    const put = (position: number, id: number, present: boolean, segment: 0 | 1): void => {
      arrays.ids.data[at + position] = present ? id : special.pad;
      arrays.present.data[at + position] = present ? 1 : 0;
      arrays.segments.data[at + position] = segment;
      if (present) numTokens++;
    };
    put(0, special.cls, true, 0);
    for (let i = 0; i < maxTextTokens; i++) {
      put(1 + i, text.ids[i] ?? special.pad, textShown && i < textIds.length, 0);
    }
    put(1 + maxTextTokens, special.join, true, 1);
    for (let i = 0; i < numWindows; i++) {
      const isShown = videoShown && i < numShown;
      put(2 + maxTextTokens + i, visual.ids[i] ?? special.pad, isShown, 1);
    }
    put(length - 1, special.sep, true, 1);

    if (textShown && videoShown) {
      arrays.matched.data[row] = foreign === undefined ? 1 : 0;
      const counted = question.alignment !== 'matched';
      arrays.alignmentWeights.data[row] = counted ? 1 : 0;
      if (counted) counts.alignment++;
    }
    if (foreign === undefined) {
      for (const [slot, position] of text.positions.entries()) {
        arrays.textPositions.data[row * numText + slot] = 1 + position;
        arrays.textLabels.data[row * numText + slot] = textIds[position]!;
        arrays.textWeights.data[row * numText + slot] = 1;
        counts['masked-token']++;
      }
      for (const [slot, position] of visual.positions.slice(0, numVisual).entries()) {
        arrays.visualPositions.data[row * numVisual + slot] = 2 + maxTextTokens + position;
        arrays.visualLabels.data[row * numVisual + slot] = shownWords[position]!;
        arrays.visualWeights.data[row * numVisual + slot] = 1;
        counts['masked-frame']++;
      }
    }
  }
  return { arrays, counts, numTokens };
}

/**
 * Every s-th visual word from one of the first s on: how fast the same is done differs from film to film. Drawn apart
 * from all else, so that what is hidden does not depend on whether speeds vary.
 * Source: Sun et al. 2019, arXiv:1904.01766, sec. 3.2: steps of 1 to 5.
 */
function atSomeSpeed(
  { visualWords, epoch, number }: VideoBertExample,
  { seed, visualStrides }: AssemblyConfig,
): Int32Array {
  if (visualStrides === 1) return visualWords;
  const rng = openRng(seed, 'videobert/speed', epoch, number);
  const stride = 1 + rng.integer(visualStrides);
  const first = rng.integer(Math.min(stride, visualWords.length));
  return visualWords.filter((_, at) => at >= first && (at - first) % stride === 0);
}

/** Which modalities a row shows. An evaluation shows all that the model has. */
function modalitiesOf(
  config: AssemblyConfig,
  question: Question,
  example: VideoBertExample,
  rng: Rng,
): [text: boolean, video: boolean] {
  const draw = rng.uniform();
  if (config.modalities === 'text') return [true, false];
  if (config.modalities === 'video' || question.isSilent === true) return [false, true];
  if (example.textIds.length === 0) return [false, true];
  if (question.alignment !== 'random') return [true, true];
  if (draw < config.textOnlyShare) return [true, false];
  return [draw >= config.textOnlyShare + config.videoOnlyShare, true];
}

function windowsOf(which: 'all' | 'later', numWindows: number): number[] {
  const first = which === 'all' ? 0 : Math.ceil(numWindows / 2);
  return Array.from({ length: numWindows - first }, (_, i) => first + i);
}

function wantsForeign(
  { mismatchedShare }: AssemblyConfig,
  { alignment }: Question,
  { epoch, number }: VideoBertExample,
  rng: Rng,
): boolean {
  return alignment === 'random'
    ? rng.uniform() < mismatchedShare
    : alignment === 'alternate' && (epoch + number) % 2 === 1;
}

function hide(
  ids: Int32Array,
  wanted: boolean,
  rng: Rng,
  { choose, ...options }: { choose: () => number[] } & Parameters<typeof applyMask>[3],
): ReturnType<typeof applyMask> {
  return wanted ? applyMask(ids, choose(), rng, options) : { ids, positions: [] };
}

/** The labels that are counted. */
export function countedLabels({ arrays }: HostBatch, labels: string, weights: string): number[] {
  const counted = arrays[weights]!.data;
  return [...arrays[labels]!.data].filter((_, i) => counted[i] !== 0);
}
