/**
 * What there is to train on, as a file: JSON Lines with a header, the media files, the samples of the training split,
 * then those held out. A digest tells whether two workers see the same data; it does not depend on where the root is.
 */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { linesOf } from '../../proto/lines.ts';
import type { MediaFile, Sample, SkippedRecord } from './sample.ts';
import { isUrl } from '../storage/paths.ts';

export interface SampleIndex {
  /** Folder or URL that the paths are relative to; in a file, a folder may be relative to that file's. */
  readonly root: string;
  /** SHA-256 over the files and the samples of both splits. */
  readonly digest: string;
  readonly files: readonly MediaFile[];
  readonly train: readonly Sample[];
  readonly heldOut: readonly Sample[];
  readonly skipped: readonly SkippedRecord[];
  /** Cues that were left out for faulty times, over all files. */
  readonly numCaptionWarnings: number;
}

/** Name of the index in a run folder. */
export const INDEX_FILE = 'samples.jsonl';

/** Data that cannot be used, or an index file that cannot be read. */
export class DataError extends VideoloomError {}

const FORMAT = 'videoloom-samples/2';
const CHUNK_CHARACTERS = 2 ** 16;

interface HeaderLine {
  format: string;
  root: string;
  digest: string;
  numFiles: number;
  numTrain: number;
  numHeldOut: number;
  skipped: readonly SkippedRecord[];
  numCaptionWarnings: number;
}

export function digestOf({
  files,
  train,
  heldOut,
}: Pick<SampleIndex, 'files' | 'train' | 'heldOut'>): string {
  const hash = createHash('sha256');
  for (const file of files) addLine(hash, 'file', fileLine(file));
  for (const sample of train) addLine(hash, 'train', sampleLine(sample));
  for (const sample of heldOut) addLine(hash, 'held-out', sampleLine(sample));
  return hash.digest('hex');
}

/** The same index with some of its samples, and the files that they are of. */
export function subsetOf(
  index: SampleIndex,
  { train, heldOut }: Pick<SampleIndex, 'train' | 'heldOut'>,
): SampleIndex {
  const used = new Set(
    [...train, ...heldOut].flatMap(({ media }) => media.map(({ file }) => file)),
  );
  const rows = [...used].sort((a, b) => a - b);
  const newRowOf = new Map(rows.map((old, row) => [old, row]));
  const moved = (sample: Sample): Sample => ({
    ...sample,
    media: sample.media.map((span) => ({ ...span, file: newRowOf.get(span.file)! })),
  });
  const content = {
    files: rows.map((row) => index.files[row]!),
    train: train.map(moved),
    heldOut: heldOut.map(moved),
  };
  return { ...index, ...content, digest: digestOf(content) };
}

/** Writes an index; the file is whole or not there. */
export async function writeIndex(index: SampleIndex, file: string): Promise<void> {
  const { root, digest, files, train, heldOut, skipped, numCaptionWarnings } = index;
  const header: HeaderLine = {
    format: FORMAT,
    root,
    digest,
    numFiles: files.length,
    numTrain: train.length,
    numHeldOut: heldOut.length,
    skipped,
    numCaptionWarnings,
  };
  await writeFileDurably(file, chunksOf(JSON.stringify(header), contentOf(index)));
}

/** @throws DataError INDEX_UNREADABLE, INDEX_DAMAGED if the lines are not those that the digest was made of. */
export async function readIndex(file: string): Promise<SampleIndex> {
  const input = createReadStream(file, { highWaterMark: 2 ** 20 });
  const lines = linesOf(input);
  try {
    const first = await lines.next().catch((cause: unknown) => {
      const message = `${file} cannot be read: ${messageOf(cause)}`;
      throw new DataError('INDEX_UNREADABLE', message, { cause });
    });
    const header = JSON.parse(first.done === true ? '' : first.value) as HeaderLine;
    if (header.format !== FORMAT) throw new Error(`its format is ${header.format}, not ${FORMAT}`);
    const { root, digest, numFiles, numTrain, numHeldOut, skipped, numCaptionWarnings } = header;
    const hash = createHash('sha256');
    const section = async <T>(name: string, count: number): Promise<T[]> => {
      const values: T[] = [];
      while (values.length < count) {
        const next = await lines.next();
        if (next.done === true)
          throw new Error(`it ends after ${values.length} of ${count} ${name} lines`);
        addLine(hash, name, next.value);
        values.push(JSON.parse(next.value) as T);
      }
      return values;
    };
    const files = await section<MediaFile>('file', numFiles);
    const train = await section<Sample>('train', numTrain);
    const heldOut = await section<Sample>('held-out', numHeldOut);
    if (hash.digest('hex') !== digest) throw new Error('its lines do not match its digest');
    const place = isUrl(root) ? root : resolve(dirname(file), root);
    return { root: place, digest, files, train, heldOut, skipped, numCaptionWarnings };
  } catch (cause) {
    if (cause instanceof DataError) throw cause;
    const message = `${file} is not a whole sample index (${messageOf(cause)}); index the data again`;
    throw new DataError('INDEX_DAMAGED', message, { cause });
  } finally {
    input.destroy();
  }
}

/** Lines in pieces large enough to be worth a write each. */
function* chunksOf(first: string, lines: Iterable<string>): Generator<string> {
  let chunk = `${first}\n`;
  for (const line of lines) {
    chunk += `${line}\n`;
    if (chunk.length < CHUNK_CHARACTERS) continue;
    yield chunk;
    chunk = '';
  }
  yield chunk;
}

function* contentOf({ files, train, heldOut }: SampleIndex): Generator<string> {
  for (const file of files) yield fileLine(file);
  for (const sample of train) yield sampleLine(sample);
  for (const sample of heldOut) yield sampleLine(sample);
}

function addLine(hash: Hash, section: string, line: string): void {
  hash.update(`${section} ${line}\n`);
}

// Field by field: the order of an object's keys is part of the line.

function fileLine(file: MediaFile): string {
  const { kind, path, range, cell, sizeBytes, sha256, durationSeconds, framesPerSecond } = file;
  const { width, height, codec, hasAudio, keyFrameSeconds } = file;
  const rate = { durationSeconds, framesPerSecond };
  const picture = { width, height, codec, hasAudio, keyFrameSeconds };
  return JSON.stringify({ kind, path, range, cell, sizeBytes, sha256, ...rate, ...picture });
}

function sampleLine({ id, media, text, cues, parts, decodeMegapixels }: Sample): string {
  return JSON.stringify({ id, media, text, cues, parts, decodeMegapixels });
}
