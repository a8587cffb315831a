/** Documents whose text and pictures stand in an order: OBELICS and MMC4. */
import { DataError } from '../index/sample-index.ts';
import type { SamplePart } from '../index/sample.ts';
import {
  fieldsOf,
  recordSource,
  stringOf,
  stringsOf,
  type Fields,
  type JsonRecord,
} from './json-records.ts';
import { baseOf, stemOf, type MediaNames } from './media-names.ts';
import type { Source, SourceMedia, SourceSample } from './source.ts';

/**
 * Records `{images: [url | null], texts: [text | null]}` (OBELICS: one of the two at each place) and
 * `{text_list, image_info: [{image_name, raw_url, matched_text_index}]}` (MMC4: a picture stands before its sentence), in
 * arrays or JSON Lines. A picture is the file below the root that has its name, else its URL.
 * Source: huggingface.co/datasets/HuggingFaceM4/OBELICS; github.com/allenai/mmc4.
 */
export const documents: Source = recordSource('documents', document);

function document(
  { value, index }: JsonRecord,
  recordFile: string,
  names: MediaNames,
): SourceSample {
  const fields = fieldsOf(value);
  if (fields === undefined) throw invalid('it is no object');
  const pieces = Object.hasOwn(fields, 'text_list') ? mmc4Pieces(fields) : obelicsPieces(fields);
  const media: SourceMedia[] = [];
  const parts: SamplePart[] = [];
  for (const { text = '', names: wanted } of pieces) {
    if (wanted !== undefined) {
      parts.push({ media: media.push(pictureOf(wanted, recordFile, names)) - 1 });
    } else if (text.trim() !== '') parts.push({ text: text.trim() });
  }
  if (parts.length === 0) throw invalid('it holds neither text nor pictures');
  const text = parts.flatMap((part) => part.text ?? []).join('\n');
  return { id: `${stemOf(recordFile)}/${index}`, media, text, cues: [], parts };
}

/** Text, or a picture by what it may be called, the likelier first. */
interface Piece {
  readonly text?: string;
  readonly names?: readonly string[];
}

function obelicsPieces({ images, texts }: Fields): Piece[] {
  if (!Array.isArray(images) || !Array.isArray(texts) || images.length !== texts.length) {
    throw invalid('images and texts are not two lists of one length');
  }
  return images.flatMap((image: unknown, i): Piece[] => {
    const text: unknown = texts[i];
    if (!isTextOrNull(image) || !isTextOrNull(text)) throw invalid(`place ${i} is no text or URL`);
    if (image !== null && text !== null) throw invalid(`place ${i} has both a picture and a text`);
    if (image !== null) return [{ names: [baseOfUrl(image), image] }];
    return text === null ? [] : [{ text }];
  });
}

function mmc4Pieces({ text_list: list, image_info: infos }: Fields): Piece[] {
  const texts = stringsOf(list);
  if (texts === undefined || !Array.isArray(infos)) {
    throw invalid('text_list is no list of texts, or image_info no list');
  }
  const before: Piece[][] = texts.map(() => []);
  for (const [i, info] of infos.entries()) {
    const fields = fieldsOf(info) ?? {};
    const place = fields['matched_text_index'];
    const pieces = typeof place === 'number' ? before[place] : undefined;
    if (pieces === undefined) throw invalid(`image ${i} belongs to no text: ${String(place)}`);
    const [name, url] = [stringOf(fields, ['image_name']), stringOf(fields, ['raw_url'])];
    const names = [name, url].filter((one) => one !== undefined);
    if (names.length === 0) throw invalid(`image ${i} has neither image_name nor raw_url`);
    pieces.push({ names });
  }
  return texts.flatMap((text, i) => [...before[i]!, { text }]);
}

function pictureOf(wanted: readonly string[], recordFile: string, names: MediaNames): SourceMedia {
  let missing: unknown;
  for (const name of wanted) {
    try {
      return names.find(name, { recordFile, kind: 'image' });
    } catch (error) {
      if ((error as DataError).code === 'PATH_OUTSIDE') throw error;
      missing ??= error;
    }
  }
  throw missing as DataError;
}

/** A picture downloaded from a URL is commonly called by the last part of its path. */
function baseOfUrl(url: string): string {
  try {
    return decodeURIComponent(baseOf(new URL(url).pathname)) || '(no name)';
  } catch {
    return url;
  }
}

function isTextOrNull(value: unknown): value is string | null {
  return value === null || typeof value === 'string';
}

function invalid(what: string): DataError {
  return new DataError('RECORD_INVALID', what);
}
