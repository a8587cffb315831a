/**
 * What patches of a picture look like, as points for visual words: a masked patch is then a classification, as with the
 * codes of a discrete autoencoder. Source: BEiT, Bao et al. 2021, arXiv:2106.08254, sec. 2.1. Difference: clusters of
 * colours in place of a learned dVAE.
 */

/** A patch is looked at in so many parts across and down. */
const PARTS = 4;
const CHANNELS = 3;

/** Numbers of a patch of so many frames. */
export function patchFeatureWidth(numFrames: number): number {
  return numFrames * PARTS ** 2 * CHANNELS;
}

/**
 * Mean colours in [0, 1] of the parts of each patch, [N, {@link patchFeatureWidth}], row by row; of several frames one
 * after the other. A part of a patch of fewer pixels than parts is the pixel that it lies in.
 *
 * @param frames uint8 [F, size, size, 3]; size is a multiple of the patch's
 */
export function patchFeatures(
  frames: Uint8Array,
  { size, patchSize }: { readonly size: number; readonly patchSize: number },
): Float32Array {
  const frameBytes = size * size * CHANNELS;
  const numFrames = frames.length / frameBytes;
  const across = size / patchSize;
  const width = patchFeatureWidth(numFrames);
  const features = new Float32Array(across * across * width);
  const edges = Array.from({ length: PARTS }, (_, part) => {
    const start = Math.floor((part * patchSize) / PARTS);
    return [start, Math.max(start + 1, Math.floor(((part + 1) * patchSize) / PARTS))] as const;
  });
  let at = 0;
  for (let patch = 0; patch < across * across; patch++) {
    const [top, left] = [Math.floor(patch / across) * patchSize, (patch % across) * patchSize];
    for (let frame = 0; frame < numFrames; frame++) {
      for (const [firstRow, endRow] of edges) {
        for (const [firstColumn, endColumn] of edges) {
          const sums = [0, 0, 0];
          for (let y = top + firstRow; y < top + endRow; y++) {
            for (let x = left + firstColumn; x < left + endColumn; x++) {
              const pixel = frame * frameBytes + (y * size + x) * CHANNELS;
              for (let c = 0; c < CHANNELS; c++) sums[c]! += frames[pixel + c]!;
            }
          }
          const area = (endRow - firstRow) * (endColumn - firstColumn);
          for (const sum of sums) features[at++] = sum / (255 * area);
        }
      }
    }
  }
  return features;
}

/**
 * The first frame of a picture by the features of its patches, uint8 [size, size, 3]: each part in its colour. Of patches of
 * more pixels than parts the rest is lost.
 */
export function picturedPatches(
  features: Float32Array,
  { size, patchSize }: { readonly size: number; readonly patchSize: number },
): Uint8Array {
  const across = size / patchSize;
  const width = features.length / across ** 2;
  // The part that the pixel was counted in.
  const partAt = (inPatch: number): number => Math.ceil(((inPatch + 1) * PARTS) / patchSize) - 1;
  const frame = new Uint8Array(size * size * CHANNELS);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const patch = Math.floor(y / patchSize) * across + Math.floor(x / patchSize);
      const part = partAt(y % patchSize) * PARTS + partAt(x % patchSize);
      for (let c = 0; c < CHANNELS; c++) {
        const value = Math.round(255 * features[patch * width + part * CHANNELS + c]!);
        frame[(y * size + x) * CHANNELS + c] = Math.min(255, Math.max(0, value));
      }
    }
  }
  return frame;
}
