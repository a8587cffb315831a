/** How a clip is looked at: at which times, which part of the picture. A function of the sample, the seed and the epoch. */
import { openRng, type Rng } from '../../proto/random.ts';
import { augmentClip, type AugmentOptions } from './augment.ts';
import {
  cueTimes,
  evenTimes,
  fixedRateTimes,
  keyFrameTimes,
  randomClip,
  sceneTimes,
  type Span,
} from './frame-sampler.ts';
import type { Framing } from '../decode/framing.ts';
import type { MediaFile, Sample } from '../index/sample.ts';

/** Which frames of a clip are taken. All policies give as many: the last one is repeated where there are fewer. */
export type Sampling =
  | { readonly policy: 'even' | 'key-frames' | 'scenes' | 'cues' }
  | { readonly policy: 'fps'; readonly framesPerSecond: number }
  /** Even frames of a part of the clip of this length, another one each epoch; in evaluation the middle one. */
  | { readonly policy: 'random-clip'; readonly seconds: number };

export interface ViewOptions {
  readonly numFrames: number;
  readonly sampling: Sampling;
  readonly fit: NonNullable<Framing['fit']>;
  /** Random changes of the picture; in training alone. */
  readonly augment: {
    /** `square`: the largest. */
    readonly crop: boolean | 'square';
    readonly cropScale?: AugmentOptions['scale'];
    readonly flip: boolean;
  };
  readonly isTraining: boolean;
  readonly seed: number;
}

/** A clip of one place of a run. */
export interface ViewedClip {
  readonly sample: Sample;
  readonly file: MediaFile;
  readonly row: number;
  readonly epoch: number;
  /** Where scenes of the file begin, in seconds; for the policy `scenes`. */
  readonly cuts?: readonly number[];
}

/** Whether a sample is looked at in the same way in every epoch. */
export function isFixedView({
  sampling,
  augment,
  isTraining,
}: Pick<ViewOptions, 'sampling' | 'augment' | 'isTraining'>): boolean {
  return (
    !isTraining || (sampling.policy !== 'random-clip' && augment.crop === false && !augment.flip)
  );
}

/** The part of the clip's file that is looked at, and listened to. */
export function viewSpan(
  { sampling, seed, isTraining }: ViewOptions,
  { sample, row, epoch }: ViewedClip,
): Span {
  const span = sample.media[0]!;
  if (sampling.policy !== 'random-clip') return span;
  const rng = isTraining ? openRng(seed, 'random-clip', epoch, row) : MIDDLE;
  return randomClip(span, sampling.seconds, rng);
}

/** Times of the frames, ascending, [numFrames]. */
export function viewTimes(options: ViewOptions, clip: ViewedClip): number[] {
  const { sampling, numFrames } = options;
  const { sample, file } = clip;
  const span = viewSpan(options, clip);
  const { startSeconds, endSeconds } = span;
  const even = (): number[] => evenTimes(startSeconds, endSeconds, numFrames);
  switch (sampling.policy) {
    case 'even':
    case 'random-clip':
      return even();
    case 'fps': {
      const { framesPerSecond } = sampling;
      return filled(fixedRateTimes(span, { framesPerSecond, maxFrames: numFrames }), numFrames);
    }
    case 'key-frames':
      return file.keyFrameSeconds.length === 0
        ? even()
        : filled(keyFrameTimes(file.keyFrameSeconds, span, numFrames), numFrames);
    case 'scenes':
      return filled(sceneTimes(clip.cuts ?? [], span, numFrames), numFrames);
    case 'cues': {
      const times = cueTimes(sample.cues).filter(
        (time) => time >= startSeconds && time < endSeconds,
      );
      return times.length === 0 ? even() : filled(spread(times, numFrames), numFrames);
    }
  }
}

/** Which part of the picture is shown, and how. */
export function viewFraming(
  { fit, augment, isTraining, seed }: ViewOptions,
  { sample, file, row, epoch }: ViewedClip,
): Pick<Framing, 'fit' | 'crop' | 'flip'> {
  if (!isTraining || (augment.crop === false && !augment.flip)) return { fit };
  const { width, height } = file;
  const { text } = sample;
  const drawn = augmentClip(
    { seed, epoch, sample: row },
    { width, height, text },
    { isSquare: augment.crop === 'square', scale: augment.cropScale },
  );
  return {
    fit,
    ...(augment.crop !== false ? { crop: drawn.crop } : {}),
    ...(augment.flip ? { flip: drawn.flip } : {}),
  };
}

const MIDDLE: Pick<Rng, 'uniform'> = { uniform: () => 0.5 };

/** So many of the times, spread evenly over them. */
function spread(times: readonly number[], count: number): number[] {
  if (times.length <= count) return [...times];
  return Array.from(
    { length: count },
    (_, i) => times[Math.floor(((i + 0.5) * times.length) / count)]!,
  );
}

function filled(times: readonly number[], count: number): number[] {
  return Array.from({ length: count }, (_, i) => times[Math.min(i, times.length - 1)]!);
}
