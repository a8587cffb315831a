/**
 * The world `slides`: stories of four still scenes in random order, each with a sentence that tells which it is. Only
 * the words tell the order. Pure. Like the stories (ST) that MERLOT's reordering is checked on.
 */
import { openRng, shuffled, type Rng } from '../../proto/random.ts';
import type { Split } from './combinations.ts';
import { plainBackground, round, trackedObject, type ControlledPlace } from './controlled.ts';
import { CONTROLLED_TRUTH_VERSION, type SlidesTruth } from './controlled-truth.ts';
import type { Look } from './moves.ts';
import { PATTERNS, type BackgroundColour } from './palette.ts';
import { SAMPLE_RATE } from './sound.ts';
import { frequenciesOf, SOUNDS, type ToneSpan } from './tones.ts';

export const SLIDES_PER_STORY = 4;

export interface SlideScene extends Look {
  readonly ground: BackgroundColour;
}

const OBJECTS: readonly Look[] = [
  { colour: 'red', shape: 'circle' },
  { colour: 'yellow', shape: 'star' },
  { colour: 'white', shape: 'square' },
  { colour: 'pink', shape: 'triangle' },
];
const GROUNDS: readonly BackgroundColour[] = ['black', 'brown', 'teal'];

/** The twelve scenes that all stories are made of. */
export const SLIDE_SCENES: readonly SlideScene[] = GROUNDS.flatMap((ground) =>
  OBJECTS.map((look): SlideScene => ({ ...look, ground })),
);

const HELD_OUT_ONE_IN = 5;

/** Which split has the stories of these scenes: what is held out is the set, in whatever order. */
export function splitOfStory(scenes: readonly number[]): Split {
  const sum = scenes.reduce((total, scene) => total + scene, 0);
  return sum % HELD_OUT_ONE_IN === 0 ? 'held-out' : 'train';
}

/** What is said of a scene: `the red circle on black`. */
export function sceneSentence({ colour, shape, ground }: SlideScene): string {
  return `the ${colour} ${shape} on ${ground}`;
}

/** Every word of captions and subtitles, sorted. */
export function slidesVocabulary(): string[] {
  const words = SLIDE_SCENES.flatMap((scene) => sceneSentence(scene).split(' '));
  return [...new Set([...words, 'then'])].sort();
}

/** Share of the picture's shorter side that is half the object's square: least and most. */
const RADIUS = [0.2, 0.3] as const;
/** Silence between sentences, and at the ends of tones. */
const PAUSE_SECONDS = 0.05;

/** Everything that is true of a clip but its name. */
export function planSlides(place: ControlledPlace): Omit<SlidesTruth, 'id'> {
  const { seed, width, height, fps, seconds, split, index } = place;
  const rng = openRng(seed, `slides ${split}`, index);
  const scenes = storyOf(split, rng.fork('story'));
  const framesPerSlide = Math.round((seconds * fps) / SLIDES_PER_STORY);
  const slideSeconds = seconds / SLIDES_PER_STORY;
  const shots = scenes.map((scene, shot) => {
    const own = rng.fork('pattern', shot);
    return {
      index: shot,
      startSeconds: round(shot * slideSeconds, 6),
      endSeconds: round((shot + 1) * slideSeconds, 6),
      firstFrame: shot * framesPerSlide,
      numFrames: framesPerSlide,
      background: plainBackground(
        SLIDE_SCENES[scene]!.ground,
        PATTERNS[own.integer(PATTERNS.length)]!,
      ),
      walls: [],
    };
  });
  const objects = scenes.map((scene, shot) => {
    const own = rng.fork('place', shot);
    const radius = Math.min(width, height) * (RADIUS[0] + (RADIUS[1] - RADIUS[0]) * own.uniform());
    const within = (side: number): number => radius + (side - 2 * radius) * own.uniform();
    const still = { center: [within(width), within(height)] as const, radius };
    const { colour, shape } = SLIDE_SCENES[scene]!;
    return trackedObject(
      { shot, colour, shape, firstFrame: shot * framesPerSlide },
      Array.from({ length: framesPerSlide }, () => still),
    );
  });
  const sentences = scenes.map((scene) => sceneSentence(SLIDE_SCENES[scene]!));
  return {
    schemaVersion: CONTROLLED_TRUTH_VERSION,
    kind: 'slides',
    ...{ split, seed, index, width, height, fps, durationSeconds: seconds, scenes },
    frames: {
      ptsSeconds: Array.from({ length: framesPerSlide * SLIDES_PER_STORY }, (_, i) =>
        round(i / fps, 6),
      ),
      shots: scenes.flatMap((_, shot) => Array.from({ length: framesPerSlide }, () => shot)),
    },
    audio: { sampleRate: SAMPLE_RATE, numChannels: 2 },
    shots,
    objects,
    tones: shots.map((shot) => toneOf(shot, rng.fork('tone', shot.index))),
    caption: { text: sentences.join(' then ') },
    subtitles: shots.map(({ startSeconds, endSeconds }, shot) => ({
      startSeconds: round(startSeconds + PAUSE_SECONDS, 3),
      endSeconds: round(endSeconds - PAUSE_SECONDS, 3),
      text: sentences[shot]!,
    })),
  };
}

/** Four scenes of a set of the split, all sets and all orders equally likely. */
function storyOf(split: Split, rng: Rng): number[] {
  for (;;) {
    const scenes = shuffled([...SLIDE_SCENES.keys()], rng).slice(0, SLIDES_PER_STORY);
    if (splitOfStory(scenes) === split) return scenes;
  }
}

function toneOf(
  { startSeconds, endSeconds }: { readonly startSeconds: number; readonly endSeconds: number },
  rng: Rng,
): ToneSpan {
  const sound = SOUNDS[rng.integer(SOUNDS.length)]!;
  return {
    sound,
    startSeconds: round(startSeconds + PAUSE_SECONDS, 3),
    endSeconds: round(endSeconds - PAUSE_SECONDS, 3),
    frequenciesHz: frequenciesOf(sound, 0.95 + 0.1 * rng.uniform()),
    amplitude: round(0.2 + 0.2 * rng.uniform(), 3),
  };
}
