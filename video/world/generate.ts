/**
 * Writes a whole world: clips of both splits by several processes, each file whole or absent, and at the end
 * `world.json`, which says what is there. Started again it goes on where it was, or finds that nothing is to do.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { compiled } from '../../proto/compiled.mjs';
import { messageOf, UsageError, VideoloomError } from '../../proto/errors.ts';
import type { ChildMessage, ChildSettings } from './child.ts';
import type { ControlledTruth, MovesTruth, PlacesTruth } from './controlled-truth.ts';
import {
  clipPaths,
  controlledTruth,
  fingerprint,
  type ClipFile,
  type ClipPlace,
  type WorldParameters,
} from './clip.ts';
import { combinationsOf, SPLITS, type Combination } from './combinations.ts';
import type { EncoderName } from './encode.ts';
import { WORLD_MANIFEST } from './manifest.ts';
import { looksOf, movesVocabulary, type Look } from './moves.ts';
import { worldVocabulary } from './narrate.ts';
import { placeQuestionsOf } from './place-questions.ts';
import { placesVocabulary } from './places.ts';
import { preferencesOf } from './preferences.ts';
import { questionsOf } from './questions.ts';
import { TICKS_PER_SECOND } from './scene.ts';
import { SLIDES_PER_STORY, slidesVocabulary } from './slides.ts';
import { WORLD_KINDS, type WorldKind } from './world-kinds.ts';

export const WORLD_VERSION = 1;

export interface WorldOptions {
  /** Gets `train/`, `held-out/` and `world.json`. */
  readonly dir: string;
  readonly seed: number;
  readonly trainClips: number;
  readonly heldOutClips: number;
  /** `stories` unless given. */
  readonly kind?: WorldKind;
  /** Pixels, even; 128 unless given, 64 in controlled worlds. */
  readonly width?: number;
  readonly height?: number;
  /** A divisor of 480; 24 unless given, 16 in `moves`, 10 in `slides` and 8 in `places`. */
  readonly fps?: number;
  /** A clip's length: 6 unless given, to half a second; exactly in controlled worlds, 2 in `moves`, 3.2 in `slides`, 1 in `places`. */
  readonly seconds?: number;
  readonly numProcesses: number;
  /** The backend; node-av where it is installed unless given, else the machine's ffmpeg. */
  readonly encoder?: EncoderName;
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** `world.json`. */
export interface WorldManifest extends WorldParameters {
  readonly version: typeof WORLD_VERSION;
  readonly splits: {
    readonly train: { readonly numClips: number };
    readonly 'held-out': { readonly numClips: number };
  };
  /** What no object in `train` is; every object in `held-out` is one of these. None in `slides` and `places`: they hold out sets. */
  readonly heldOutCombinations: readonly (Combination | Look)[];
  readonly vocabulary: readonly string[];
  readonly files: readonly ClipFile[];
}

export interface WorldSummary {
  readonly dir: string;
  readonly numClips: number;
  /** How many of them this call made; 0 if all were there. */
  readonly numGenerated: number;
  readonly sizeBytes: number;
  readonly vocabularySize: number;
}

/** There while a world is not complete, so that what is begun is not mixed with another. */
const DRAFT = '.world.partial.json';

/**
 * Makes the world that the options describe, or the rest of it.
 *
 * @throws UsageError `WORLD_OPTIONS` if an option is out of range, `WORLD_EXISTS` if the folder holds another world.
 * @throws VideoloomError `ENCODER_MISSING`, `ENCODE_FAILED`, `WORLD_PROCESS_DIED`; the signal's reason if aborted.
 */
