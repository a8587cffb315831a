/**
 * From what people have to a list of samples: a source names media and words, each file is looked at once, long videos
 * are cut into clips, and a part is held out. A pure function of the data's content.
 */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { digestFile } from '../../proto/durable-file.ts';
import type { TimedText } from '../text/captions.ts';
import type { DecoderPool } from '../decode/decoder.ts';
import { MAX_FILM_SECONDS } from '../decode/decoder-backend.ts';
import { isFileFault } from '../loading/file-fault.ts';
import { heldOutOf } from './held-out.ts';
import {
  locationName,
  locationShown,
  type MediaFile,
  type MediaSpan,
  type Sample,
  type SkippedRecord,
} from './sample.ts';
import { DataError, digestOf, INDEX_FILE, readIndex, type SampleIndex } from './sample-index.ts';
import { sourceOf } from '../sources/detect.ts';
import type { Source, SourceMedia, SourceSample } from '../sources/source.ts';
import type { MediaCache } from '../storage/media-cache.ts';
import type { Store, StoredFile } from '../storage/store.ts';

export interface MakeIndexOptions {
  readonly store: Store;
  readonly media: MediaCache;
  readonly pool: DecoderPool;
  /** Name of the form that the data has; found out by default. */
  readonly source?: string | undefined;
  /** Longest sample cut out of a video that has no spans of its own; it is cut at the end of a cue where there is one. */
  readonly clipSeconds: number;
  /** Share of the files held out where neither the source nor a folder says it; at least one of two. */
  readonly heldOutFraction: number;
  readonly onProgress?: (progress: { numDone: number; numFiles: number }) => void;
  readonly signal?: AbortSignal;
}

/** A rest shorter than this is not a sample of its own. */
const MIN_REST_SECONDS = 1;
const PROBES_AT_ONCE = 32;

/**
 * Indexes all samples of a store.
 * @throws DataError DATA_EMPTY, SPLIT_SHARED; StorageError
 */
export async function makeIndex(options: MakeIndexOptions): Promise<SampleIndex> {
  const { store, source: name, signal } = options;
  const listed: StoredFile[] = [];
  const outside: string[] = [];
  for await (const file of store.list(signal, (path) => outside.push(path))) listed.push(file);

  // --- What the source tells.
  const told: SourceSample[] = [];
  const links = linksOutside(outside);
  const skipped = links === undefined ? [] : [links];
  let numCaptionWarnings = 0;
  let source: Source;
  try {
    source = await sourceOf(store, listed, { name, signal });
    for await (const record of source.read(store, listed, signal)) {
      if ('skipped' in record) skipped.push(record.skipped);
      else {
        told.push(record.sample);
        numCaptionWarnings += record.sample.numCaptionWarnings ?? 0;
      }
    }
  } catch (error) {
    if (!(error instanceof DataError) || error.code !== 'DATA_EMPTY' || links === undefined)
      throw error;
    throw new DataError('DATA_EMPTY', `${error.message}; ${links.path}: ${links.message}`);
  }

  // --- Each medium is looked at once, however many samples are of it.
  const wanted = new Map<string, SourceMedia>();
  for (const { media } of told)
    for (const medium of media) wanted.set(locationName(medium), medium);
  const looked = await lookAt([...wanted.values()], options);
  // In the samples' order, whichever was looked at first: several may be shown under one name.
  for (const name of wanted.keys()) {
    const failure = looked.failures.get(name);
    if (failure !== undefined) skipped.push(failure);
  }
  const files = [...looked.files.values()];
  const rowOf = new Map(files.map((file, row) => [locationName(file), row]));

  // --- Samples, cut where they are long, and the split of each.
  const isHeldOut = heldOutOf(
    told.filter(({ media }) => media.every((medium) => looked.files.has(locationName(medium)))),
    looked.files,
    options.heldOutFraction,
  );
  const [train, heldOut]: [Sample[], Sample[]] = [[], []];
  const ids = new Set<string>();
  for (const sample of told) {
    if (sample.media.some((medium) => looked.failures.has(locationName(medium)))) continue;
    const rows = sample.media.map((medium) => rowOf.get(locationName(medium))!);
    const made = spansOf(sample, rows, files, options.clipSeconds);
    if (!Array.isArray(made)) {
      skipped.push({ path: sample.id, ...made });
      continue;
    }
    for (const cut of made) {
      if (ids.has(cut.id)) {
        skipped.push({
          path: cut.id,
          code: 'DUPLICATE_ID',
          message: 'an earlier sample has this id',
        });
        continue;
      }
      ids.add(cut.id);
      (isHeldOut.has(sample) ? heldOut : train).push(cut);
    }
  }
  if (train.length + heldOut.length === 0) {
    const reasons = skipped.slice(0, 3).map(({ path, message }) => `${path}: ${message}`);
    throw new DataError(
      'DATA_EMPTY',
      `none of the ${told.length} samples of ${store.root} (read as ${source.name}) can be used` +
        (reasons.length > 0 ? `; ${reasons.join('; ')}` : ''),
    );
  }
  skipped.sort((a, b) => compare(a.path, b.path));
  const content = { files, train, heldOut };
  return { root: store.root, digest: digestOf(content), ...content, skipped, numCaptionWarnings };
}

