/** Pairs of a medium and a caption in JSON: lists as BLIP reads them, `metadata.jsonl`, COCO's captions. */
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import {
  CAPTION_FIELDS,
  fieldsOf,
  hasForm,
  jsonRecords,
  MEDIUM_FIELDS,
  readRecords,
  recordFiles,
  stringOf,
  stringsOf,
  tellFault,
  type JsonRecord,
} from './json-records.ts';
import { mediaNamesOf, stemOf, type MediaNames } from './media-names.ts';
import type { Source, SourceSample } from './source.ts';
import { splitsOf } from './splits.ts';

/**
 * Records `{image | url | path | …, caption | text | …}` in arrays or JSON Lines, and COCO's
 * `{images: [{id, file_name}], annotations: [{image_id, caption}]}`. A list of captions gives one sample a caption, as
 * COCO's annotations do: every one is trained on, and which comes when is for the order of samples to say.
 * Source: github.com/salesforce/BLIP, data/; cocodataset.org/#format-data.
 */
export const imageText: Source = {
  name: 'image-text',
  matches: (store, files, signal) => hasForm('image-text', store, files, signal),
  async *read(store, files, signal) {
    const names = mediaNamesOf(files);
    const splitOf = splitsOf(recordFiles(files).map(({ path }) => path));
    yield* readRecords('image-text', { store, files, signal }, async function* (file) {
      const split = splitOf(file.path);
      const images = await cocoImages(store, file, signal);
      for await (const record of jsonRecords(store, file, signal)) {
        if ('skipped' in record) yield record;
        // COCO's images were looked at before; what else stands at its top is about the whole set.
        else if (images === undefined || record.key === 'annotations') {
          yield* tellFault(record.at, () => {
            const samples =
              images === undefined
                ? pairs(record, file.path, names)
                : [cocoPair(record, file.path, { images, names })];
            return split === undefined ? samples : samples.map((one) => ({ ...one, split }));
          });
        }
      }
    });
  },
};

function pairs(
  { value, index }: JsonRecord,
  recordFile: string,
  names: MediaNames,
): SourceSample[] {
  const fields = fieldsOf(value);
  if (fields === undefined) throw incomplete('it is no object');
  const medium = stringOf(fields, MEDIUM_FIELDS);
  if (medium === undefined) throw incomplete('it names no medium');
  const kind = stringOf(fields, ['video', 'video_path']) === undefined ? 'image' : 'video';
  const media = [names.find(medium, { recordFile, kind })];
  const name = CAPTION_FIELDS.find((candidate) => Object.hasOwn(fields, candidate));
  const captions = name === undefined ? undefined : stringsOf(fields[name] ?? '');
  if (captions === undefined) throw incomplete('its caption is neither a text nor a list of texts');
  const id = `${stemOf(recordFile)}/${index}`;
  // An empty list is a medium without words.
  return (captions.length === 0 ? [''] : captions).map((caption, i) => ({
    id: captions.length > 1 ? `${id}.${i}` : id,
    media,
    text: caption.trim(),
    cues: [],
  }));
}

/** By id: file names of COCO's images; undefined if the file is no such object. In memory, for they come in any order. */
async function cocoImages(
  store: Store,
  file: StoredFile,
  signal?: AbortSignal,
): Promise<ReadonlyMap<string, string> | undefined> {
  const images = new Map<string, string>();
  let isCoco = false;
  for await (const record of jsonRecords(store, file, signal)) {
    if ('skipped' in record) continue;
    // A list of pairs is known by its first record; only an object has keys.
    if (record.key === undefined) return undefined;
    isCoco ||= record.key === 'images' || record.key === 'annotations';
    const { id, file_name: name } = record.key === 'images' ? (fieldsOf(record.value) ?? {}) : {};
    if (typeof name === 'string') images.set(String(id), name);
  }
  return isCoco ? images : undefined;
}

function cocoPair(
  { value, index }: JsonRecord,
  recordFile: string,
  { images, names }: { readonly images: ReadonlyMap<string, string>; readonly names: MediaNames },
): SourceSample {
  const { id = index, image_id: image, caption } = fieldsOf(value) ?? {};
  if (typeof caption !== 'string') throw incomplete('its caption is no text');
  const name = images.get(String(image));
  if (name === undefined) throw incomplete(`there is no image with the id ${String(image)}`);
  return {
    id: `${stemOf(recordFile)}/${String(id)}`,
    media: [names.find(name, { recordFile, kind: 'image' })],
    text: caption.trim(),
    cues: [],
  };
}

function incomplete(what: string): DataError {
  return new DataError('RECORD_INCOMPLETE', what);
}
