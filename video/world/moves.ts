/**
 * The world `moves`: one object, one motion, one sound, one spoken word. Each frame by itself, and all frames without
 * their order, tell nothing of which of two opposite motions it is. Pure.
 */
import { openRng, type Rng } from '../../proto/random.ts';
import type { Combination, Split } from './combinations.ts';
import {
  balanced,
  plainBackground,
  round,
  trackedObject,
  type ControlledPlace,
} from './controlled.ts';
import {
  CONTROLLED_TRUTH_VERSION,
  MOVES,
  SPOKEN_WORDS,
  type Move,
  type MovesTruth,
} from './controlled-truth.ts';
import type { Vector } from './ground-truth.ts';
import {
  BACKGROUND_COLOUR_NAMES,
  BACKGROUND_COLOURS,
  COLOUR_NAMES,
  PATTERNS,
  SHAPES,
  type BackgroundColour,
  type Colour,
  type Pattern,
} from './palette.ts';
import { SAMPLE_RATE } from './sound.ts';
import { frequenciesOf, SOUNDS, type ToneSpan } from './tones.ts';

export type Look = Pick<Combination, 'shape' | 'colour'>;

const HELD_OUT_ONE_IN = 5;

/** The (shape, colour) of a split: a fifth is held out, and each shape and each colour is in both. */
export function looksOf(split: Split): Look[] {
  return SHAPES.flatMap((shape, i) =>
    COLOUR_NAMES.flatMap((colour, j): Look[] =>
      ((i + j) % HELD_OUT_ONE_IN === 0) === (split === 'held-out') ? [{ shape, colour }] : [],
    ),
  );
}

/** Half the object's square, as shares of the picture's shorter side: the smallest and the biggest. */
const RADIUS = [0.15, 0.25] as const;
/** How much of its way an object goes in a clip. */
const TRAVEL = [0.6, 0.9] as const;
/** One caption for one thing to be seen: what retrieval and exact captions are measured by. */
const CAPTION = '{a} moves {motion}';
/** The subtitle. */
const SPOKEN = 'the word is {word}';

/** Every word of captions and subtitles, sorted. */
export function movesVocabulary(): string[] {
  const texts = [CAPTION, SPOKEN, ...COLOUR_NAMES, ...SHAPES, ...MOVES, ...SPOKEN_WORDS];
  const words = texts.flatMap((text) => text.replaceAll(/\{\w+\}/g, ' ').split(/\s+/));
  return [...new Set([...words, 'a', 'an'].filter((word) => word !== ''))].sort();
}

/** Everything that is true of a clip but its name. */
export function planMoves(place: ControlledPlace): Omit<MovesTruth, 'id'> {
  const { seed, width, height, fps, seconds, split, index } = place;
  const rng = openRng(seed, `moves ${split}`, index);
  const look = balanced(looksOf(split), 'look', place);
  const motion = balanced(MOVES, 'motion', place);
  const word = balanced(SPOKEN_WORDS, 'word', place);
  const ptsSeconds = Array.from({ length: Math.round(seconds * fps) }, (_, i) => round(i / fps, 6));
  const { places, jumpSeconds } = wayOf(motion, ptsSeconds, place, rng.fork('way'));
  return {
    schemaVersion: CONTROLLED_TRUTH_VERSION,
    kind: 'moves',
    ...{ split, seed, index, width, height, fps, durationSeconds: seconds },
    motion,
    word,
    jumpSeconds,
    frames: { ptsSeconds, shots: ptsSeconds.map(() => 0) },
    audio: { sampleRate: SAMPLE_RATE, numChannels: 2 },
    shots: [
      {
        ...{ index: 0, startSeconds: 0, endSeconds: seconds },
        ...{ firstFrame: 0, numFrames: ptsSeconds.length },
        background: backgroundFor(look.colour, rng.fork('background')),
        walls: [],
      },
    ],
    objects: [trackedObject({ shot: 0, firstFrame: 0, ...look }, places)],
    tones: [toneOf(place, rng.fork('tone'))],
    caption: { text: captionOf(look, motion) },
    subtitles: [subtitleOf(word, seconds, rng.fork('subtitle'))],
  };
}

