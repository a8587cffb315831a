/**
 * From a decoded picture to a frame of the size asked for: which part of it is taken, what it is scaled to and where it
 * goes. Pure; each backend does the cutting and scaling by its own means and the placing by `placePicture`.
 */

/** A part of a picture as it is shown, in fractions of its width and height. */
export interface Crop {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/** What a frame is to be like. */
export interface Framing {
  /** Size of the frames that come back. */
  readonly width: number;
  readonly height: number;
  /**
   * How the picture (or its `crop`) gets the frame's shape: `stretch` scales width and height on their own, `cover` cuts
   * off what sticks out (as much on either side), `contain` leaves black bars. `stretch` by default.
   */
  readonly fit?: 'stretch' | 'cover' | 'contain' | undefined;
  /** The part of the shown picture (turned upright) that is taken, before `fit`. All of it by default. */
  readonly crop?: Crop | undefined;
  /** Mirrors the frame, left for right. */
  readonly flip?: boolean | undefined;
}

/** A decoded picture. */
export interface Picture {
  /** As coded, before `turns`. */
  readonly width: number;
  readonly height: number;
  /** Quarter turns clockwise from the coded to the shown picture. */
  readonly turns: 0 | 1 | 2 | 3;
  /** Width of a coded pixel as shown, over its height; 1 by default. */
  readonly pixelAspect?: number;
  /** Of which number the cut's corner must be a multiple; 2 where colour has half the resolution. 1 by default. */
  readonly grid?: 1 | 2;
}

export interface FramePlan {
  /** What is cut from the coded picture, in whole pixels. */
  readonly source: Rectangle;
  /** Whether that is all of it. */
  readonly isWhole: boolean;
  /** What the cut is scaled to, still as coded. */
  readonly scaledWidth: number;
  readonly scaledHeight: number;
  readonly turns: 0 | 1 | 2 | 3;
  readonly flip: boolean;
  /** The frame, and where in it the scaled and turned cut goes. */
  readonly width: number;
  readonly height: number;
  readonly target: Rectangle;
}

export interface Rectangle {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/**
 * Cuts are in whole pixels: edges are rounded to the nearest, and the corner to the grid. The cut is scaled by itself:
 * what lies outside of it has no part in the frame, as in torchvision's `resized_crop`.
 */
export function planFrame(picture: Picture, framing: Framing): FramePlan {
  const { turns, pixelAspect = 1, grid = 1 } = picture;
  const { width, height, fit = 'stretch', crop, flip = false } = framing;
  const isTurned = turns % 2 === 1;
  const shownWidth = isTurned ? picture.height : picture.width;
  const shownHeight = isTurned ? picture.width : picture.height;
  const shownPixelAspect = isTurned ? 1 / pixelAspect : pixelAspect;
  let left = (crop?.x ?? 0) * shownWidth;
  let top = (crop?.y ?? 0) * shownHeight;
  let right = crop ? (crop.x + crop.width) * shownWidth : shownWidth;
  let bottom = crop ? (crop.y + crop.height) * shownHeight : shownHeight;
  // How many times wider than the frame's shape.
  const excess = (((right - left) * shownPixelAspect) / (bottom - top)) * (height / width);
  if (fit === 'cover') {
    const [dx, dy] = [
      ((right - left) * (1 - Math.min(1, 1 / excess))) / 2,
      ((bottom - top) * (1 - Math.min(1, excess))) / 2,
    ];
    [left, right, top, bottom] = [left + dx, right - dx, top + dy, bottom - dy];
  }
  const source = codedCut(picture, { left, top, right, bottom }, grid);
  const inner =
    fit === 'contain'
      ? {
          width: Math.max(1, Math.round(width * Math.min(1, excess))),
          height: Math.max(1, Math.round(height * Math.min(1, 1 / excess))),
        }
      : { width, height };
  return {
    source,
    isWhole: source.width === picture.width && source.height === picture.height,
    scaledWidth: isTurned ? inner.height : inner.width,
    scaledHeight: isTurned ? inner.width : inner.height,
    ...{ turns, flip, width, height },
    target: {
      x: Math.floor((width - inner.width) / 2),
      y: Math.floor((height - inner.height) / 2),
      ...inner,
    },
  };
}

interface Edges {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

function codedCut({ width, height, turns }: Picture, shown: Edges, grid: number): Rectangle {
  const { left, top, right, bottom } = shown;
  const coded: Edges =
    turns === 0
      ? shown
      : turns === 1
        ? { left: top, right: bottom, top: height - right, bottom: height - left }
        : turns === 2
          ? { left: width - right, right: width - left, top: height - bottom, bottom: height - top }
          : { left: width - bottom, right: width - top, top: left, bottom: right };
  const [x, cutWidth] = wholePixels(coded.left, coded.right, width, grid);
  const [y, cutHeight] = wholePixels(coded.top, coded.bottom, height, grid);
  return { x, y, width: cutWidth, height: cutHeight };
}

function wholePixels(from: number, to: number, size: number, grid: number): [number, number] {
  const length = Math.min(size, Math.max(1, Math.round(to - from)));
  const start = Math.max(0, Math.min(size - length, Math.round(from)));
  return [start - (start % grid), length];
}

/** Turns, mirrors and puts a scaled cut, RGB [scaledHeight, scaledWidth, 3], into a frame [height, width, 3] of zeros. */
export function placePicture(scaled: Uint8Array, frame: Uint8Array, plan: FramePlan): void {
  const { turns, flip, width, target, scaledWidth, scaledHeight } = plan;
  if (turns === 0 && !flip && target.width === width) {
    frame.set(scaled, target.y * width * 3);
    return;
  }
  const [last, lastRow] = [target.width - 1, target.height - 1];
  for (let y = 0; y <= lastRow; y++) {
    let at = ((target.y + y) * width + target.x) * 3;
    for (let i = 0; i <= last; i++, at += 3) {
      const x = flip ? last - i : i;
      const row =
        turns === 0 ? y : turns === 1 ? scaledHeight - 1 - x : turns === 2 ? lastRow - y : x;
      const column =
        turns === 0 ? x : turns === 1 ? y : turns === 2 ? last - x : scaledWidth - 1 - y;
      const from = (row * scaledWidth + column) * 3;
      frame[at] = scaled[from]!;
      frame[at + 1] = scaled[from + 1]!;
      frame[at + 2] = scaled[from + 2]!;
    }
  }
}