/** All links that lead out of the root as one record, under the first of their paths; undefined where there are none. */
function linksOutside(paths: readonly string[]): SkippedRecord | undefined {
  const [path] = [...paths].sort(compare);
  if (path === undefined) return undefined;
  const message =
    `it is a link that leads out of the folder (${paths.length} in all): no data set is read from beyond its folder. ` +
    'Copy the folder with the files themselves and give the copy (cp -RL; with GNU, cp -RlL takes no room on the same disk)';
  return { path, code: 'PATH_OUTSIDE', message };
}

/**
 * The index that `path` stands for: an index file, or a folder with {@link INDEX_FILE} in it; undefined where it has to
 * be made.
 * @throws DataError what {@link readIndex} throws
 */
export async function findIndex(path: string): Promise<SampleIndex | undefined> {
  for (const file of [path, join(path, INDEX_FILE)]) {
    if ((await stat(file).catch(() => undefined))?.isFile() === true) return readIndex(file);
  }
  return undefined;
}

interface Looked {
  /** By location, in the order of the samples. */
  readonly files: ReadonlyMap<string, MediaFile>;
  readonly failures: ReadonlyMap<string, SkippedRecord>;
}

async function lookAt(media: readonly SourceMedia[], options: MakeIndexOptions): Promise<Looked> {
  const { pool, signal, onProgress } = options;
  const found: (MediaFile | undefined)[] = media.map(() => undefined);
  const failures = new Map<string, SkippedRecord>();
  let [numDone, next] = [0, 0];
  const lookAtNext = async (): Promise<void> => {
    while (next < media.length) {
      const at = next++;
      try {
        found[at] = await lookAtOne(media[at]!, options.media, pool, signal);
      } catch (error) {
        signal?.throwIfAborted();
        if (!isFileFault(error) && !(error instanceof DataError)) throw error;
        const { code, message } = error;
        const path = locationShown(media[at]!);
        failures.set(locationName(media[at]!), { path, code, message });
      }
      onProgress?.({ numDone: ++numDone, numFiles: media.length });
    }
  };
  await Promise.all(Array.from({ length: Math.min(PROBES_AT_ONCE, media.length) }, lookAtNext));
  const files = new Map<string, MediaFile>();
  for (const file of found) if (file !== undefined) files.set(locationName(file), file);
  return { files, failures };
}

async function lookAtOne(
  { kind, path, range, cell }: SourceMedia,
  cache: MediaCache,
  pool: DecoderPool,
  signal?: AbortSignal,
): Promise<MediaFile> {
  const location = {
    path,
    ...(range === undefined ? {} : { range }),
    ...(cell === undefined ? {} : { cell }),
  };
  const local = await cache.acquire(location, signal);
  const place = { path: local.path, range: local.range };
  try {
    if (kind === 'image') {
      const { width, height, format } = await pool.probeImage(place, signal);
      return {
        ...{ kind, ...location, ...(await digestFile(place.path, place.range)) },
        ...{ durationSeconds: 0, framesPerSecond: 0, width, height, codec: format },
        ...{ hasAudio: false, keyFrameSeconds: [] },
      };
    }
    const info = await pool.probe(place, signal);
    if (!(info.durationSeconds > 0)) {
      const name = locationShown(location);
      throw new DataError('VIDEO_NO_DURATION', `${name} does not say how long it is`);
    }
    if (info.durationSeconds > MAX_FILM_SECONDS) {
      const said = `${locationShown(location)} says that it lasts ${Math.round(info.durationSeconds)} s`;
      throw new DataError(
        'VIDEO_TOO_LONG',
        `${said}, more than ${MAX_FILM_SECONDS / 3600} h: cut it up, or write it anew (data transcode) if it is wrong`,
      );
    }
    const { durationSeconds, framesPerSecond, width, height, codec, hasAudio } = info;
    const { keyFrameSeconds } = info;
    return {
      ...{ kind, ...location, ...(await digestFile(place.path, place.range)) },
      ...{ durationSeconds, framesPerSecond, width, height, codec, hasAudio, keyFrameSeconds },
    };
  } finally {
    local.release();
  }
}

