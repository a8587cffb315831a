/**
 * Makes H.264 training files out of anything FFmpeg reads. A file has its final name only when it is whole and on disk;
 * what is done is in a journal, so that a run that was killed goes on where it was.
 */
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, extname, join, relative, resolve, sep } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { messageOf } from '../../proto/errors.ts';
import { MAX_FILM_SECONDS } from '../decode/decoder-backend.ts';
import { DataError } from '../index/sample-index.ts';
import type { SkippedRecord } from '../index/sample.ts';
import { CurationError, diskFull, writeErrorOf } from './curation-error.ts';
import { FfmpegFailure, ffmpegVersion, probeMedia, runFfmpeg } from './ffmpeg-job.ts';
import { optionsFor, RECIPE_VERSION, type TranscodeSettings } from './h264-options.ts';
import { openJournal, type Journal } from './journal.ts';
import { partOf, publish, removeLeftovers } from './part-file.ts';

export interface TranscodeOptions {
  /** A folder of films, or one film. */
  readonly source: string;
  /** Folder of the training files; not within the source. */
  readonly out: string;
  readonly settings: TranscodeSettings;
  /** ffmpeg processes at a time, of one thread each. */
  readonly numJobs: number;
  /** A job that makes nothing for so long is killed; 60,000 by default. */
  readonly stallMs?: number;
  readonly onProgress?: (progress: TranscodeProgress) => void;
  readonly signal?: AbortSignal;
}

export interface TranscodeProgress {
  readonly numDone: number;
  readonly numFiles: number;
  readonly numFailed: number;
  /** Of film that this run has made. */
  readonly secondsDone: number;
}

export interface TranscodeSummary {
  readonly numFiles: number;
  readonly numMade: number;
  /** Finished by an earlier run out of the same bytes. */
  readonly numKept: number;
  readonly secondsMade: number;
  /** Films that gave nothing. */
  readonly failed: readonly SkippedRecord[];
  /** Films with faults that gave a training file all the same. */
  readonly damaged: readonly SkippedRecord[];
}

/** What the command leaves in its folder beside the files. */
export const TRANSCODE_REPORT = 'transcode.json';

const JOURNAL = '.transcode.jsonl';
const FORMAT = 'videoloom-transcode/1';
const STALL_MS = 60_000;
/** A film that ends before this share of the length it states is a part of a film; its captions are for all of it. */
const MIN_SHARE = 0.9;
const SIDECARS = ['.txt', '.json', '.vtt', '.srt'];
const FILMS = new Set(
  (
    '3g2 3gp amv asf avi bik dv divx drc f4v flv gif gxf h264 h265 hevc ivf m1v m2ts m2v m4v mjpeg mjpg mkv mov mp4 ' +
    'mpe mpeg mpg mts mxf nsv nut obu ogg ogm ogv qt rm rmvb roq swf ts vob webm wmv wtv y4m'
  )
    .split(' ')
    .map((ending) => `.${ending}`),
);

/**
 * Transcodes a folder.
 * @throws CurationError FFMPEG_MISSING, FFMPEG_WITHOUT_X264, OUT_IN_SOURCE, DISK_FULL; DataError DATA_NOT_FOUND, DATA_EMPTY
 */
