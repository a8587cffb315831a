/** What a record becomes in a shard: its files as they are, decoded frames, or its spans cut out. */
import { createHash } from 'node:crypto';
import { open, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { digestFile } from '../../proto/durable-file.ts';
import type { DecodedFrames, DecoderPool } from '../decode/decoder.ts';
import { evenTimes } from '../sampling/frame-sampler.ts';
import type { MediaPlace } from '../decode/media-place.ts';
import {
  locationShown,
  type MediaFile,
  type MediaLocation,
  type MediaSpan,
  type Sample,
} from '../index/sample.ts';
import { DataError } from '../index/sample-index.ts';
import type { MediaCache } from '../storage/media-cache.ts';
import { probeMedia, runFfmpeg } from './ffmpeg-job.ts';
import { DEFAULT_SETTINGS, optionsFor, type TranscodeSettings } from './h264-options.ts';
import { endingOf, keyOf, type PackRecord } from './pack-records.ts';
import { partOf } from './part-file.ts';
import type { MemberContent } from './shard-writer.ts';

/** How media are stored. */
export type PackForm =
  /** Each file once, with all its samples. */
  | { readonly kind: 'files' }
  /** Each sample as pictures: so many frames of each of its spans, spread evenly, square; JPEG. */
  | { readonly kind: 'frames'; readonly numFrames: number; readonly size: number }
  /** Each span of a sample encoded as a film of its own. */
  | { readonly kind: 'cut' };

/** What the rendering of a record takes. */
export interface RenderContext {
  readonly files: readonly MediaFile[];
  readonly media: MediaCache;
  readonly pool: DecoderPool;
  /** Where films lie while they are cut out. */
  readonly folder: string;
  readonly signal?: AbortSignal | undefined;
}

/** A medium as a member of a shard. */
export interface PackedMedium {
  readonly ending: string;
  readonly content: MemberContent;
  readonly file: StoredMedia;
}

/** A media file without where it is. */
export type StoredMedia = Omit<MediaFile, keyof MediaLocation>;

/** A record ready to be written. */
export interface PackedRecord {
  readonly media: readonly PackedMedium[];
  /** Their spans' `file` is a place in `media`. */
  readonly samples: readonly Sample[];
  /** Frames alone: when each was shown in the file that it is of, in seconds. */
  readonly ptsSeconds?: readonly number[];
  /** To be called once its content has been written. */
  release(): Promise<void>;
}

/** Larger files go through in pieces. */
const MAX_IN_MEMORY_BYTES = 32 * 2 ** 20;
const HEAD_BYTES = 64;
const JPEG_QUALITY = 90;
/** Near to what it is made of, in size and quality; key frames as close as in other training files. */
const CUT_SETTINGS: TranscodeSettings = { ...DEFAULT_SETTINGS, height: 4320, fps: 240, crf: 18 };
const CUT_STALL_MS = 60_000;

/** @throws DataError MEDIA_CHANGED; StorageError, DecodeError, FfmpegFailure: what costs this record alone. */
export function renderRecord(
  record: PackRecord,
  form: PackForm,
  context: RenderContext,
): Promise<PackedRecord> {
  switch (form.kind) {
    case 'files':
      return renderFiles(record, context);
    case 'frames':
      return renderFrames(record.samples[0]!, form, context);
    case 'cut':
      return renderCut(record, context);
  }
}

async function renderFiles(record: PackRecord, context: RenderContext): Promise<PackedRecord> {
  const stored = await collect(record.files, (row) => storedFile(context.files[row]!, context));
  const placeOf = new Map(record.files.map((row, place) => [row, place]));
  const samples = record.samples.map((sample) => ({
    ...sample,
    media: sample.media.map((span) => ({ ...span, file: placeOf.get(span.file)! })),
  }));
  return { ...joined(stored), samples };
}

interface Held {
  readonly medium: PackedMedium;
  readonly ptsSeconds?: number;
  readonly release: () => Promise<void>;
}

/** A file as it is, whose bytes are still those that were indexed. */
async function storedFile(file: MediaFile, context: RenderContext): Promise<Held> {
  const { media, signal } = context;
  const options = signal === undefined ? {} : { signal };
  if (file.sizeBytes <= MAX_IN_MEMORY_BYTES) {
    const content = await media.readBytes(file, { ...options, maxBytes: MAX_IN_MEMORY_BYTES });
    checkSame(file, createHash('sha256').update(content).digest('hex'));
    const ending = endingOf(file, content.subarray(0, HEAD_BYTES));
    const medium = { ending, content, file: withoutPlace(file) };
    return { medium, release: () => Promise.resolve() };
  }
  const { release, ...place } = await media.acquire(file, signal);
  try {
    checkSame(file, (await digestFile(place.path, place.range)).sha256);
    const ending = endingOf(file, await headOf(place));
    const content = { ...place, sizeBytes: file.sizeBytes };
    const medium = { ending, content, file: withoutPlace(file) };
    return {
      medium,
      release: () => {
        release();
        return Promise.resolve();
      },
    };
  } catch (error) {
    release();
    throw error;
  }
}

function checkSame(file: MediaFile, sha256: string): void {
  if (sha256 === file.sha256) return;
  const message = `${locationShown(file)} has other bytes than when it was indexed; index it again`;
  throw new DataError('MEDIA_CHANGED', message);
}

function withoutPlace(file: MediaFile): StoredMedia {
  const { kind, sizeBytes, sha256, durationSeconds, framesPerSecond } = file;
  const { width, height, codec, hasAudio, keyFrameSeconds } = file;
  const rate = { durationSeconds, framesPerSecond };
  return { kind, sizeBytes, sha256, ...rate, width, height, codec, hasAudio, keyFrameSeconds };
}

async function headOf({ path, range }: MediaPlace): Promise<Uint8Array> {
  const handle = await open(path);
  try {
    const { buffer, bytesRead } = await handle.read({
      buffer: Buffer.alloc(HEAD_BYTES),
      position: range?.offset ?? 0,
    });
    return buffer.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}

// --- Frames

async function renderFrames(
  sample: Sample,
  form: PackForm & { kind: 'frames' },
  context: RenderContext,
): Promise<PackedRecord> {
  const groups = await Promise.all(
    sample.media.map((span) => framesOf(span, context.files[span.file]!, form, context)),
  );
  const held = groups.flat();
  // Of each span, the place of its first frame.
  const first = groups.map((_, i) =>
    groups.slice(0, i).reduce((sum, { length }) => sum + length, 0),
  );
  const { id, text, parts } = sample;
  const packed: Sample = {
    id,
    media: held.map((_, file) => ({ file, startSeconds: 0, endSeconds: 0 })),
    text,
    // Their times are those of a film that is not here; the words are in the text.
    cues: [],
    ...(parts === undefined
      ? {}
      : {
          parts: parts.flatMap((part) =>
            part.media === undefined
              ? [part]
              : groups[part.media]!.map((_, i) => ({ ...part, media: first[part.media!]! + i })),
          ),
        }),
    decodeMegapixels: Math.round((held.length * form.size ** 2) / 1e3) / 1e3,
  };
  const ptsSeconds = held.map((frame) => frame.ptsSeconds ?? 0);
  return { ...joined(held), samples: [packed], ptsSeconds };
}

async function framesOf(
  { startSeconds, endSeconds }: MediaSpan,
  file: MediaFile,
  { numFrames, size }: { numFrames: number; size: number },
  { media, pool, signal }: RenderContext,
): Promise<Held[]> {
  const { release, ...place } = await media.acquire(file, signal);
  let decoded: DecodedFrames;
  try {
    const request = { ...place, width: size, height: size, fit: 'cover' as const };
    const timesSeconds = evenTimes(startSeconds, endSeconds, numFrames);
    decoded = await (file.kind === 'image'
      ? pool.decodeImage(request, signal)
      : pool.decode({ ...request, timesSeconds }, signal));
  } finally {
    release();
  }
  const { width, height } = decoded;
  const frameBytes = width * height * 3;
  return Promise.all(
    Array.from(decoded.ptsSeconds, async (ptsSeconds, i) => {
      const pixels = decoded.frames.subarray(i * frameBytes, (i + 1) * frameBytes);
      const content = await sharp(pixels, { raw: { width, height, channels: 3 } })
        .jpeg({ quality: JPEG_QUALITY })
        .toBuffer();
      const sha256 = createHash('sha256').update(content).digest('hex');
      const stored: StoredMedia = {
        ...{ kind: 'image', sizeBytes: content.length, sha256 },
        ...{ durationSeconds: 0, framesPerSecond: 0, width, height, codec: 'jpeg' },
        ...{ hasAudio: false, keyFrameSeconds: [] },
      };
      const medium = { ending: 'jpg', content, file: stored };
      return { medium, ptsSeconds, release: () => Promise.resolve() };
    }),
  );
}

// --- Spans cut out

async function renderCut(record: PackRecord, context: RenderContext): Promise<PackedRecord> {
  const sample = record.samples[0]!;
  const stored = await collect(sample.media, async (span, place) => {
    const file = context.files[span.file]!;
    if (file.kind === 'image') return storedFile(file, context);
    const name = `${record.split}-${keyOf(record)}-${place}.mp4`;
    return cutFile(span, file, partOf(join(context.folder, name)), context);
  });
  const shift = sample.media[0]?.startSeconds ?? 0;
  const packed: Sample = {
    ...sample,
    media: stored.map(({ medium }, file) => ({
      ...{ file, startSeconds: 0, endSeconds: medium.file.durationSeconds },
    })),
    cues: sample.cues.map(({ startSeconds, endSeconds, text }) => ({
      startSeconds: Math.max(0, startSeconds - shift),
      endSeconds: endSeconds - shift,
      text,
    })),
    decodeMegapixels: stored.reduce((sum, { medium: { file } }) => sum + megapixelsOf(file), 0),
  };
  return { ...joined(stored), samples: [packed] };
}

async function cutFile(
  { startSeconds, endSeconds }: MediaSpan,
  file: MediaFile,
  part: string,
  { media, pool, signal }: RenderContext,
): Promise<Held> {
  const remove = (): Promise<void> => rm(part, { force: true });
  const { release, ...place } = await media.acquire(file, signal);
  try {
    const options = optionsFor(await probeMedia(place), CUT_SETTINGS);
    await runFfmpeg({
      input: place,
      inputOptions: [
        ...options.input,
        ...['-ss', startSeconds.toFixed(6), '-t', (endSeconds - startSeconds).toFixed(6)],
      ],
      ...{ output: part, outputOptions: options.output, stallMs: CUT_STALL_MS, signal },
    });
    const info = await pool.probe({ path: part }, signal);
    const { durationSeconds, framesPerSecond, width, height, codec, hasAudio } = info;
    const { sha256 } = await digestFile(part);
    const { size: sizeBytes } = await stat(part);
    const stored: StoredMedia = {
      ...{ kind: 'video', sizeBytes, sha256, durationSeconds, framesPerSecond, width, height },
      ...{ codec, hasAudio, keyFrameSeconds: info.keyFrameSeconds },
    };
    const content = { path: part, sizeBytes };
    return { medium: { ending: 'mp4', content, file: stored }, release: remove };
  } catch (error) {
    await remove();
    throw error;
  } finally {
    release();
  }
}

function megapixelsOf({
  kind,
  durationSeconds,
  framesPerSecond,
  width,
  height,
}: StoredMedia): number {
  const numFrames = kind === 'image' ? 1 : durationSeconds * framesPerSecond;
  return Math.round((numFrames * width * height) / 1e3) / 1e3;
}

/** One after the other; what is held is let go if a later one fails. */
async function collect<T>(
  items: readonly T[],
  hold: (item: T, place: number) => Promise<Held>,
): Promise<Held[]> {
  const held: Held[] = [];
  try {
    for (const [place, item] of items.entries()) held.push(await hold(item, place));
    return held;
  } catch (error) {
    await Promise.all(held.map(({ release }) => release()));
    throw error;
  }
}

function joined(held: readonly Held[]): Pick<PackedRecord, 'media' | 'release'> {
  return {
    media: held.map(({ medium }) => medium),
    release: async () => {
      await Promise.all(held.map(({ release }) => release()));
    },
  };
}