type Refusal = Pick<SkippedRecord, 'code' | 'message'>;

/** The samples that one of the source gives. */
function spansOf(
  sample: SourceSample,
  rows: readonly number[],
  files: readonly MediaFile[],
  clipSeconds: number,
): Sample[] | Refusal {
  const { id, text, cues, parts } = sample;
  const first = sample.media[0];
  const isCuttable =
    parts === undefined &&
    sample.media.length === 1 &&
    first!.kind === 'video' &&
    first!.startSeconds === undefined &&
    first!.endSeconds === undefined;
  if (isCuttable) return cutIntoClips(sample, rows[0]!, files[rows[0]!]!, clipSeconds);
  const media: MediaSpan[] = [];
  for (const [i, { kind, startSeconds = 0, endSeconds = Infinity }] of sample.media.entries()) {
    const { durationSeconds } = files[rows[i]!]!;
    const end = kind === 'image' ? 0 : Math.min(endSeconds, durationSeconds);
    const start = kind === 'image' ? 0 : Math.max(0, startSeconds);
    if (kind === 'video' && !(start < end)) {
      const span = `${startSeconds} to ${endSeconds} s`;
      return {
        code: 'SPAN_OUTSIDE',
        message: `its span of ${span} is not within the ${durationSeconds.toFixed(2)} s of ${locationShown(sample.media[i]!)}`,
      };
    }
    media.push({ file: rows[i]!, startSeconds: start, endSeconds: end });
  }
  const decodeMegapixels = media.reduce((sum, span) => sum + megapixelsOf(span, files), 0);
  return [{ id, media, text, cues, ...(parts === undefined ? {} : { parts }), decodeMegapixels }];
}

function cutIntoClips(
  { id, text, cues, isCaption = false }: SourceSample,
  row: number,
  file: MediaFile,
  clipSeconds: number,
): Sample[] {
  const { durationSeconds } = file;
  const inside = cues.filter(({ startSeconds }) => startSeconds < durationSeconds);
  const samples: Sample[] = [];
  for (let start = 0; start < durationSeconds;) {
    const end = endOfClip(start, durationSeconds, clipSeconds, inside);
    const isWhole = start === 0 && end === durationSeconds;
    // A cue belongs to the clip its middle lies in, so that none is told twice.
    const own = inside.filter((cue) => {
      const middle = Math.min((cue.startSeconds + cue.endSeconds) / 2, durationSeconds - 1e-6);
      return middle >= start && middle < end;
    });
    const span = { file: row, startSeconds: start, endSeconds: end };
    samples.push({
      id: isWhole ? id : `${id}@${Math.round(start * 1000)}`,
      media: [span],
      text: isCaption || cues.length === 0 ? text : own.map((cue) => cue.text).join(' '),
      cues: own,
      decodeMegapixels: megapixelsOf(span, [file], 0),
    });
    start = end;
  }
  return samples;
}

/** The last end of a cue within reach, if it leaves at least half a clip; else a full clip. */
function endOfClip(
  start: number,
  durationSeconds: number,
  clipSeconds: number,
  cues: readonly TimedText[],
): number {
  const limit = start + clipSeconds;
  if (durationSeconds <= limit + MIN_REST_SECONDS) return durationSeconds;
  const ends = cues
    .map(({ endSeconds }) => endSeconds)
    .filter((end) => end >= start + clipSeconds / 2 && end <= limit);
  return ends.length > 0 ? Math.max(...ends) : limit;
}

function megapixelsOf(span: MediaSpan, files: readonly MediaFile[], row = span.file): number {
  const { kind, width, height, framesPerSecond, keyFrameSeconds } = files[row]!;
  const from = keyFrameSeconds.findLast((seconds) => seconds <= span.startSeconds) ?? 0;
  const numFrames = kind === 'image' ? 1 : (span.endSeconds - from) * framesPerSecond;
  return Math.round((numFrames * width * height) / 1e3) / 1e3;
}

/** By code unit: the same order on every machine, whatever its locale. */
function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