export async function generateWorld(options: WorldOptions): Promise<WorldSummary> {
  const { dir, signal } = options;
  const parameters = checkOptions(options);
  signal?.throwIfAborted();
  const places = SPLITS.flatMap((split): ClipPlace[] => {
    const count = split === 'train' ? options.trainClips : options.heldOutClips;
    return Array.from({ length: count }, (_, index) => ({ split, index }));
  });
  const description = describe(parameters, options);
  const finished = await readDescription(join(dir, WORLD_MANIFEST), description, dir);
  const begun = finished ?? (await readDescription(join(dir, DRAFT), description, dir));
  const isComplete =
    finished !== null &&
    recordPaths(parameters, places).every((path) =>
      finished.files.some((file) => file.path === path),
    );
  if (isComplete && (await allThere(dir, finished))) {
    options.onProgress?.(places.length, places.length);
    return summarize(dir, finished, 0);
  }

  await mkdir(dir, { recursive: true });
  if (begun === null) await writeFile(join(dir, DRAFT), `${JSON.stringify(description)}\n`);
  const files = new Map<string, ClipFile[]>();
  const missing: ClipPlace[] = [];
  for (const place of places) {
    const own = begun === null ? null : await filesOf(dir, clipPaths(place, parameters.kind));
    if (own === null) missing.push(place);
    else files.set(keyOf(place), own);
  }
  let done = files.size;
  options.onProgress?.(done, places.length);
  await inProcesses(options, parameters, missing, (place, own) => {
    files.set(keyOf(place), own);
    options.onProgress?.(++done, places.length);
  });

  const manifest: WorldManifest = {
    ...description,
    files: [
      ...places.flatMap((place) => files.get(keyOf(place))!),
      ...(await writeRecords(dir, parameters, places)),
    ],
  };
  await writeFile(join(dir, `${WORLD_MANIFEST}.partial`), `${JSON.stringify(manifest, null, 1)}\n`);
  await rename(join(dir, `${WORLD_MANIFEST}.partial`), join(dir, WORLD_MANIFEST));
  await rm(join(dir, DRAFT), { force: true });
  return summarize(dir, manifest, missing.length);
}

/** What is asked and said about a clip, by the name of the file in a split's folder. */
const RECORDS: Partial<
  Readonly<Record<WorldKind, Readonly<Record<string, (truth: ControlledTruth) => object[]>>>>
> = {
  moves: {
    'questions.json': (truth) => questionsOf(truth as MovesTruth),
    'preferences.json': (truth) => preferencesOf(truth as MovesTruth),
  },
  places: { 'questions.json': (truth) => placeQuestionsOf(truth as PlacesTruth) },
};

/** The files of {@link RECORDS} that a world has. */
function recordPaths({ kind }: WorldParameters, places: readonly ClipPlace[]): string[] {
  const names = Object.keys(RECORDS[kind ?? 'stories'] ?? {});
  const splits = SPLITS.filter((split) => places.some((place) => place.split === split));
  return splits.flatMap((split) => names.map((name) => `${split}/${name}`));
}

/** {@link RECORDS} of each split, in a world that has them. */
async function writeRecords(
  dir: string,
  parameters: WorldParameters,
  places: readonly ClipPlace[],
): Promise<ClipFile[]> {
  const { kind = 'stories' } = parameters;
  if (kind === 'stories') return [];
  const files: ClipFile[] = [];
  for (const path of recordPaths(parameters, places)) {
    const [split, name] = path.split('/') as [string, string];
    const records = places
      .filter((place) => place.split === split)
      .flatMap((place) => RECORDS[kind]![name]!(controlledTruth({ ...parameters, kind }, place)));
    // One record a line, so that it can be read and cut without a parser.
    const lines = records.map((record) => JSON.stringify(record)).join(',\n');
    await writeFile(join(dir, `${path}.partial`), `[\n${lines}\n]\n`);
    await rename(join(dir, `${path}.partial`), join(dir, path));
    files.push(await fingerprint(dir, path));
  }
  return files;
}

/** What a world of each kind is like unless options say otherwise. */
const DEFAULTS: Readonly<Record<WorldKind, Omit<WorldParameters, 'seed' | 'kind'>>> = {
  stories: { width: 128, height: 128, fps: 24, seconds: 6 },
  moves: { width: 64, height: 64, fps: 16, seconds: 2 },
  slides: { width: 64, height: 64, fps: 10, seconds: 3.2 },
  places: { width: 64, height: 64, fps: 8, seconds: 1 },
};

