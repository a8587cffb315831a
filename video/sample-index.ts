/**
 * A folder of videos as a list of samples. The index is a pure function of the folder's content: stable order, a split
 * by the hash of each file's name, and a digest that tells whether two workers see the same data.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { extname, join, sep } from 'node:path';
import { writeFileDurably } from '../proto/durable-file.ts';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import { parseSrt, parseTxt, parseVtt, type TimedText } from './captions.ts';
import { isPoolFault } from './decode-error.ts';
import { openDecoderPool, type DecoderPool, type VideoInfo } from './decoder.ts';

/** A span of one video with its words. */
export interface Sample {
  /** The path without its ending, and the start in milliseconds where the video was cut. */
  readonly id: string;
  /** Relative to the root, with `/`. */
  readonly path: string;
  readonly startSeconds: number;
  readonly endSeconds: number;
  /** The words of this span. */
  readonly text: string;
  readonly cues: readonly TimedText[];
}

/** A file that is not in the index, and why. */
export interface SkippedFile {
  readonly path: string;
  readonly code: string;
  readonly message: string;
}

export interface SampleIndex {
  readonly root: string;
  /** SHA-256 over the samples of both splits; does not depend on where the root is. */
  readonly digest: string;
  readonly train: readonly Sample[];
  readonly heldOut: readonly Sample[];
  readonly skipped: readonly SkippedFile[];
  /** Cues that were left out for faulty times, over all files. */
  readonly numCaptionWarnings: number;
}

export interface IndexFolderOptions {
  readonly root: string;
  /** Longest sample; longer videos are cut, at the end of a cue where there is one. */
  readonly clipSeconds: number;
  /** Share of files held out where the folder has no `held-out/`; 0.1 by default, at least one file of two or more. */
  readonly heldOutFraction?: number;
  /** A pool to probe with; without it one is opened for the time of the call. */
  readonly pool?: DecoderPool;
  readonly onProgress?: (progress: { numDone: number; numFiles: number }) => void;
  readonly signal?: AbortSignal;
}

/** Name of the index in a run folder. */
export const INDEX_FILE = 'samples.jsonl';

/** A folder of data that cannot be used, or an index file that cannot be read. */
export class DataError extends VideoloomError {}

const VIDEO_ENDINGS = [
  '.mp4',
  '.m4v',
  '.mov',
  '.mkv',
  '.webm',
  '.avi',
  '.mpg',
  '.mpeg',
  '.ts',
  '.flv',
  '.ogv',
  '.wmv',
];
const TRAIN_FOLDER = 'train';
const HELD_OUT_FOLDER = 'held-out';
/** A rest shorter than this is not a sample of its own. */
const MIN_REST_SECONDS = 1;
/** Text files larger than this are no captions. */
const MAX_CAPTION_BYTES = 16 * 2 ** 20;
const PROBES_AT_ONCE = 32;

/**
 * Indexes all videos below a folder. The words of `a/b.mp4` are those of `a/b.vtt`, else `a/b.srt`, else `a/b.txt`.
 * @throws DataError DATA_NOT_FOUND, DATA_EMPTY
 */
export async function indexFolder(options: IndexFolderOptions): Promise<SampleIndex> {
  const { root, clipSeconds, heldOutFraction = 0.1, onProgress, signal } = options;
  const files = await listFiles(root);
  const videos = files.filter((path) => VIDEO_ENDINGS.includes(extname(path).toLowerCase()));
  if (videos.length === 0) {
    throw new DataError(
      'DATA_EMPTY',
      `there are no videos in ${root} or below it; files that end in ${VIDEO_ENDINGS.join(', ')} are looked for`,
    );
  }
  const present = new Set(files);
  const perFile: (readonly Sample[])[] = videos.map(() => []);
  const skipped: SkippedFile[] = [];
  let [numDone, numCaptionWarnings, next] = [0, 0, 0];
  const pool = options.pool ?? (await openDecoderPool({ numProcesses: 2 }));
  const indexNext = async (): Promise<void> => {
    while (next < videos.length) {
      const at = next++;
      const path = videos[at]!;
      try {
        const info = await pool.probe(join(root, path), signal);
        if (!(info.durationSeconds > 0)) throw unusable(root, path);
        const words = await readWords(root, path, present, info.durationSeconds);
        numCaptionWarnings += words.numWarnings;
        perFile[at] = cutIntoSamples(path, info, words, clipSeconds);
      } catch (error) {
        signal?.throwIfAborted();
        if (!(error instanceof VideoloomError) || isPoolFault(error)) throw error;
        skipped.push({ path, code: error.code, message: error.message });
      }
      onProgress?.({ numDone: ++numDone, numFiles: videos.length });
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(PROBES_AT_ONCE, videos.length) }, indexNext));
  } finally {
    if (!options.pool) await pool.close();
  }
  skipped.sort((a, b) => compare(a.path, b.path));
  const heldOutPaths = heldOutOf(
    videos.filter((_, at) => perFile[at]!.length > 0),
    heldOutFraction,
  );
  const samples = perFile.flat();
  const train = samples.filter(({ path }) => !heldOutPaths.has(path));
  const heldOut = samples.filter(({ path }) => heldOutPaths.has(path));
  return { root, digest: digestOf(train, heldOut), train, heldOut, skipped, numCaptionWarnings };
}

