/** Tables as text: WebVid's CSV, and CSV or TSV with a column of media and one of words. */
import { parse, type Info } from 'csv-parse';
import { messageOf } from '../../proto/errors.ts';
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { openIdSet, type IdSet } from './id-set.ts';
import { MAX_RECORD_BYTES } from './json-pieces.ts';
import { CAPTION_FIELDS, MEDIUM_FIELDS, stringOf, tellFault, type Fields } from './json-records.ts';
import { endingOf, mediaNamesOf, stemOf, type MediaNames } from './media-names.ts';
import type { Source, SourceMedia, SourceRecord, SourceSample } from './source.ts';
import { splitsOf } from './splits.ts';

const HEAD_BYTES = 2 ** 16;
const FILES_LOOKED_AT = 32;
const WEBVID_COLUMNS: readonly string[] = ['videoid', 'contentUrl', 'page_dir', 'name'];

/**
 * With WebVid's columns a row's medium is `videos/{page_dir}/{videoid}.mp4`, else the one file `{videoid}.mp4`, else
 * `contentUrl`, and its id is the `videoid`. Any other table with a header has its medium in the first of
 * `image video path … url` that is not empty, its words in the first of `caption text name …`, and may have `start` and
 * `end` in seconds. Source: the columns of github.com/m-bain/webvid.
 */
export const webvid: Source = {
  name: 'webvid',
  async matches(store, files, signal) {
    for (const file of files.filter(isTable).slice(0, FILES_LOOKED_AT)) {
      const columns = await columnsOf(store, file, signal);
      if (isWebVid(columns) || isPairs(columns)) return true;
    }
    return false;
  },
  async *read(store, files, signal) {
    const names = mediaNamesOf(files);
    const tables = files.filter(isTable);
    const splitOf = splitsOf(tables.map(({ path }) => path));
    const ids = openIdSet();
    let numRead = 0;
    for (const file of tables) {
      const columns = await columnsOf(store, file, signal);
      const toSample = isWebVid(columns) ? webVidSample : isPairs(columns) ? pairSample : undefined;
      if (toSample === undefined) {
        const message =
          `its first line names no columns that are known: ${WEBVID_COLUMNS.join(', ')}, or one of ` +
          `${MEDIUM_FIELDS.join(', ')} with one of ${CAPTION_FIELDS.join(', ')}`;
        yield { skipped: { path: file.path, code: 'TABLE_COLUMNS', message } };
        continue;
      }
      numRead++;
      const split = splitOf(file.path);
      for await (const row of rowsOf(store, file, signal)) {
        if ('skipped' in row) yield row;
        else {
          yield* tellFault(row.at, () => [
            {
              ...refuseOld(toSample(row, file.path, names), ids),
              ...(split === undefined ? {} : { split }),
            },
          ]);
        }
      }
    }
    if (numRead === 0) {
      const message = `there is no CSV or TSV file with media and words in ${store.root} or below it`;
      throw new DataError('DATA_EMPTY', message);
    }
  },
};

function isTable({ path }: StoredFile): boolean {
  return ['.csv', '.tsv'].includes(endingOf(path).toLowerCase());
}

function isWebVid(columns: readonly string[]): boolean {
  return WEBVID_COLUMNS.every((name) => columns.includes(name));
}

function isPairs(columns: readonly string[]): boolean {
  return (
    MEDIUM_FIELDS.some((name) => columns.includes(name)) &&
    CAPTION_FIELDS.some((name) => columns.includes(name))
  );
}

async function columnsOf(
  store: Store,
  { path, sizeBytes }: StoredFile,
  signal?: AbortSignal,
): Promise<readonly string[]> {
  const range = { offset: 0, sizeBytes: Math.min(HEAD_BYTES, sizeBytes) };
  if (range.sizeBytes === 0) return [];
  const head = await store.read(path, signal === undefined ? { range } : { range, signal });
  const first = new TextDecoder().decode(head).split(/\r?\n/, 1)[0]!;
  return first.split(delimiterOf(path)).map((name) => name.trim().replace(/^"(.*)"$/, '$1'));
}

function delimiterOf(path: string): string {
  return endingOf(path).toLowerCase() === '.tsv' ? '\t' : ',';
}

interface Row {
  /** `path:line`. */
  readonly at: string;
  readonly line: number;
  readonly fields: Fields;
}