function checkOptions(options: WorldOptions): WorldParameters {
  const { kind = 'stories' } = options;
  if (!WORLD_KINDS.includes(kind)) {
    throw new UsageError(
      'WORLD_OPTIONS',
      `cannot generate a world: kind is ${kind as string}, must be one of ${WORLD_KINDS.join(', ')}`,
    );
  }
  const defaults = DEFAULTS[kind];
  const { seed, width = defaults.width, height = defaults.height } = options;
  const { fps = defaults.fps, seconds = defaults.seconds } = options;
  const need = (isRight: boolean, what: string): void => {
    if (!isRight) throw new UsageError('WORLD_OPTIONS', `cannot generate a world: ${what}`);
  };
  const isCount = (value: number, least: number, most: number): boolean =>
    Number.isInteger(value) && value >= least && value <= most;
  need(isCount(seed, 0, Number.MAX_SAFE_INTEGER), `seed is ${seed}, must be a whole number from 0`);
  for (const [name, value] of Object.entries({ width, height })) {
    need(
      isCount(value, 64, 1024) && value % 2 === 0,
      `${name} is ${value}, must be an even number from 64 to 1024`,
    );
  }
  need(
    isCount(fps, 8, 60) && TICKS_PER_SECOND % fps === 0,
    `fps is ${fps}, must be a divisor of ${TICKS_PER_SECOND} from 8 to 60, e.g. 24 or 30`,
  );
  const least = kind === 'stories' ? 4 : 1;
  need(seconds >= least && seconds <= 20, `seconds is ${seconds}, must be from ${least} to 20`);
  if (kind !== 'stories') {
    const parts = kind === 'slides' ? SLIDES_PER_STORY : 1;
    const numFrames = (seconds * fps) / parts;
    need(
      Math.abs(numFrames - Math.round(numFrames)) < 1e-6,
      `${seconds} seconds at ${fps} frames a second are not ${parts} times a whole number of frames`,
    );
  }
  for (const name of ['trainClips', 'heldOutClips'] as const) {
    need(isCount(options[name], 0, 1e6), `${name} is ${options[name]}, must be from 0 to 1000000`);
  }
  need(options.trainClips + options.heldOutClips > 0, 'trainClips and heldOutClips are both 0');
  need(
    isCount(options.numProcesses, 1, 256),
    `numProcesses is ${options.numProcesses}, must be from 1 to 256`,
  );
  return { seed, width, height, fps, seconds, ...(kind === 'stories' ? {} : { kind }) };
}

type Contents = Pick<WorldManifest, 'heldOutCombinations' | 'vocabulary'>;

const CONTENTS: Readonly<Record<WorldKind, () => Contents>> = {
  stories: () => ({
    heldOutCombinations: combinationsOf('held-out'),
    vocabulary: worldVocabulary(),
  }),
  moves: () => ({ heldOutCombinations: looksOf('held-out'), vocabulary: movesVocabulary() }),
  slides: () => ({ heldOutCombinations: [], vocabulary: slidesVocabulary() }),
  places: () => ({ heldOutCombinations: [], vocabulary: placesVocabulary() }),
};

type WorldDescription = Omit<WorldManifest, 'files'>;

function describe(parameters: WorldParameters, options: WorldOptions): WorldDescription {
  return {
    version: WORLD_VERSION,
    ...parameters,
    splits: {
      train: { numClips: options.trainClips },
      'held-out': { numClips: options.heldOutClips },
    },
    ...CONTENTS[parameters.kind ?? 'stories'](),
  };
}

/** What the file says if it describes this very world; null if there is no file. */
async function readDescription(
  path: string,
  expected: WorldDescription,
  dir: string,
): Promise<WorldManifest | null> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  let found: Partial<WorldManifest>;
  try {
    found = JSON.parse(text) as Partial<WorldManifest>;
  } catch (cause) {
    throw otherWorld(dir, `${path} is not JSON`, cause);
  }
  const { files = [], ...description } = found;
  if (JSON.stringify(description) !== JSON.stringify(expected)) {
    const name = (Object.keys(expected) as (keyof WorldDescription)[]).find(
      (key) => JSON.stringify(description[key]) !== JSON.stringify(expected[key]),
    );
    throw otherWorld(dir, `its ${name ?? 'content'} differs from what is asked for`);
  }
  return { ...expected, files };
}

function otherWorld(dir: string, why: string, cause?: unknown): UsageError {
  return new UsageError(
    'WORLD_EXISTS',
    `${dir} holds another world (${why}). Choose another folder, or delete this one.`,
    { cause },
  );
}