async function listFiles(root: string): Promise<string[]> {
  const found = await stat(root).catch(() => undefined);
  if (!found?.isDirectory()) {
    throw new DataError('DATA_NOT_FOUND', `${root} is not a folder; name one that holds videos`);
  }
  const paths = await readdir(root, { recursive: true });
  return paths
    .map((path) => path.split(sep).join('/'))
    .filter((path) => !path.split('/').some((part) => part.startsWith('.')))
    .sort(compare);
}

/** By code unit: the same order on every machine, whatever its locale. */
function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function unusable(root: string, path: string): DataError {
  return new DataError('VIDEO_NO_DURATION', `${join(root, path)} does not say how long it is`);
}

interface Words {
  /** The caption of the whole file; empty where there are cues. */
  readonly caption: string;
  readonly cues: readonly TimedText[];
  readonly numWarnings: number;
}

async function readWords(
  root: string,
  path: string,
  present: ReadonlySet<string>,
  durationSeconds: number,
): Promise<Words> {
  const stem = path.slice(0, -extname(path).length);
  const ending = ['.vtt', '.srt', '.txt'].find((candidate) => present.has(stem + candidate));
  if (ending === undefined) return { caption: '', cues: [], numWarnings: 0 };
  const file = join(root, stem + ending);
  let content: string;
  try {
    const { size } = await stat(file);
    if (size > MAX_CAPTION_BYTES)
      throw new Error(`it has ${size} bytes, at most ${MAX_CAPTION_BYTES} are read`);
    content = await readFile(file, 'utf8');
  } catch (cause) {
    const message = `the captions ${file} cannot be read: ${messageOf(cause)}`;
    throw new DataError('CAPTION_UNREADABLE', message, { cause });
  }
  if (ending === '.txt') return { caption: parseTxt(content), cues: [], numWarnings: 0 };
  const { cues, warnings } = ending === '.vtt' ? parseVtt(content) : parseSrt(content);
  const inside = cues.filter(({ startSeconds }) => startSeconds < durationSeconds);
  return { caption: '', cues: inside, numWarnings: warnings.length };
}

function cutIntoSamples(
  path: string,
  { durationSeconds }: VideoInfo,
  { caption, cues }: Words,
  clipSeconds: number,
): Sample[] {
  const stem = path.slice(0, -extname(path).length);
  const samples: Sample[] = [];
  for (let start = 0; start < durationSeconds;) {
    const end = endOfSpan(start, durationSeconds, clipSeconds, cues);
    const isWhole = start === 0 && end === durationSeconds;
    // A cue belongs to the span its middle lies in, so that none is told twice.
    const own = cues.filter((cue) => {
      const middle = Math.min((cue.startSeconds + cue.endSeconds) / 2, durationSeconds - 1e-6);
      return middle >= start && middle < end;
    });
    samples.push({
      id: isWhole ? stem : `${stem}@${Math.round(start * 1000)}`,
      path,
      startSeconds: start,
      endSeconds: end,
      text: caption || own.map(({ text }) => text).join(' '),
      cues: own,
    });
    start = end;
  }
  return samples;
}