async function* rowsOf(
  store: Store,
  { path }: StoredFile,
  signal?: AbortSignal,
): AsyncGenerator<Row | Extract<SourceRecord, { skipped: unknown }>> {
  const skipped: Extract<SourceRecord, { skipped: unknown }>[] = [];
  const tell = (line: number, message: string): void => {
    skipped.push({ skipped: { path: `${path}:${line}`, code: 'ROW_UNREADABLE', message } });
  };
  const bytes = await store.stream(path, signal === undefined ? {} : { signal });
  const parser = parse({
    bom: true,
    columns: (header: string[]) => header.map((name) => name.trim()),
    delimiter: delimiterOf(path),
    // Tab-separated tables have no quotes: one in a caption is a character.
    quote: delimiterOf(path) === '\t' ? null : '"',
    info: true,
    skip_empty_lines: true,
    skip_records_with_error: true,
    max_record_size: MAX_RECORD_BYTES,
  });
  parser.on('skip', (error: { message: string; lines?: number } | undefined) => {
    tell(error?.lines ?? 0, error?.message ?? 'it is no row');
  });
  // The parser is told of the store's faults, and the store of an early end.
  bytes.on('error', (error) => parser.destroy(error));
  bytes.pipe(parser);
  try {
    for await (const { record, info } of parser as AsyncIterable<{ record: Fields; info: Info }>) {
      yield* skipped.splice(0);
      yield { at: `${path}:${info.lines}`, line: info.lines, fields: record };
    }
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'CSV_MAX_RECORD_SIZE') throw error;
    tell(parser.info.lines, messageOf(error));
  } finally {
    bytes.destroy();
  }
  yield* skipped;
}

function refuseOld(sample: SourceSample, ids: IdSet): SourceSample {
  if (ids.add(sample.id)) return sample;
  throw new DataError('DUPLICATE_ID', `an earlier row has the id ${sample.id}`);
}

function webVidSample({ fields }: Row, path: string, names: MediaNames): SourceSample {
  const id = stringOf(fields, ['videoid']);
  if (id === undefined) throw new DataError('RECORD_INCOMPLETE', 'the row has no videoid');
  const text = stringOf(fields, ['name']) ?? '';
  return { id, media: [webVidMedium(id, fields, path, names)], text, cues: [] };
}

function webVidMedium(id: string, fields: Fields, path: string, names: MediaNames): SourceMedia {
  const [page, url] = [stringOf(fields, ['page_dir']), stringOf(fields, ['contentUrl'])];
  const kind = 'video';
  const file = page === undefined ? `${id}.mp4` : `${page}/${id}.mp4`;
  const places = [`videos/${file}`, file, `${id}.mp4`, ...(url === undefined ? [] : [url])];
  let missing: unknown;
  for (const place of places) {
    try {
      return names.find(place, { recordFile: path, kind });
    } catch (error) {
      if ((error as DataError).code === 'PATH_OUTSIDE') throw error;
      missing ??= error;
    }
  }
  throw missing as DataError;
}

function pairSample(row: Row, path: string, names: MediaNames): SourceSample {
  const value = stringOf(row.fields, MEDIUM_FIELDS);
  if (value === undefined) throw new DataError('RECORD_INCOMPLETE', 'the row names no medium');
  const kind = stringOf(row.fields, ['image', 'image_path', 'image_url']) ? 'image' : 'video';
  const media = { ...names.find(value, { recordFile: path, kind }), ...spanOf(row.fields) };
  const text = stringOf(row.fields, CAPTION_FIELDS) ?? '';
  return { id: `${stemOf(path)}/${row.line}`, media: [media], text, cues: [] };
}

function spanOf(fields: Fields): Pick<SourceMedia, 'startSeconds' | 'endSeconds'> {
  const [startSeconds, endSeconds] = ['start', 'end'].map((name) => {
    const written = stringOf(fields, [name]);
    const seconds = Number(written);
    if (written === undefined) return undefined;
    if (!Number.isFinite(seconds) || seconds < 0) {
      throw new DataError(
        'SPAN_INVALID',
        `${name} is ${JSON.stringify(written)}, not a time in seconds`,
      );
    }
    return seconds;
  });
  if (endSeconds !== undefined && endSeconds <= (startSeconds ?? 0)) {
    const message = `the span from ${startSeconds ?? 0} to ${endSeconds} s has no length`;
    throw new DataError('SPAN_INVALID', message);
  }
  return {
    ...(startSeconds === undefined ? {} : { startSeconds }),
    ...(endSeconds === undefined ? {} : { endSeconds }),
  };
}