async function allThere(dir: string, { files }: WorldManifest): Promise<boolean> {
  for (const { path, sizeBytes } of files) {
    const found = await stat(join(dir, path)).catch(() => null);
    if (found?.size !== sizeBytes) return false;
  }
  return true;
}

/** A clip's files if all are there; the last one is written when the others are whole. */
async function filesOf(dir: string, paths: readonly string[]): Promise<ClipFile[] | null> {
  const own: ClipFile[] = [];
  for (const path of paths.toReversed()) {
    try {
      own.unshift(await fingerprint(dir, path));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw error;
    }
  }
  return own;
}

/** Has the clips made by child processes, one clip at a time each; on the first failure or abort all of them end. */
async function inProcesses(
  options: WorldOptions,
  parameters: WorldParameters,
  places: readonly ClipPlace[],
  onClip: (place: ClipPlace, files: ClipFile[]) => void,
): Promise<void> {
  options.signal?.throwIfAborted();
  if (places.length === 0) return;
  const settings: ChildSettings = {
    dir: options.dir,
    parameters,
    ...(options.encoder === undefined ? {} : { encoder: options.encoder }),
  };
  const waiting = places.values();
  const children: ChildProcess[] = [];
  const stop = (): void => {
    for (const child of children) child.kill('SIGKILL');
  };
  options.signal?.addEventListener('abort', stop, { once: true });
  try {
    const numProcesses = Math.min(options.numProcesses, places.length);
    await Promise.all(
      Array.from({ length: numProcesses }, () => {
        const child = fork(compiled(new URL('child.ts', import.meta.url)), {
          execArgv: [],
          stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
        });
        children.push(child);
        return serve(child, settings, waiting, onClip, options.signal);
      }),
    );
  } finally {
    options.signal?.removeEventListener('abort', stop);
    stop();
  }
}

/** Sends a child one clip after the other until none is waiting. A clip that takes a minute counts as hung. */
async function serve(
  child: ChildProcess,
  settings: ChildSettings,
  waiting: Iterator<ClipPlace>,
  onClip: (place: ClipPlace, files: ClipFile[]) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  let place: ClipPlace | undefined;
  let timer: NodeJS.Timeout | undefined;
  try {
    await new Promise<void>((fulfil, reject) => {
      const died = (why: string): void => {
        if (signal?.aborted === true) {
          reject(signal.reason as Error);
          return;
        }
        const during = place === undefined ? 'starting' : `making ${keyOf(place)}`;
        reject(
          new VideoloomError(
            'WORLD_PROCESS_DIED',
            `a process that generates the world ended while ${during} (${why}). Run the same command again: it goes on ` +
              'from the clips that are finished. If it happens again, use fewer processes (memory) or another encoder.',
            { retryable: true },
          ),
        );
      };
      const send = (message: ChildSettings | ClipPlace): void => {
        clearTimeout(timer);
        timer = setTimeout(() => {
          died(`no answer within ${CLIP_TIMEOUT_MS} ms`);
        }, CLIP_TIMEOUT_MS);
        child.send(message, (error) => {
          if (error !== null) died(messageOf(error));
        });
      };
      child.on('error', (error) => {
        died(messageOf(error));
      });
      child.on('exit', (code, cause) => {
        died(cause ?? `exit status ${code ?? 'none'}`);
      });
      child.on('message', (message: ChildMessage) => {
        if (message.type === 'failed') {
          reject(new VideoloomError(message.code, message.message));
          return;
        }
        if (message.type === 'made') onClip(place!, message.files);
        const next = waiting.next();
        if (next.done === true) {
          fulfil();
          return;
        }
        place = next.value;
        send(place);
      });
      send(settings);
    });
  } finally {
    clearTimeout(timer);
    child.removeAllListeners('exit');
    child.kill('SIGKILL');
  }
}

const CLIP_TIMEOUT_MS = 60_000;

function keyOf({ split, index }: ClipPlace): string {
  return `${split}/${index}`;
}

function summarize(dir: string, manifest: WorldManifest, numGenerated: number): WorldSummary {
  return {
    dir,
    numClips: manifest.splits.train.numClips + manifest.splits['held-out'].numClips,
    numGenerated,
    sizeBytes: manifest.files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    vocabularySize: manifest.vocabulary.length,
  };
}