export async function transcode(options: TranscodeOptions): Promise<TranscodeSummary> {
  const { source, out, settings, numJobs, onProgress } = options;
  const version = await ffmpegVersion();
  const { root, films, sidecars } = await filmsOf(resolve(source), resolve(out));
  await mkdir(out, { recursive: true });
  await removeLeftovers(out);

  const digest = createHash('sha256')
    .update(JSON.stringify([RECIPE_VERSION, version, Object.entries(settings).sort()]))
    .digest('hex');
  const journal = await openJournal<JournalEntry>(join(out, JOURNAL));
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(options.signal ? [options.signal] : [])]);
  const context: Context = {
    ...{ root, out, settings, signal, journal, digest },
    stallMs: options.stallMs ?? STALL_MS,
    finished: new Map(journal.entries.map((entry) => [entry.output, entry])),
  };
  const outcomes: (Outcome | undefined)[] = films.map(() => undefined);
  const underWay = new Map<Film, number>();
  let [next, numDone, numFailed, secondsMade] = [0, 0, 0, 0];
  let fault: unknown;
  const report = (): void => {
    const secondsDone = [...underWay.values()].reduce((sum, seconds) => sum + seconds, secondsMade);
    onProgress?.({ numDone, numFiles: films.length, numFailed, secondsDone });
  };
  const work = async (): Promise<void> => {
    while (next < films.length && !signal.aborted) {
      const at = next++;
      const film = films[at]!;
      const outcome = await makeOne(film, sidecars.get(film.path) ?? [], context, (seconds) => {
        underWay.set(film, seconds);
        report();
      });
      underWay.delete(film);
      outcomes[at] = outcome;
      numDone++;
      if (outcome.kind === 'failed') numFailed++;
      if (outcome.kind === 'made') secondsMade += outcome.seconds;
      report();
    }
  };
  try {
    const workers = Array.from({ length: Math.min(numJobs, films.length) }, () =>
      work().catch((error: unknown) => {
        fault ??= error;
        stop.abort(); // the others end at once
      }),
    );
    await Promise.all(workers);
  } finally {
    await journal.close();
  }
  options.signal?.throwIfAborted();
  if (fault !== undefined) throw writeErrorOf(fault, out);

  const count = (kind: Outcome['kind']): number =>
    outcomes.filter((outcome) => outcome?.kind === kind).length;
  const [failed, damaged]: [SkippedRecord[], SkippedRecord[]] = [[], []];
  for (const [at, outcome] of outcomes.entries()) {
    const { path } = films[at]!;
    if (outcome?.kind === 'failed') failed.push({ path, ...outcome.why });
    else if (outcome?.complaint !== undefined) {
      damaged.push({ path, code: 'VIDEO_DAMAGED', message: outcome.complaint });
    }
  }
  const numFiles = films.length;
  const content = { format: FORMAT, ffmpeg: version, settings, numFiles, failed, damaged };
  await writeFileDurably(join(out, TRANSCODE_REPORT), `${JSON.stringify(content, null, 2)}\n`);
  return {
    ...{ numFiles, numMade: count('made'), numKept: count('kept') },
    ...{ secondsMade, failed, damaged },
  };
}

interface Film {
  /** Relative to the source with `/`. */
  readonly path: string;
  /** Relative to the output with `/`. */
  readonly output: string;
}

interface JournalEntry {
  readonly input: string;
  readonly sizeBytes: number;
  readonly mtimeMs: number;
  /** SHA-256 of the recipe, the settings and the version of ffmpeg. */
  readonly settings: string;
  readonly output: string;
  readonly outputBytes: number;
  readonly complaint?: string;
}

interface Context {
  readonly root: string;
  readonly out: string;
  readonly settings: TranscodeSettings;
  readonly signal: AbortSignal;
  readonly journal: Journal<JournalEntry>;
  readonly digest: string;
  readonly stallMs: number;
  readonly finished: ReadonlyMap<string, JournalEntry>;
}

type Outcome =
  | { readonly kind: 'made'; readonly seconds: number; readonly complaint?: string }
  | { readonly kind: 'kept'; readonly complaint?: string }
  | { readonly kind: 'failed'; readonly why: Omit<SkippedRecord, 'path'> };

