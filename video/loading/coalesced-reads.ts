/** Many small parts of a few files as few large reads. Pure. */
import type { ByteRange } from '../storage/store.ts';

/** A part of a file, by a name that tells files apart. */
export interface WantedPart {
  readonly path: string;
  readonly range: ByteRange;
}

/** A stretch of a file, and which of the wanted parts lie in it. */
export interface PlannedRead {
  readonly path: string;
  readonly offset: number;
  readonly sizeBytes: number;
  /** Places in the list of wanted parts, by offset. */
  readonly parts: readonly number[];
}

export interface ReadPlanOptions {
  /** What lies between parts is read with them as long as that is so many times the parts' own bytes at most. */
  readonly maxSpread: number;
  /** No read is larger, unless one part alone is. */
  readonly maxReadBytes: number;
}

/** Covers all parts, by file and offset; parts may overlap. */
export function planReads(
  wanted: readonly WantedPart[],
  { maxSpread, maxReadBytes }: ReadPlanOptions,
): PlannedRead[] {
  const byFile = new Map<string, number[]>();
  for (const [place, { path }] of wanted.entries()) {
    const places = byFile.get(path);
    if (places === undefined) byFile.set(path, [place]);
    else places.push(place);
  }
  const reads: PlannedRead[] = [];
  for (const [path, places] of byFile) {
    places.sort((a, b) => wanted[a]!.range.offset - wanted[b]!.range.offset);
    let parts: number[] = [];
    let [start, end, wantedBytes] = [0, 0, 0];
    const finish = (): void => {
      if (parts.length > 0) reads.push({ path, offset: start, sizeBytes: end - start, parts });
    };
    for (const place of places) {
      const { offset, sizeBytes } = wanted[place]!.range;
      const length = Math.max(end, offset + sizeBytes) - start;
      const isNear = length <= maxSpread * (wantedBytes + sizeBytes);
      if (parts.length > 0 && isNear && length <= maxReadBytes) {
        parts.push(place);
        end = start + length;
        wantedBytes += sizeBytes;
        continue;
      }
      finish();
      parts = [place];
      [start, end, wantedBytes] = [offset, offset + sizeBytes, sizeBytes];
    }
    finish();
  }
  return reads;
}
