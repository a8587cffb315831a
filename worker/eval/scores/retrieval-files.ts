import * as z from 'zod';
import { readArrays, type NumberArray } from './number-arrays.ts';
import { idForm, invalid, parse, readJson, recordsOf } from './records.ts';
import type { Similarities } from './retrieval.ts';

const recordForm = z.looseObject({
  id: idForm.optional(),
  image_id: idForm.optional(),
  image: idForm.optional(),
  caption: z.union([z.string(), z.array(z.string())]).optional(),
  captions: z.array(z.string()).optional(),
  /** Of each text, in the order in which the file names them first. */
  scores: z.array(z.number()).optional(),
});

const imageForm = z.looseObject({ id: idForm });

/** A medium with its captions. */
interface Captioned {
  readonly captions: string[];
  readonly scores?: readonly number[] | undefined;
  readonly at: string;
}

/** What a file names: media in the order of the rows of a matrix, and of each of its columns the row of its medium. */
interface Listed {
  readonly media: readonly Captioned[];
  readonly mediumOf: readonly number[];
}

/**
 * Similarities of media and texts, from
 * - a `.npy` or safetensors file with an array `similarity` [media, texts], or `images` [media, width] and `texts`
 *   [texts, width] of which the cosines are taken, and `ids`, which names the media in the order of the rows and the
 *   captions in the order of the columns: records with `id`, `image_id` or `image` and `caption` or `captions` (BLIP's
 *   among them), or COCO's object, of which `images` are the rows and `annotations` the columns;
 * - or JSON Lines as `videoloom evaluate` writes them: such records with `scores` of all texts, of which those with the
 *   same words are one.
 *
 * @throws UsageError SCORE_FILE_INVALID
 */
export async function readSimilarities(
  file: string,
  ids: string | undefined,
): Promise<Similarities> {
  if (ids === undefined) return scoresIn((await readListed(file)).media, file);
  const { media, mediumOf } = await readListed(ids);
  const arrays = await readArrays(file);
  const [numMedia, numTexts] = [media.length, mediumOf.length];
  const { data, shape } = similarityOf(arrays, file);
  if (shape[0] !== numMedia || shape[1] !== numTexts)
    throw invalid(
      file,
      `it compares ${shape[0]} media with ${shape[1]} texts, and ${ids} has ${numMedia} with ${numTexts} captions`,
    );
  return { values: data, numMedia, numTexts, mediaOf: mediumOf.map((medium) => [medium]) };
}

function scoresIn(captioned: readonly Captioned[], file: string): Similarities {
  const mediaOf = new Map<string, number[]>();
  for (const [medium, { captions }] of captioned.entries())
    for (const caption of new Set(captions)) {
      const known = mediaOf.get(caption) ?? [];
      known.push(medium);
      mediaOf.set(caption, known);
    }
  const values = captioned.flatMap(({ scores, at }) => {
    if (scores === undefined)
      throw invalid(at, `it has no scores: of a matrix, name the file with the ids behind ${file}`);
    if (scores.length !== mediaOf.size)
      throw invalid(at, `it has ${scores.length} scores, and there are ${mediaOf.size} texts`);
    return scores;
  });
  return {
    ...{ values, numMedia: captioned.length, numTexts: mediaOf.size },
    mediaOf: [...mediaOf.values()],
  };
}

async function readListed(path: string): Promise<Listed> {
  const found = new Map<string, Captioned & { readonly row: number }>();
  const mediumOf: number[] = [];
  // COCO's captions do not come in the order of its pictures.
  const content = await readJson(path);
  const images = 'whole' in content ? imagesOf(content.whole) : undefined;
  for (const [i, image] of (images ?? []).entries()) {
    const at = `${path}#images.${i}`;
    found.set(parse(imageForm, image, at).id, { row: i, captions: [], at });
  }
  for (const [record, at] of await recordsOf(path)) {
    const { id: own, image_id: image, image: name, ...rest } = parse(recordForm, record, at);
    const id = image ?? name ?? own;
    if (id === undefined) throw invalid(at, 'it has no id, image_id or image');
    if (images !== undefined && !found.has(id)) throw invalid(at, `${id} is none of the images`);
    const earlier = found.get(id);
    if (earlier !== undefined && (earlier.scores ?? rest.scores) !== undefined)
      throw invalid(at, `a second one for ${id}: the scores of a medium are in one record`);
    const known = earlier ?? { row: found.size, captions: [], scores: rest.scores, at };
    const { caption = [], captions = [] } = rest;
    for (const own of [...[caption].flat(), ...captions]) {
      known.captions.push(own);
      mediumOf.push(known.row);
    }
    found.set(id, known);
  }
  if (found.size === 0) throw invalid(path, 'there is no record in it');
  return { media: [...found.values()], mediumOf };
}

/** The pictures of COCO's object; undefined of anything else. */
function imagesOf(whole: unknown): readonly unknown[] | undefined {
  const { images, annotations } = whole as { images?: unknown; annotations?: unknown };
  return Array.isArray(images) && Array.isArray(annotations) ? images : undefined;
}

function similarityOf(arrays: ReadonlyMap<string, NumberArray>, path: string): NumberArray {
  const similarity = arrays.get('similarity');
  const [images, texts] = [arrays.get('images'), arrays.get('texts')];
  const found = similarity ?? (images && texts ? cosines(images, texts) : undefined);
  if (found?.shape.length !== 2) {
    const names = [...arrays].map(([name, { shape }]) => `${name} [${shape.join(', ')}]`);
    throw invalid(
      path,
      `it has ${names.join(', ')}: expected similarity [media, texts], or images and texts of one width`,
    );
  }
  return found;
}

function cosines(images: NumberArray, texts: NumberArray): NumberArray | undefined {
  const [numImages = 0, width = 0] = images.shape;
  const [numTexts = 0, ownWidth] = texts.shape;
  if (images.shape.length !== 2 || texts.shape.length !== 2 || width !== ownWidth) return undefined;
  const [left, right] = [unitRows(images.data, width), unitRows(texts.data, width)];
  const data = new Float64Array(numImages * numTexts);
  for (let i = 0; i < numImages; i++)
    for (let j = 0; j < numTexts; j++) {
      let sum = 0;
      for (let k = 0; k < width; k++) sum += left[i * width + k]! * right[j * width + k]!;
      data[i * numTexts + j] = sum;
    }
  return { shape: [numImages, numTexts], data };
}

/** Rows of length 1; one of zeros stays. */
function unitRows(data: ArrayLike<number>, width: number): Float64Array {
  const unit = Float64Array.from(data);
  for (let start = 0; start < unit.length; start += width) {
    const row = unit.subarray(start, start + width);
    const norm = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0));
    if (norm > 0) row.set(row.map((value) => value / norm));
  }
  return unit;
}
