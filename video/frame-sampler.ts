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
