import { redactUrl } from '../storage/paths.ts';
import type { ByteRange } from '../storage/store.ts';
import type { TimedText } from '../text/captions.ts';

/** Where the bytes of a picture or a video are. */
export interface MediaLocation {
  /** Relative to the root with `/`, or a URL (`https://`, `http://`, `s3://`). */
  readonly path: string;
  /** The part of the file at `path` that holds them, as in a tar shard; absent: all of it. */
  readonly range?: ByteRange;
  /** The cell of the Parquet table at `path` that holds them; absent: `path` is no table. */
  readonly cell?: { readonly column: string; readonly row: number };
}

/** A picture or a video that samples are cut from, and what indexing found out about it. */
export interface MediaFile extends MediaLocation {
  readonly kind: 'video' | 'image';
  readonly sizeBytes: number;
  /** SHA-256 of its bytes, hex. */
  readonly sha256: string;
  /** 0 for a picture. */
  readonly durationSeconds: number;
  /** Average rate; 0 for a picture and where the file does not say. */
  readonly framesPerSecond: number;
  /** Size as shown, after rotation. */
  readonly width: number;
  readonly height: number;
  /** As FFmpeg names it (`h264`), or of a picture the format (`jpeg`). */
  readonly codec: string;
  readonly hasAudio: boolean;
  /** When the frames are shown that decoding can begin at, ascending. */
  readonly keyFrameSeconds: readonly number[];
}

/** A span of a video, or a picture (0 to 0). */
export interface MediaSpan {
  /** Row of the index's files. */
  readonly file: number;
  readonly startSeconds: number;
  readonly endSeconds: number;
}

/** A piece of a document or conversation: words, or the place of a picture or clip. */
export interface SamplePart {
  /** Who says it, in a conversation. */
  readonly role?: 'system' | 'user' | 'assistant';
  readonly text?: string;
  /** What was liked less in place of `text`, where two answers were compared. */
  readonly rejected?: string;
  /** Place in the sample's `media`. */
  readonly media?: number;
}

/** One thing to train on: pictures or spans of video, and words. */
export interface Sample {
  /** Unique in its index; the same wherever the root is. */
  readonly id: string;
  /** In the order in which the words speak of them. */
  readonly media: readonly MediaSpan[];
  /** The caption, or the words of the span; of a document or a conversation all its text. */
  readonly text: string;
  /** Words with their times, in seconds of the file that the first span is of. */
  readonly cues: readonly TimedText[];
  /** The order of words and media where it matters: documents, conversations. */
  readonly parts?: readonly SamplePart[];
  /** Million pixels that a decoder works through to show its media, from the key frame before each span on. */
  readonly decodeMegapixels: number;
}

/** What a sample shows in one string: equal for those that show the same. */
export function shownKey({ media }: Pick<Sample, 'media'>): string {
  return JSON.stringify(media);
}

/** A location in one string, for telling locations apart. It may hold secrets: see {@link locationShown}. */
export function locationName({ path, range, cell }: MediaLocation): string {
  if (range !== undefined) return `${path}@${range.offset}+${range.sizeBytes}`;
  return cell === undefined ? path : `${path}#${cell.column}/${cell.row}`;
}

/** A location as messages, reports and pages show it: without what in a URL may be secret. */
export function locationShown(location: MediaLocation): string {
  return locationName({ ...location, path: redactUrl(location.path) });
}

/** A file or a record that gives no sample, and why. */
export interface SkippedRecord {
  /** As {@link locationShown} gives it; with `:line`, `#row` or `!member` where it is a record of it. */
  readonly path: string;
  readonly code: string;
  readonly message: string;
}
