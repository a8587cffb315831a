/**
 * Regions of pictures, as a detector that ran before tells them: boxes in a file beside each medium, and of the pixels
 * within a box a feature of one size. Source: Li et al. 2019, arXiv:1908.03557, sec. 3.1, with pooled pixels in place of
 * Faster R-CNN's features; pooling by cells: Girshick 2015, arXiv:1504.08083, sec. 2.1 (RoI pooling, here the mean).
 */
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { messageOf } from '../../proto/errors.ts';
import type { MediaFile } from '../../video/index/sample.ts';
import { DataError, type SampleIndex } from '../../video/index/sample-index.ts';
import { stemOf } from '../../video/sources/media-names.ts';
import { isUrl } from '../../video/storage/paths.ts';
import type { Box } from '../../video/world/ground-truth.ts';
import { largestBoxes, regionBoxesOf, type RegionBoxes } from '../../video/world/region-boxes.ts';

const REGIONS_FILE = 'regions.jsonl';
/** Beside `a/b.mp4`: `a/b.regions.json`, else what the demo world tells of it. */
const ENDINGS = ['.regions.json', '.json'];
const READS_AT_ONCE = 64;
/** A box is looked at in so many cells across and down. */
const CELLS = 4;

/** Numbers of a region. */
export const REGION_FEATURE_WIDTH = CELLS * CELLS * 3;

/** Boxes by the row of the medium in the index; null where nothing is known. */
export type RegionsOfFiles = readonly (RegionBoxes | null)[];

/**
 * Looks for the boxes of all media and writes them into the run's folder. Gives how many media have some. Media of
 * buckets, of the web and within archives have none.
 * @throws DataError `REGIONS_UNREADABLE` where a `.regions.json` is not as it has to be
 */
export async function findRegions(
  { root, files }: Pick<SampleIndex, 'root' | 'files'>,
  folder: string,
  maxRegions: number,
): Promise<number> {
  const found: (RegionBoxes | null)[] = [];
  for (let first = 0; first < files.length; first += READS_AT_ONCE) {
    const some = files.slice(first, first + READS_AT_ONCE);
    found.push(...(await Promise.all(some.map((file) => regionsBeside(root, file)))));
  }
  await writeRegions(
    folder,
    found.map((regions) => regions && largestOf(regions, maxRegions)),
  );
  return found.filter((regions) => regions !== null).length;
}

function largestOf({ timesSeconds, boxes }: RegionBoxes, most: number): RegionBoxes {
  return { timesSeconds, boxes: boxes.map((each) => largestBoxes(each, most)) };
}

/** A line each: the whole may be longer than any string. */
async function writeRegions(folder: string, regions: RegionsOfFiles): Promise<void> {
  const lines = regions.map((each) => `${JSON.stringify(each)}\n`);
  await writeFileDurably(join(folder, REGIONS_FILE), lines);
}

export async function readRegions(folder: string): Promise<RegionsOfFiles> {
  const regions: (RegionBoxes | null)[] = [];
  const lines = createInterface({ input: createReadStream(join(folder, REGIONS_FILE)) });
  for await (const line of lines) regions.push(JSON.parse(line) as RegionBoxes | null);
  return regions;
}

/** None of any medium: for a plan by shapes. */
export async function writeNoRegions(folder: string, numFiles: number): Promise<void> {
  await writeRegions(
    folder,
    Array.from({ length: numFiles }, () => null),
  );
}

async function regionsBeside(root: string, file: MediaFile): Promise<RegionBoxes | null> {
  if (isUrl(root) || isUrl(file.path) || file.range !== undefined || file.cell !== undefined)
    return null;
  for (const ending of ENDINGS) {
    const path = join(root, `${stemOf(file.path)}${ending}`);
    const text = await readFile(path, 'utf8').catch(() => undefined);
    if (text === undefined) continue;
    const isMeant = ending === ENDINGS[0];
    let why =
      'it has no width, height and frames with boxes of left, top, right and bottom, and seconds where they are several';
    try {
      const regions = regionBoxesOf(JSON.parse(text));
      if (regions !== undefined) return regions;
    } catch (error) {
      why = messageOf(error);
    }
    if (isMeant) throw new DataError('REGIONS_UNREADABLE', `${path} cannot be read: ${why}`);
  }
  return null;
}

/**
 * Mean colours of the cells of a box, row by row, from -1 to 1, [{@link REGION_FEATURE_WIDTH}]. A cell that is smaller
 * than a pixel is the one that it lies in.
 * @param frame uint8 [size, size, 3]
 */
export function regionFeature(
  frame: Uint8Array,
  size: number,
  [left, top, right, bottom]: Box,
): Float32Array {
  const edgesOf = (start: number, end: number): (readonly [number, number])[] =>
    Array.from({ length: CELLS }, (_, i) => {
      const at = (k: number): number => size * (start + ((end - start) * k) / CELLS);
      const first = Math.min(size - 1, Math.floor(at(i)));
      return [first, Math.min(size, Math.max(first + 1, Math.round(at(i + 1))))];
    });
  const [rows, columns] = [edgesOf(top, bottom), edgesOf(left, right)];
  const feature = new Float32Array(REGION_FEATURE_WIDTH);
  let at = 0;
  for (const [firstRow, endRow] of rows) {
    for (const [firstColumn, endColumn] of columns) {
      const sums = [0, 0, 0];
      for (let y = firstRow; y < endRow; y++) {
        for (let x = firstColumn; x < endColumn; x++) {
          for (let c = 0; c < 3; c++) sums[c]! += frame[(y * size + x) * 3 + c]!;
        }
      }
      const area = (endRow - firstRow) * (endColumn - firstColumn);
      for (const sum of sums) feature[at++] = sum / (127.5 * area) - 1;
    }
  }
  return feature;
}
