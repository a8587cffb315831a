import type { DecodedFrames } from '../decode/decoder-backend.ts';

/** At least so many of the pixels change their colour between two scenes. */
const MIN_DISTANCE = 0.15;
/** A cut stands out from what its neighbours change by motion. */
const MIN_RATIO = 4;
const NUM_NEIGHBOURS = 2;
/** Levels of each of red, green and blue. */
const LEVELS = 6;

/**
 * Where scenes begin, in seconds, ascending: the times of the frames whose colours differ from those of the frame before
 * by far more than is usual around them. Frames may be small (48 x 27) and few (4 a second); a cut is told to the frame
 * that comes after it. Fades are not found. Source: histogram difference with an adaptive threshold, Lienhart 1998,
 * "Comparison of automatic shot boundary detection algorithms", sec. 2.1.
 */
export function sceneCuts({ frames, ptsSeconds, width, height }: DecodedFrames): number[] {
  const size = width * height * 3;
  const distances: number[] = []; // of frame i + 1 from frame i
  let before: Float64Array | undefined;
  for (let at = 0; at + size <= frames.length; at += size) {
    const colours = colourShares(frames.subarray(at, at + size));
    if (before) distances.push(distance(before, colours));
    before = colours;
  }
  const cuts: number[] = [];
  for (const [i, value] of distances.entries()) {
    const around = [
      ...distances.slice(Math.max(0, i - NUM_NEIGHBOURS), i),
      ...distances.slice(i + 1, i + 1 + NUM_NEIGHBOURS),
    ].sort((a, b) => a - b);
    // The lower of the middle ones, so that one cut beside another hides neither.
    const usual = around[(around.length - 1) >> 1] ?? 0;
    if (value >= MIN_DISTANCE && value >= MIN_RATIO * usual) cuts.push(ptsSeconds[i + 1]!);
  }
  return cuts;
}

/** Share of the pixels that have each colour, a pixel divided among the nearest levels of each channel. */
function colourShares(pixels: Uint8Array): Float64Array {
  const shares = new Float64Array(LEVELS ** 3);
  const scale = (LEVELS - 1) / 255;
  const weight = 3 / pixels.length;
  for (let at = 0; at < pixels.length; at += 3) {
    const [r, g, b] = [pixels[at]! * scale, pixels[at + 1]! * scale, pixels[at + 2]! * scale];
    const [r0, g0, b0] = [Math.floor(r), Math.floor(g), Math.floor(b)];
    for (let corner = 0; corner < 8; corner++) {
      const [dr, dg, db] = [corner & 1, (corner >> 1) & 1, corner >> 2];
      const part =
        (dr ? r - r0 : 1 - r + r0) * (dg ? g - g0 : 1 - g + g0) * (db ? b - b0 : 1 - b + b0);
      if (part > 0) shares[((r0 + dr) * LEVELS + g0 + dg) * LEVELS + b0 + db]! += part * weight;
    }
  }
  return shares;
}

/** Share of the pixels whose colour has changed: 0 to 1. */
function distance(one: Float64Array, other: Float64Array): number {
  let sum = 0;
  for (const [i, share] of one.entries()) sum += Math.abs(share - other[i]!);
  return sum / 2;
}