/** One film with the words beside it. Throws only what stops the whole command. */
async function makeOne(
  film: Film,
  sidecars: readonly Sidecar[],
  context: Context,
  onProgress: (seconds: number) => void,
): Promise<Outcome> {
  const { root, out, digest, journal, finished, signal } = context;
  const [input, output] = [join(root, film.path), join(out, film.output)];
  const earlier = finished.get(film.output);
  const copyWords = async (): Promise<void> => {
    for (const { path, copy } of sidecars) {
      const content = await fromSource(path, readFile(join(root, path)));
      await writeChanged(join(out, copy), content);
    }
  };

  const temporary = partOf(output);
  let isOutdated = false;
  try {
    const { size: sizeBytes, mtimeMs } = await fromSource(film.path, stat(input));
    const isSame =
      earlier?.input === film.path &&
      earlier.sizeBytes === sizeBytes &&
      earlier.mtimeMs === mtimeMs &&
      earlier.settings === digest &&
      earlier.outputBytes === (await stat(output).catch(() => undefined))?.size;
    await mkdir(dirname(output), { recursive: true });
    if (isSame) {
      await copyWords();
      return earlier.complaint === undefined
        ? { kind: 'kept' }
        : { kind: 'kept', complaint: earlier.complaint };
    }

    // What an earlier run made is of other bytes or other settings.
    isOutdated = earlier !== undefined;
    const { complaints, seconds } = await encode(input, temporary, context, onProgress);
    await copyWords();
    const outputBytes = await publish(temporary, output);
    const complaint = complaints.length === 0 ? {} : { complaint: plain(complaints.at(-1)!, film) };
    await journal.append({
      ...{ input: film.path, sizeBytes, mtimeMs, settings: digest },
      ...{ output: film.output, outputBytes, ...complaint },
    });
    return { kind: 'made', seconds, ...complaint };
  } catch (error) {
    await rm(temporary, { force: true });
    if (!(error instanceof FfmpegFailure)) throw error;
    signal.throwIfAborted();
    const { kind, reason } = error;
    if (kind === 'disk') throw diskFull(out, reason);
    const code = kind === 'stalled' ? 'VIDEO_TIMEOUT' : 'VIDEO_UNREADABLE';
    if (isOutdated) await rm(output, { force: true });
    return { kind: 'failed', why: { code, message: plain(reason, film) } };
  }

  function plain(line: string, { path }: Film): string {
    // An address in memory is another one every time.
    const told = line.replaceAll(/ @ 0x[0-9a-f]+/g, '');
    return told.replaceAll(`file:${input}`, path).replaceAll(input, path);
  }
}

/** Encodes to a file that nobody reads yet, and looks whether it holds what the film does. */
async function encode(
  input: string,
  output: string,
  { settings, stallMs, signal }: Context,
  onProgress: (seconds: number) => void,
): Promise<{ complaints: readonly string[]; seconds: number }> {
  const media = await probeMedia({ path: input });
  const options = optionsFor(media, settings);
  const complaints = await runFfmpeg({
    ...{
      input: { path: input },
      inputOptions: options.input,
      output,
      outputOptions: options.output,
    },
    ...{ stallMs, onProgress, signal },
  });
  const made = await probeMedia({ path: output }, { countsPackets: true });
  const seconds = made.durationSeconds;
  const isWhole = made.streams.every((stream) => stream.nb_frames === stream.nb_read_packets);
  if (!(seconds > 0) || !isWhole) {
    throw new FfmpegFailure('input', complaints.at(-1) ?? 'no picture of it can be decoded');
  }
  if (seconds >= MAX_FILM_SECONDS) {
    const message = `it lasts ${MAX_FILM_SECONDS / 3600} h or more, or a time stamp of it is wrong; cut it up first`;
    throw new FfmpegFailure('input', message);
  }
  if (seconds < MIN_SHARE * media.durationSeconds) {
    const said = `it states ${media.durationSeconds.toFixed(2)} s and ends after ${seconds.toFixed(2)} s`;
    const last = complaints.length === 0 ? '' : ` (${complaints.at(-1)!})`;
    throw new FfmpegFailure('input', `${said}${last}`);
  }
  return { complaints, seconds };
}

/** @throws FfmpegFailure where a path of the source is to blame, so that the other films are made all the same. */
async function fromSource<T>(path: string, reading: Promise<T>): Promise<T> {
  try {
    return await reading;
  } catch (error) {
    const why = SOURCE_FAULTS[(error as NodeJS.ErrnoException).code ?? ''];
    throw why === undefined ? error : new FfmpegFailure('input', `${path} ${why}`);
  }
}

