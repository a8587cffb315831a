/** Where something is to be seen in a picture or a film, as a detector would tell: by time, from a file beside it. */
import type { Box } from './ground-truth.ts';

/** Boxes of a medium: [left, top, right, bottom] as shares of its width and height, in [0, 1]. */
export interface RegionBoxes {
  /** When they are seen, ascending; of a picture one time. */
  readonly timesSeconds: readonly number[];
  /** What is seen at each time. */
  readonly boxes: readonly (readonly Box[])[];
}

interface Regions {
  readonly width: number;
  readonly height: number;
  readonly frames: readonly {
    readonly seconds?: number;
    readonly boxes: readonly Box[];
  }[];
}

interface Truth {
  readonly width: number;
  readonly height: number;
  readonly frames: { readonly ptsSeconds: readonly number[] };
  readonly shots: readonly { readonly firstFrame: number }[];
  readonly objects: readonly {
    readonly track: { readonly firstFrame: number; readonly boxes: readonly (Box | null)[] };
  }[];
}

/**
 * Boxes in pixels of `{width, height, frames: [{seconds, boxes}]}`, or the ground truth of the demo world; undefined for
 * any other value.
 */
export function regionBoxesOf(value: unknown): RegionBoxes | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const { width, height, frames } = value as Partial<Regions & Truth>;
  if (!isPositive(width) || !isPositive(height)) return undefined;
  const shares = ([left, top, right, bottom]: Box): Box => [
    share(left / width),
    share(top / height),
    share(right / width),
    share(bottom / height),
  ];
  if (Array.isArray(frames)) {
    const given = frames as Regions['frames'];
    if (!given.every(({ boxes }) => Array.isArray(boxes) && boxes.every(isBox))) return undefined;
    // Which would be shown when?
    if (given.length > 1 && !given.every(({ seconds }) => Number.isFinite(seconds)))
      return undefined;
    const seen = given
      .map(({ seconds = 0, boxes }) => ({ seconds, boxes: boxes.map(shares) }))
      .sort((a, b) => a.seconds - b.seconds);
    return {
      timesSeconds: seen.map(({ seconds }) => seconds),
      boxes: seen.map(({ boxes }) => boxes),
    };
  }
  const { objects, frames: shown } = value as Partial<Truth>;
  if (objects === undefined || shown === undefined) return undefined;
  return {
    timesSeconds: shown.ptsSeconds,
    boxes: shown.ptsSeconds.map((_, frame) =>
      objects.flatMap(({ track }) => {
        const box = track.boxes[frame - track.firstFrame];
        return box === undefined || box === null ? [] : [shares(box)];
      }),
    ),
  };
}

/** What is seen at a time: as at the nearest time that there is. */
export function boxesAt({ timesSeconds, boxes }: RegionBoxes, seconds: number): readonly Box[] {
  let best = 0;
  for (const [i, time] of timesSeconds.entries())
    if (Math.abs(time - seconds) < Math.abs(timesSeconds[best]! - seconds)) best = i;
  return boxes[best] ?? [];
}

/** The `most` largest, in order of size. */
export function largestBoxes(boxes: readonly Box[], most: number): Box[] {
  const area = ([left, top, right, bottom]: Box): number => (right - left) * (bottom - top);
  return [...boxes].sort((a, b) => area(b) - area(a)).slice(0, most);
}

/** A regular grid, row by row: what stands in where nothing is known. */
export function gridBoxes(across: number): Box[] {
  return Array.from({ length: across * across }, (_, i): Box => {
    const [x, y] = [i % across, Math.floor(i / across)];
    return [x / across, y / across, (x + 1) / across, (y + 1) / across];
  });
}

function isBox(value: unknown): value is Box {
  if (!Array.isArray(value) || value.length !== 4 || !value.every(Number.isFinite)) return false;
  const [left, top, right, bottom] = value as unknown as Box;
  return right > left && bottom > top;
}

function isPositive(value: unknown): value is number {
  return typeof value === 'number' && value > 0;
}

function share(value: number): number {
  return Math.min(1, Math.max(0, value));
}
