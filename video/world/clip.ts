/** One clip from its place in the world: ground truth, then files. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openRng, type Rng } from '../../proto/random.ts';
import type { Split } from './combinations.ts';
import type { ControlledTruth } from './controlled-truth.ts';
import type { ClipMedia, Encoder } from './encode.ts';
import { GROUND_TRUTH_VERSION, type GroundTruth } from './ground-truth.ts';
import { planMoves } from './moves.ts';
import { planPlaces } from './places.ts';
import { caption, subtitles, toWebVtt } from './narrate.ts';
import { renderFrames } from './render.ts';
import { planScene, TICKS_PER_SECOND, type Scene } from './scene.ts';
import { planSlides } from './slides.ts';
import { renderSound, SAMPLE_RATE } from './sound.ts';
import { renderTones } from './tones.ts';
import { truthOf } from './truth.ts';
import type { ControlledKind } from './world-kinds.ts';

/** What a clip is fixed by, beside its place. */
export interface WorldParameters {
  readonly seed: number;
  readonly width: number;
  readonly height: number;
  readonly fps: number;
  readonly seconds: number;
  /** Absent: `stories`. */
  readonly kind?: ControlledKind;
}

export interface ClipPlace {
  readonly split: Split;
  readonly index: number;
}

export interface ClipFile {
  /** Relative to the world's folder, with slashes. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly sha256: string;
}

const GOP_SIZE = 48;
const IRREGULAR_ONE_IN = 20;

/** `train-0007`; unique in the world. */
export function clipId({ split, index }: ClipPlace): string {
  return `${split}-${String(index).padStart(4, '0')}`;
}

/**
 * The paths of a clip's files in the order in which they are written: the ground truth last. Where subtitles tell
 * something else than the caption they are named by their language, so that the caption stays the clip's text; where
 * nothing is said there are none.
 */
export function clipPaths(place: ClipPlace, kind?: ControlledKind): string[] {
  const subtitleEndings = kind === 'places' ? [] : [kind === 'moves' ? 'en.vtt' : 'vtt'];
  const endings = ['mp4', 'txt', ...subtitleEndings, 'json'];
  return endings.map((ending) => `${place.split}/${clipId(place)}.${ending}`);
}

/** Everything that is true of a clip of a controlled world. Pure. */
export function controlledTruth(
  { kind, ...parameters }: WorldParameters & { readonly kind: ControlledKind },
  place: ClipPlace,
): ControlledTruth {
  const all = { ...parameters, ...place };
  const id = clipId(place);
  switch (kind) {
    case 'moves':
      return { id, ...planMoves(all) };
    case 'slides':
      return { id, ...planSlides(all) };
    case 'places':
      return { id, ...planPlaces(all) };
  }
}

/** Everything that is true of the clip of `stories`. Pure. */
export function clipTruth(parameters: WorldParameters, place: ClipPlace): GroundTruth {
  return plan(parameters, place).truth;
}

function plan(
  parameters: WorldParameters,
  place: ClipPlace,
): { truth: GroundTruth; ptsTicks: number[]; durationTicks: number } {
  const { seed, width, height, fps, seconds } = parameters;
  const rng = openRng(seed, `world ${place.split}`, place.index);
  const scene = planScene({ split: place.split, width, height, fps, seconds }, rng.fork('scene'));
  const isConstantFrameRate = place.index % IRREGULAR_ONE_IN !== 3;
  const ptsTicks = frameTimes(scene, fps, isConstantFrameRate, rng.fork('frame times'));
  const seen = truthOf(scene, ptsTicks, { width, height });
  const durationSeconds = scene.durationTicks / TICKS_PER_SECOND;
  const actions = scene.shots.map((shot) => shot.actions);
  const truth: GroundTruth = {
    schemaVersion: GROUND_TRUTH_VERSION,
    id: clipId(place),
    ...place,
    seed,
    width,
    height,
    fps,
    isConstantFrameRate,
    durationSeconds,
    audio: { sampleRate: SAMPLE_RATE, numChannels: 2 },
    physics: seen.physics,
    frames: seen.frames,
    shots: seen.shots,
    objects: seen.objects,
    events: seen.events,
    caption: caption(seen, actions, rng.fork('caption')),
    subtitles: subtitles(seen, actions, durationSeconds, rng.fork('subtitles')),
  };
  return { truth, ptsTicks, durationTicks: scene.durationTicks };
}

/** Evenly spaced, or as phones record: some frames lost, the others up to a quarter of their distance off. */
function frameTimes(scene: Scene, fps: number, isConstant: boolean, rng: Rng): number[] {
  const ticksPerFrame = TICKS_PER_SECOND / fps;
  const jitter = Math.floor(ticksPerFrame / 4);
  const ticks: number[] = [];
  for (let tick = 0; tick < scene.durationTicks; tick += ticksPerFrame) {
    if (isConstant || tick === 0) ticks.push(tick);
    else if (rng.uniform() >= 0.2) ticks.push(tick + rng.integer(2 * jitter + 1) - jitter);
  }
  return ticks;
}

/** The clip as frames and samples, for an encoder. */
export function clipMedia(
  parameters: WorldParameters,
  place: ClipPlace,
): { truth: GroundTruth | ControlledTruth; media: ClipMedia } {
  const { kind } = parameters;
  if (kind !== undefined) return controlledMedia(controlledTruth({ ...parameters, kind }, place));
  const { truth, ptsTicks, durationTicks } = plan(parameters, place);
  const media: ClipMedia = {
    width: truth.width,
    height: truth.height,
    ticksPerSecond: TICKS_PER_SECOND,
    ptsTicks,
    durationTicks,
    isConstantRate: truth.isConstantFrameRate,
    gopSize: GOP_SIZE,
    frames: renderFrames(truth),
    sampleRate: SAMPLE_RATE,
    samples: renderSound(truth.events, truth.durationSeconds),
  };
  return { truth, media };
}

function controlledMedia(truth: ControlledTruth): { truth: ControlledTruth; media: ClipMedia } {
  const { width, height, fps, durationSeconds } = truth;
  const ticksPerFrame = TICKS_PER_SECOND / fps;
  const media: ClipMedia = {
    width,
    height,
    ticksPerSecond: TICKS_PER_SECOND,
    ptsTicks: truth.frames.ptsSeconds.map((_, i) => i * ticksPerFrame),
    durationTicks: truth.frames.ptsSeconds.length * ticksPerFrame,
    isConstantRate: true,
    gopSize: GOP_SIZE,
    frames: renderFrames(truth),
    sampleRate: SAMPLE_RATE,
    samples: renderTones(truth.tones, durationSeconds),
  };
  return { truth, media };
}

/** Writes the clip's files under `dir`, each to a temporary name first, the ground truth last. */
export async function writeClip(
  dir: string,
  parameters: WorldParameters,
  place: ClipPlace,
  encoder: Encoder,
): Promise<ClipFile[]> {
  const { truth, media } = clipMedia(parameters, place);
  await mkdir(join(dir, place.split), { recursive: true });
  const texts = [
    `${truth.caption.text}\n`,
    ...(parameters.kind === 'places' ? [] : [toWebVtt(truth.subtitles)]),
    `${JSON.stringify(truth)}\n`,
  ];
  const files: ClipFile[] = [];
  for (const [i, path] of clipPaths(place, parameters.kind).entries()) {
    const [target, draft] = [join(dir, path), join(dir, `${path}.partial`)];
    if (i === 0) await encoder.encode(media, draft);
    else await writeFile(draft, texts[i - 1]!);
    await rename(draft, target);
    files.push(await fingerprint(dir, path));
  }
  return files;
}

/** The size and hash of a file that is there. */
export async function fingerprint(dir: string, path: string): Promise<ClipFile> {
  const bytes = await readFile(join(dir, path));
  return {
    path,
    sizeBytes: bytes.length,
    sha256: createHash('sha256').update(bytes).digest('hex'),
  };
}
