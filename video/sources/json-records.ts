/** Records of JSON and JSON Lines files, those that cannot be read told by file and line. */
import { messageOf } from '../../proto/errors.ts';
import type { SkippedRecord } from '../index/sample.ts';
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { WORLD_MANIFEST } from '../world/manifest.ts';
import { DamagedJson, jsonPieces, MAX_RECORD_BYTES } from './json-pieces.ts';
import { endingOf, kindOf, mediaNamesOf, stemOf, type MediaNames } from './media-names.ts';
import type { Source, SourceRecord, SourceSample } from './source.ts';
import { splitsOf } from './splits.ts';

export interface JsonRecord {
  /** `path:line`, or `path:line#index` where one line may hold many. */
  readonly at: string;
  /** Counted from 0 over the file, faulty ones too. */
  readonly index: number;
  /** Of an object: the key that the value, or the array it is an element of, stands under. */
  readonly key?: string;
  readonly value: unknown;
}

/**
 * The records of a JSON or JSON Lines file.
 * @throws StorageError if the store fails
 */
export async function* jsonRecords(
  store: Store,
  file: StoredFile,
  signal?: AbortSignal,
): AsyncGenerator<JsonRecord | { readonly skipped: SkippedRecord }> {
  let index = 0;
  try {
    for await (const { place, key, bytes } of jsonPieces(store, file, signal)) {
      const at = `${file.path}${place}`;
      const parsed = bytes && parseJson(bytes);
      if (parsed === undefined) {
        const message = `a record of more than ${MAX_RECORD_BYTES} bytes is not read`;
        yield { skipped: { path: at, code: 'RECORD_TOO_LARGE', message } };
      } else if ('fault' in parsed) {
        yield { skipped: { path: at, code: 'RECORD_BAD_JSON', message: parsed.fault } };
      } else {
        yield { at, index, value: parsed.value, ...(key === undefined ? {} : { key }) };
      }
      index++;
    }
  } catch (error) {
    if (!(error instanceof DamagedJson)) throw error;
    const { code, message, line } = error;
    yield { skipped: { path: `${file.path}:${line}`, code, message } };
  }
}

/** UTF-8 JSON, with or without a byte order mark; the fault in one line where it is none. */
export function parseJson(
  bytes: Uint8Array,
): { readonly value: unknown } | { readonly fault: string } {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return { value: JSON.parse(text) as unknown };
  } catch (error) {
    // V8's message quotes the text, which may hold line ends.
    return { fault: `it is not JSON: ${messageOf(error).replace(/\s+/g, ' ').slice(0, 200)}` };
  }
}

/** What a record may have, by name; undefined where it is no object. */
export type Fields = Readonly<Record<string, unknown>>;

export function fieldsOf(value: unknown): Fields | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Fields)
    : undefined;
}

/** The first of the fields that is a string with words in it. */
export function stringOf(fields: Fields, names: readonly string[]): string | undefined {
  for (const name of names) {
    const value = Object.hasOwn(fields, name) ? fields[name] : undefined;
    if (typeof value === 'string' && value.trim() !== '') return value.trim();
  }
  return undefined;
}

/** A string or a list of strings, as a list; undefined for anything else. */
export function stringsOf(value: unknown): readonly string[] | undefined {
  if (typeof value === 'string') return [value];
  return Array.isArray(value) && value.every((one) => typeof one === 'string') ? value : undefined;
}

const RECORD_ENDINGS: readonly string[] = ['.json', '.jsonl', '.ndjson'];

/**
 * The files that may hold records: JSON that does not lie beside a media file of its name, and neither statistics nor the
 * list of files of a demo world.
 */
export function recordFiles(files: readonly StoredFile[]): StoredFile[] {
  const stems = new Set<string>();
  for (const { path } of files) if (kindOf(path) !== undefined) stems.add(stemOf(path));
  return files.filter(({ path }) => {
    const stem = stemOf(path);
    const isBeside = stems.has(stem) || (stem.endsWith('.info') && stems.has(stemOf(stem)));
    const isOther = /_stats$/.test(stem) || path === WORLD_MANIFEST;
    return RECORD_ENDINGS.includes(endingOf(path).toLowerCase()) && !isBeside && !isOther;
  });
}

/** The forms that records of JSON files have. */
export type RecordForm = 'instructions' | 'preferences' | 'image-text' | 'documents';

