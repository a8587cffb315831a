/**
 * Which frames of a film are taken: policies from what is known of it to times in seconds from the start of the
 * presentation, ascending. Pure; a time stands for the frame that is shown then, whatever the frame rate does.
 */
import type { Rng } from '../../proto/random.ts';
import type { TimedText } from '../text/captions.ts';

/** A part of a film; its end is not in it. */
export interface Span {
  readonly startSeconds: number;
  readonly endSeconds: number;
}

/**
 * Times of frames spread evenly over [startSeconds, endSeconds): the centres of equal segments, so that no frame sits on
 * a boundary where rounding decides which side it is on. Source: Wang et al. 2016, arXiv:1608.00859 (TSN), sec. 3.1,
 * with the centre instead of a random place in each segment.
 */
export function evenTimes(startSeconds: number, endSeconds: number, numFrames: number): number[] {
  const segment = Math.max(0, endSeconds - startSeconds) / numFrames;
  return Array.from({ length: numFrames }, (_, i) => startSeconds + (i + 0.5) * segment);
}

/** A span of video cut into windows, each seen through a few frames. */
export interface WindowsOptions {
  readonly startSeconds: number;
  readonly endSeconds: number;
  readonly numWindows: number;
  readonly framesPerWindow: number;
}

/** Times of the frames of all windows, window by window, [numWindows * framesPerWindow], ascending. */
export function windowTimes(options: WindowsOptions): number[] {
  const { startSeconds, endSeconds, numWindows, framesPerWindow } = options;
  // Equal windows of equal segments are equal segments of the whole.
  return evenTimes(startSeconds, endSeconds, numWindows * framesPerWindow);
}

/**
 * Times at a fixed rate: the centres of the span's segments of 1 / `framesPerSecond`, at least one. Where that gives more
 * than `maxFrames`, so many times spread evenly over the span instead.
 */
export function fixedRateTimes(
  { startSeconds, endSeconds }: Span,
  { framesPerSecond, maxFrames }: { readonly framesPerSecond: number; readonly maxFrames: number },
): number[] {
  // A segment that lacks less than a thousandth is whole: its end went through floating point.
  const numSegments = Math.floor((endSeconds - startSeconds) * framesPerSecond + 1e-3);
  if (numSegments > maxFrames) return evenTimes(startSeconds, endSeconds, maxFrames);
  if (numSegments < 1) return evenTimes(startSeconds, endSeconds, 1);
  return evenTimes(startSeconds, startSeconds + numSegments / framesPerSecond, numSegments);
}

/** A clip of a length, starting anywhere in the span with equal chance; the whole span if that is shorter. */
export function randomClip(
  { startSeconds, endSeconds }: Span,
  lengthSeconds: number,
  rng: Pick<Rng, 'uniform'>,
): Span {
  const slack = Math.max(0, endSeconds - startSeconds - lengthSeconds);
  const start = startSeconds + rng.uniform() * slack;
  return { startSeconds: start, endSeconds: Math.min(endSeconds, start + lengthSeconds) };
}

/**
 * Key frames alone, which cost one decoded picture each: to each of `numFrames` even times the nearest one inside of the
 * span, each once if there are enough. Without any in the span, the one that the span's start is decoded from.
 * `keyFrameSeconds`: ascending, not empty.
 */
export function keyFrameTimes(
  keyFrameSeconds: readonly number[],
  { startSeconds, endSeconds }: Span,
  numFrames: number,
): number[] {
  const inside = keyFrameSeconds.filter((key) => key >= startSeconds && key < endSeconds);
  const keys =
    inside.length > 0
      ? inside
      : [keyFrameSeconds.findLast((key) => key < startSeconds) ?? keyFrameSeconds[0]!];
  const isEnough = keys.length >= numFrames;
  let at = 0;
  return evenTimes(startSeconds, endSeconds, numFrames).map((time, i) => {
    const last = isEnough ? keys.length - numFrames + i : keys.length - 1; // leaves one for each later time
    if (isEnough && i > 0) at++;
    while (at < last && Math.abs(keys[at + 1]! - time) < Math.abs(keys[at]! - time)) at++;
    return keys[at]!;
  });
}

/** The centres of the scenes between `cuts` (ascending), of the `maxFrames` longest ones if there are more. */
export function sceneTimes(
  cuts: readonly number[],
  { startSeconds, endSeconds }: Span,
  maxFrames: number,
): number[] {
  const inside = cuts.filter((cut) => cut > startSeconds && cut < endSeconds);
  const edges = [startSeconds, ...inside, endSeconds];
  return edges
    .slice(1)
    .map((end, i) => ({ time: (edges[i]! + end) / 2, length: end - edges[i]! }))
    .sort((a, b) => b.length - a.length || a.time - b.time)
    .slice(0, maxFrames)
    .map(({ time }) => time)
    .sort((a, b) => a - b);
}

/**
 * The middle of each cue, so that a frame shows what is being said; of a segment made of words that is the mean of its
 * first word's start and its last word's end. Source: Zellers et al. 2021, arXiv:2106.02636 (MERLOT), sec. 3.1.
 */
export function cueTimes(cues: readonly TimedText[]): number[] {
  return cues
    .map(({ startSeconds, endSeconds }) => (startSeconds + endSeconds) / 2)
    .sort((a, b) => a - b);
}

/** Words with times (ascending) in segments of so many, the last one of what is left; for `cueTimes`. */
export function wordSegments(words: readonly TimedText[], wordsPerSegment: number): TimedText[] {
  const segments: TimedText[] = [];
  for (let at = 0; at < words.length; at += wordsPerSegment) {
    const segment = words.slice(at, at + wordsPerSegment);
    segments.push({
      startSeconds: segment[0]!.startSeconds,
      endSeconds: segment.at(-1)!.endSeconds,
      text: segment.map(({ text }) => text).join(' '),
    });
  }
  return segments;
}
