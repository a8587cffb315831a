import { openClipLoader } from '../../video/loading/loader.ts';
import type { ClipLoaderOptions } from '../../video/loading/loader.ts';
import type { Row } from '../systems/system.ts';

/**
 * Frames of rows by their places, RGB [size, size, 3] uint8: the model sees small ones, and people see better on larger ones
 * of the same times.
 */
export function openLargeFrames(
  options: ClipLoaderOptions,
  size: number,
): (row: Row) => Promise<(place: number) => Uint8Array> {
  const loader = openClipLoader({ ...options, frameSize: size, audio: undefined, cacheBytes: 0 });
  const bytes = size * size * 3;
  return async ({ number, epoch }) => {
    const [clip] = await loader.load([{ sample: number, epoch, substitutes: [] }]);
    // A copy: of many frames, all others can go.
    return (place) => clip!.frames.slice(place * bytes, (place + 1) * bytes);
  };
}