/** The last end of a cue within reach, if it leaves at least half a clip; else a full clip. */
function endOfSpan(
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

function heldOutOf(paths: readonly string[], fraction: number): ReadonlySet<string> {
  const inFolder = (folder: string): string[] =>
    paths.filter((path) => path.startsWith(`${folder}/`));
  const heldOut = inFolder(HELD_OUT_FOLDER);
  if (heldOut.length > 0 || inFolder(TRAIN_FOLDER).length > 0) return new Set(heldOut);
  if (fraction <= 0 || paths.length < 2) return new Set();
  const count = Math.min(paths.length - 1, Math.max(1, Math.round(paths.length * fraction)));
  const byHash = paths
    .map((path) => ({ path, hash: createHash('sha256').update(path).digest('hex') }))
    .sort((a, b) => compare(a.hash, b.hash));
  return new Set(byHash.slice(0, count).map(({ path }) => path));
}

function digestOf(train: readonly Sample[], heldOut: readonly Sample[]): string {
  const hash = createHash('sha256');
  for (const [split, samples] of Object.entries({ train, heldOut })) {
    for (const sample of samples) hash.update(`${split} ${lineOf(sample)}\n`);
  }
  return hash.digest('hex');
}

const FORMAT = 'videoloom-samples/1';

interface HeaderLine {
  format: string;
  root: string;
  digest: string;
  numTrain: number;
  numHeldOut: number;
  skipped: SkippedFile[];
  numCaptionWarnings: number;
}

/** Writes an index as JSON Lines: a header, then the samples of the training split, then those held out. Atomic. */
export async function writeIndex(index: SampleIndex, file: string): Promise<void> {
  const { root, digest, train, heldOut, skipped, numCaptionWarnings } = index;
  const header: HeaderLine = {
    format: FORMAT,
    root,
    digest,
    numTrain: train.length,
    numHeldOut: heldOut.length,
    skipped: [...skipped],
    numCaptionWarnings,
  };
  const lines = [JSON.stringify(header), ...[...train, ...heldOut].map(lineOf)];
  await writeFileDurably(file, `${lines.join('\n')}\n`);
}

/**
 * The index that `path` stands for: an index file, a folder with {@link INDEX_FILE} in it, or a folder of videos, which
 * is then indexed.
 * @throws DataError what {@link readIndex} and {@link indexFolder} throw
 */
export async function findIndex(
  path: string,
  options: Omit<IndexFolderOptions, 'root'>,
): Promise<SampleIndex> {
  const file = (await isFile(path)) ? path : join(path, INDEX_FILE);
  return (await isFile(file)) ? readIndex(file) : indexFolder({ root: path, ...options });
}

async function isFile(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isFile() === true;
}

/** @throws DataError INDEX_UNREADABLE, INDEX_DAMAGED if the samples are not those that the digest was made of. */
export async function readIndex(file: string): Promise<SampleIndex> {
  let content: string;
  try {
    content = await readFile(file, 'utf8');
  } catch (cause) {
    throw new DataError('INDEX_UNREADABLE', `${file} cannot be read: ${messageOf(cause)}`, {
      cause,
    });
  }
  try {
    const lines = content.trimEnd().split('\n');
    const header = JSON.parse(lines[0] ?? '') as HeaderLine;
    if (header.format !== FORMAT) throw new Error(`its format is ${header.format}, not ${FORMAT}`);
    const samples = lines.slice(1).map((line) => JSON.parse(line) as Sample);
    const { root, digest, numTrain, numHeldOut, skipped, numCaptionWarnings } = header;
    const [train, heldOut] = [samples.slice(0, numTrain), samples.slice(numTrain)];
    if (heldOut.length !== numHeldOut || digestOf(train, heldOut) !== digest) {
      throw new Error('its samples do not match its digest');
    }
    return { root, digest, train, heldOut, skipped, numCaptionWarnings };
  } catch (cause) {
    const message = `${file} is not a whole sample index (${messageOf(cause)}); index the folder again`;
    throw new DataError('INDEX_DAMAGED', message, { cause });
  }
}

function lineOf({ id, path, startSeconds, endSeconds, text, cues }: Sample): string {
  return JSON.stringify({ id, path, startSeconds, endSeconds, text, cues });
}