/**
 * Where the object is. Its place across and along the picture and its size are each uniform on a ring, and the motion
 * turns one of the three rings evenly, one way or the other: so at any moment all three are uniform and independent,
 * whatever the motion, and the places that one direction comes through are as likely those of the other. The price is a
 * jump where a ring closes.
 */
function wayOf(
  motion: Move,
  ptsSeconds: readonly number[],
  { width, height, seconds }: ControlledPlace,
  rng: Rng,
): {
  readonly places: { readonly center: Vector; readonly radius: number }[];
  readonly jumpSeconds: number[];
} {
  const [smallest, biggest] = RADIUS.map((share) => share * Math.min(width, height)) as [
    number,
    number,
  ];
  const starts = [rng.uniform(), rng.uniform(), rng.uniform()] as const;
  const travel = TRAVEL[0] + (TRAVEL[1] - TRAVEL[0]) * rng.uniform();
  const [ring, direction] = TURNS[motion];
  const turned = (time: number): number => starts[ring] + (direction * travel * time) / seconds;
  const places = ptsSeconds.map((time) => {
    const [across, down, size] = starts.map((start, i) => {
      const at = i === ring ? turned(time) : start;
      return at - Math.floor(at);
    }) as [number, number, number];
    const center: Vector = [
      biggest + (width - 2 * biggest) * across,
      biggest + (height - 2 * biggest) * down,
    ];
    return { center, radius: smallest * (biggest / smallest) ** size };
  });
  const toEnd = direction > 0 ? 1 - starts[ring] : starts[ring];
  const jump = (toEnd / travel) * seconds;
  return { places, jumpSeconds: jump < seconds ? [round(jump, 6)] : [] };
}

/** Which of the rings (across, down, size) a motion turns, and which way. */
const TURNS: Readonly<Record<Move, readonly [ring: 0 | 1 | 2, direction: 1 | -1]>> = {
  left: [0, -1],
  right: [0, 1],
  up: [1, -1],
  down: [1, 1],
  nearer: [2, 1],
  farther: [2, -1],
};

function backgroundFor(colour: Colour, rng: Rng) {
  const fitting = BACKGROUND_COLOUR_NAMES.filter((name: BackgroundColour) => {
    const clashes: readonly Colour[] = BACKGROUND_COLOURS[name].clashes;
    return !clashes.includes(colour);
  });
  const ground = fitting[rng.integer(fitting.length)]!;
  const pattern: Pattern = rng.uniform() < 0.5 ? 'plain' : PATTERNS[rng.integer(PATTERNS.length)]!;
  return plainBackground(ground, pattern);
}

function toneOf(place: ControlledPlace, rng: Rng): ToneSpan {
  const sound = balanced(SOUNDS, 'sound', place);
  const startSeconds = round(place.seconds * (0.05 + 0.1 * rng.uniform()), 3);
  return {
    sound,
    startSeconds,
    endSeconds: round(startSeconds + 0.75 * place.seconds, 3),
    frequenciesHz: frequenciesOf(sound, 0.95 + 0.1 * rng.uniform()),
    amplitude: round(0.2 + 0.2 * rng.uniform(), 3),
  };
}

function captionOf({ colour, shape }: Look, motion: Move): string {
  const noun = `${/^[aeiou]/.test(colour) ? 'an' : 'a'} ${colour} ${shape}`;
  return CAPTION.replace('{a}', noun).replace('{motion}', motion);
}

function subtitleOf(word: string, seconds: number, rng: Rng) {
  return {
    startSeconds: round(seconds * 0.15 * rng.uniform(), 3),
    endSeconds: round(seconds * (0.85 + 0.15 * rng.uniform()), 3),
    text: SPOKEN.replace('{word}', word),
  };
}
