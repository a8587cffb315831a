/** Samples of an index to look at: frames of each with their times, and the words that belong to them. */
import type { DecoderPool } from '../decode/decoder.ts';
import { isFileFault } from '../loading/file-fault.ts';
import { evenTimes } from '../sampling/frame-sampler.ts';
import type { TimedText } from '../text/captions.ts';
import { locationShown, type MediaSpan, type Sample, type SamplePart } from '../index/sample.ts';
import type { SampleIndex } from '../index/sample-index.ts';
import type { MediaCache } from '../storage/media-cache.ts';
import type { ShownBox } from './drawn-box.ts';
import { spread } from './spread.ts';

export interface ContactSheetOptions {
  readonly index: SampleIndex;
  readonly media: MediaCache;
  readonly pool: DecoderPool;
  /** Samples shown, spread evenly over both splits. */
  readonly numSamples: number;
  readonly framesPerSample: number;
}

/** A frame of a video, or a picture. */
export interface SheetPicture {
  /** RGB, 8 bits, [height, width, 3]. */
  readonly pixels: Uint8Array;
  readonly width: number;
  readonly height: number;
  /** When it is shown; undefined for a picture that stands still. */
  readonly ptsSeconds: number | undefined;
  /** Drawn on it, on a page. */
  readonly boxes?: readonly ShownBox[];
  /** What it is, where it is no frame of the sample. */
  readonly label?: string;
}

/** A sample with its frames, or with what kept them from being decoded. */
export interface SheetEntry {
  readonly sample: Sample;
  /** Undefined where the sample is of no data to train on. */
  readonly split: 'train' | 'held-out' | undefined;
  readonly pictures: readonly SheetPicture[];
  readonly failure: string | undefined;
}

export interface ContactSheet {
  /** What it is of; undefined: the data, and how much of them are shown. */
  readonly title?: string;
  readonly index: SampleIndex;
  readonly framesPerSample: number;
  readonly entries: readonly SheetEntry[];
}

/** Width of a picture in pixels, and the most that its height may be; one that would be higher is narrower. */
export const CELL = { width: 160, maxHeight: 240 } as const;
/** Of a document with more pictures, the first ones are shown. */
const MAX_MEDIA = 12;

/**
 * Decodes what is to be looked at. A sample that does not decode is shown as its error.
 * @throws DecodeError if there is nothing to decode with
 */
export async function openContactSheet(options: ContactSheetOptions): Promise<ContactSheet> {
  const { index, numSamples, framesPerSample } = options;
  const all = [
    ...index.train.map((sample) => ({ sample, split: 'train' as const })),
    ...index.heldOut.map((sample) => ({ sample, split: 'held-out' as const })),
  ];
  const entries = await Promise.all(
    spread(all, numSamples).map(async ({ sample, split }) => ({
      sample,
      split,
      ...(await decode(sample, options)),
    })),
  );
  return { index, framesPerSample, entries };
}

async function decode(
  sample: Sample,
  options: ContactSheetOptions,
): Promise<Pick<SheetEntry, 'pictures' | 'failure'>> {
  try {
    const spans = sample.media.slice(0, MAX_MEDIA);
    const pictures = await Promise.all(spans.map((span) => decodeSpan(span, options)));
    return { pictures: pictures.flat(), failure: undefined };
  } catch (error) {
    // Without a decoder there is nothing to draw; a bad file is something to be seen.
    if (!isFileFault(error)) throw error;
    return { pictures: [], failure: `${error.code}: ${error.message}` };
  }
}

async function decodeSpan(
  { file: row, startSeconds, endSeconds }: MediaSpan,
  { index, media, pool, framesPerSample }: ContactSheetOptions,
): Promise<SheetPicture[]> {
  const file = index.files[row]!;
  const scale = Math.min(CELL.width / file.width, CELL.maxHeight / file.height);
  const size = {
    width: Math.max(1, Math.round(scale * file.width)),
    height: Math.max(1, Math.round(scale * file.height)),
  };
  const local = await media.acquire(file);
  try {
    const place = { path: local.path, range: local.range };
    const isVideo = file.kind === 'video';
    const timesSeconds = evenTimes(startSeconds, endSeconds, framesPerSample);
    const { frames, ptsSeconds } = isVideo
      ? await pool.decode({ ...place, timesSeconds, ...size })
      : await pool.decodeImage({ ...place, ...size });
    const numBytes = size.width * size.height * 3;
    return Array.from(ptsSeconds, (pts, i) => ({
      pixels: frames.subarray(i * numBytes, (i + 1) * numBytes),
      ...size,
      ptsSeconds: isVideo ? pts : undefined,
    }));
  } finally {
    local.release();
  }
}

/** What a sample is of, the words of it in lines, each after its time or who says it. */
export function wordsOf(
  { sample, split }: SheetEntry,
  { files }: SampleIndex,
): { readonly title: string; readonly lines: readonly string[] } {
  const { id, media, text, cues, parts } = sample;
  const names = media.map(({ file: row, startSeconds, endSeconds }) => {
    const file = files[row]!;
    return `${locationShown(file)}${file.kind === 'video' ? ` · ${spanOf(startSeconds, endSeconds)}` : ''}`;
  });
  const what = names.length === 0 ? id : names.join(', ');
  const title = split === undefined ? what : `${what} · ${split}`;
  // Turns and paragraphs have an order, subtitles times of their own; a caption speaks of the whole.
  const isSaidByCues = text === '' || text === cues.map((cue) => cue.text).join(' ');
  const whole = parts !== undefined ? parts.map(partLine) : isSaidByCues ? [] : [text];
  return { title, lines: [...whole, ...cues.map(cueLine)] };
}

function cueLine({ startSeconds, endSeconds, text }: TimedText): string {
  return `${spanOf(startSeconds, endSeconds)}: ${text}`;
}

function partLine({ role, text, media }: SamplePart): string {
  const said = text ?? `[picture ${(media ?? 0) + 1}]`;
  return role === undefined ? said : `${role}: ${said}`;
}

function spanOf(startSeconds: number, endSeconds: number): string {
  return `${startSeconds.toFixed(2)}-${endSeconds.toFixed(2)} s`;
}