const NOT_THERE = 'is not there: it was removed, or it is a link that leads nowhere';
const NOT_ALLOWED = 'may not be read: give this user the right to (chmod)';
const SOURCE_FAULTS: Readonly<Record<string, string>> = {
  ...{ ENOENT: NOT_THERE, ENOTDIR: NOT_THERE, ELOOP: NOT_THERE },
  ...{ EACCES: NOT_ALLOWED, EPERM: NOT_ALLOWED, EISDIR: 'is a folder: give it another name' },
};

/** Writes a small file so that it is whole or not there; leaves an equal one as it is. */
async function writeChanged(to: string, content: Uint8Array): Promise<void> {
  const present = await readFile(to).catch(() => undefined);
  if (present?.equals(content) === true) return;
  const temporary = partOf(to);
  try {
    await writeFile(temporary, content, { flush: true });
    await rename(temporary, to);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

interface Sidecar {
  readonly path: string;
  readonly copy: string;
}

/** The films below a folder by code unit, where each goes, and what lies beside it. */
async function filmsOf(
  source: string,
  out: string,
): Promise<{ root: string; films: Film[]; sidecars: Map<string, Sidecar[]> }> {
  const found = await stat(source).catch((cause: unknown) => {
    throw new DataError('DATA_NOT_FOUND', `${source} cannot be read: ${messageOf(cause)}`, {
      cause,
    });
  });
  const root = found.isDirectory() ? source : dirname(source);
  const isWithin = relative(root, out) === '' || !relative(root, out).startsWith('..');
  if (found.isDirectory() && isWithin) {
    throw new CurationError(
      'OUT_IN_SOURCE',
      `${out} is within ${root}: the next run would take its files for films; name a folder beside it`,
    );
  }
  const paths = found.isDirectory()
    ? (await readdir(root, { recursive: true })).map((path) => path.split(sep).join('/'))
    : (await readdir(root)).filter((path) => stemOf(path) === stemOf(basename(source)));
  const visible = paths.filter((path) => !path.split('/').some((part) => part.startsWith('.')));
  const inputs = found.isDirectory()
    ? visible.filter((path) => FILMS.has(extname(path).toLowerCase())).sort(compare)
    : [basename(source)];
  if (inputs.length === 0) {
    throw new DataError(
      'DATA_EMPTY',
      `there are no films in ${root} or below it; files that end in ${[...FILMS].join(' ')} are looked for`,
    );
  }
  // a.mov and a.webm would both become a.mp4.
  const numOfStem = new Map<string, number>();
  for (const path of inputs) numOfStem.set(stemOf(path), (numOfStem.get(stemOf(path)) ?? 0) + 1);
  const taken = new Set<string>();
  const films = inputs.map((path) => {
    let output = `${numOfStem.get(stemOf(path)) === 1 ? stemOf(path) : path}.mp4`;
    while (taken.has(output)) output += '.mp4';
    taken.add(output);
    return { path, output };
  });
  return { root, films, sidecars: sidecarsOf(films, visible) };
}

/** Words of `a.webm` are in `a.txt`, or `a.en.vtt`. */
function sidecarsOf(films: readonly Film[], paths: readonly string[]): Map<string, Sidecar[]> {
  const byStem = new Map<string, Film[]>();
  for (const film of films) {
    const stem = stemOf(film.path);
    byStem.set(stem, [...(byStem.get(stem) ?? []), film]);
  }
  const sidecars = new Map<string, Sidecar[]>();
  for (const path of paths) {
    if (!SIDECARS.includes(extname(path).toLowerCase())) continue;
    const stem = [stemOf(path), stemOf(stemOf(path))].find((candidate) => byStem.has(candidate));
    for (const film of stem === undefined ? [] : byStem.get(stem)!) {
      const copy = stemOf(film.output) + path.slice(stem!.length);
      sidecars.set(film.path, [...(sidecars.get(film.path) ?? []), { path, copy }]);
    }
  }
  return sidecars;
}

function stemOf(path: string): string {
  return path.slice(0, path.length - extname(path).length);
}

/** By code unit: the same order on every machine, whatever its locale. */
function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