/** The form of one record, by the names of its fields. */
export function formOf({ key, value }: Pick<JsonRecord, 'key' | 'value'>): RecordForm | undefined {
  const fields = fieldsOf(value);
  if (fields === undefined) return undefined;
  const has = (...names: string[]): boolean => names.every((name) => Object.hasOwn(fields, name));
  // Before conversations, which they have too.
  if (has('chosen', 'rejected') || has('output_1', 'output_2', 'preference')) return 'preferences';
  if (has('conversations') || has('messages') || has('q', 'a', 'video_id')) return 'instructions';
  if (has('text_list', 'image_info') || has('images', 'texts')) return 'documents';
  const isCoco =
    (key === 'images' && has('file_name', 'id')) ||
    (key === 'annotations' && has('image_id', 'caption'));
  const [hasMedium, hasWords] = [MEDIUM_FIELDS, CAPTION_FIELDS].map((names) =>
    names.some((name) => Object.hasOwn(fields, name)),
  );
  return isCoco || (hasMedium && hasWords) ? 'image-text' : undefined;
}

/** Fields that name the medium of a pair, and its words; the first that is there counts. */
export const MEDIUM_FIELDS: readonly string[] = [
  'image',
  'video',
  'path',
  'image_path',
  'video_path',
  'file_name',
  'filename',
  'url',
  'image_url',
];
export const CAPTION_FIELDS: readonly string[] = [
  'caption',
  'captions',
  'text',
  'name',
  'description',
  'title',
];

/** How many records of a file are looked at to tell its form: heads like COCO's `licenses` come before them. */
const RECORDS_LOOKED_AT = 64;
const FILES_LOOKED_AT = 32;

/** Whether one of the first files that may hold records holds some of this form. */
export async function hasForm(
  form: RecordForm,
  store: Store,
  files: readonly StoredFile[],
  signal?: AbortSignal,
): Promise<boolean> {
  for (const file of recordFiles(files).slice(0, FILES_LOOKED_AT)) {
    if ((await formOfFile(store, file, signal)) === form) return true;
  }
  return false;
}

async function formOfFile(
  store: Store,
  file: StoredFile,
  signal?: AbortSignal,
): Promise<RecordForm | undefined> {
  let numLookedAt = 0;
  for await (const record of jsonRecords(store, file, signal)) {
    const form = 'skipped' in record ? undefined : formOf(record);
    if (form !== undefined) return form;
    if (++numLookedAt === RECORDS_LOOKED_AT) break;
  }
  return undefined;
}

/**
 * What a source makes of all files that may hold records: those of its form are read, the others told.
 * @param samplesOf the samples of one record; what it throws as DataError is why the record gives none
 */
export async function* readRecords(
  form: RecordForm,
  {
    store,
    files,
    signal,
  }: { store: Store; files: readonly StoredFile[]; signal?: AbortSignal | undefined },
  readFile: (file: StoredFile) => AsyncIterable<SourceRecord>,
): AsyncGenerator<SourceRecord> {
  let numRead = 0;
  // Questions and preferences of a demo world are read when they are asked for.
  const isWorld = files.some(({ path }) => path === WORLD_MANIFEST);
  for (const file of recordFiles(files)) {
    const found = await formOfFile(store, file, signal);
    if (found === form) {
      numRead++;
      yield* readFile(file);
    } else if (!isWorld || found === undefined) {
      const message =
        found === undefined
          ? `its records are of no known form`
          : `its records are of the form ${found}, and ${form} is read; index it by itself`;
      yield { skipped: { path: file.path, code: 'RECORDS_OTHER_FORM', message } };
    }
  }
  if (numRead === 0) {
    const message = `${store.root} holds no JSON or JSON Lines file with records of the form ${form}`;
    throw new DataError('DATA_EMPTY', message);
  }
}

/** Samples, or the reason for none: what is wrong with the data is told, everything else is thrown. */
export function tellFault(path: string, make: () => readonly SourceSample[]): SourceRecord[] {
  try {
    return make().map((sample) => ({ sample }));
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    return [{ skipped: { path, code: error.code, message: error.message } }];
  }
}

/**
 * A source of one form whose records each give one sample.
 * @param make a record's sample; `names` finds the files that its fields name
 */
export function recordSource(
  name: RecordForm,
  make: (record: JsonRecord, recordFile: string, names: MediaNames) => SourceSample,
): Source {
  return {
    name,
    matches: (store, files, signal) => hasForm(name, store, files, signal),
    async *read(store, files, signal) {
      const names = mediaNamesOf(files);
      const splitOf = splitsOf(recordFiles(files).map(({ path }) => path));
      yield* readRecords(name, { store, files, signal }, async function* (file) {
        const split = splitOf(file.path);
        for await (const record of jsonRecords(store, file, signal)) {
          if ('skipped' in record) yield record;
          else {
            yield* tellFault(record.at, () => [
              { ...make(record, file.path, names), ...(split === undefined ? {} : { split }) },
            ]);
          }
        }
      });
    },
  };
}
