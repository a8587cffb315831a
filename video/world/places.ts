/**
 * The world `places`: still pictures of one or two objects, each with a colour and in a quarter of the picture of its own.
 * Pure.
 */
import { openRng, shuffled, type Rng } from '../../proto/random.ts';
import type { Split } from './combinations.ts';
import {
  balanced,
  plainBackground,
  round,
  trackedObject,
  type ControlledPlace,
} from './controlled.ts';
import { CONTROLLED_TRUTH_VERSION, type PlacesTruth } from './controlled-truth.ts';
import type { Box } from './ground-truth.ts';
import type { Look } from './moves.ts';
import {
  BACKGROUND_COLOUR_NAMES,
  BACKGROUND_COLOURS,
  COLOUR_NAMES,
  PATTERNS,
  SHAPES,
  type BackgroundColour,
  type Colour,
  type Shape,
} from './palette.ts';
import { SAMPLE_RATE } from './sound.ts';

/** How many objects pictures have, equally often. */
export const OBJECTS_PER_PLACE = [1, 2] as const;
/** Those that are told apart when a few pixels show them. */
export const PLACED_SHAPES = ['circle', 'square', 'triangle'] as const satisfies readonly Shape[];

/** In the order in which a picture is read. */
export const QUARTERS = ['top left', 'top right', 'bottom left', 'bottom right'] as const;
export type Quarter = (typeof QUARTERS)[number];

const HELD_OUT_ONE_IN = 5;

/** An object and the quarter that it is in. */
export interface PlacedLook extends Look {
  readonly quarter: Quarter;
}

/** Which split has the pictures of these objects there: each of them is seen in training, in other quarters or company. */
export function splitOfPlaced(placed: readonly PlacedLook[]): Split {
  const sum = placed.reduce(
    (total, { shape, colour, quarter }) =>
      total + SHAPES.indexOf(shape) + COLOUR_NAMES.indexOf(colour) + 2 * QUARTERS.indexOf(quarter),
    0,
  );
  return sum % HELD_OUT_ONE_IN === 0 ? 'held-out' : 'train';
}

/** Every word of captions, sorted. */
export function placesVocabulary(): string[] {
  const words = QUARTERS.flatMap((quarter) => quarter.split(' '));
  return [...new Set([...words, ...COLOUR_NAMES, ...PLACED_SHAPES, 'a', 'an'])].sort();
}

/** Half the object's square, as shares of the picture's shorter side: least and most. */
const RADIUS = [0.16, 0.24] as const;
/** How far a centre is from the middle lines at least, as a share of the side: a quarter is never a matter of a pixel. */
const MARGIN = 0.05;

/** Everything that is true of a clip but its name. */
export function planPlaces(place: ControlledPlace): Omit<PlacesTruth, 'id'> {
  const { seed, width, height, fps, seconds, split, index } = place;
  const rng = openRng(seed, `places ${split}`, index);
  const number = balanced(OBJECTS_PER_PLACE, 'number', place);
  const looks = placedFor(split, number, rng.fork('looks'));
  const numFrames = Math.round(seconds * fps);
  const objects = arranged(looks, place, rng.fork('arrangement')).map(
    ({ look, center, radius }, i) => ({
      ...trackedObject(
        { shot: 0, firstFrame: 0, ...look },
        Array.from({ length: numFrames }, () => ({ center, radius })),
      ),
      id: `o${i + 1}`,
    }),
  );
  const sides = { width, height };
  const clauses = objects.map(({ colour, shape, track }) => {
    const noun = `${/^[aeiou]/.test(colour) ? 'an' : 'a'} ${colour} ${shape}`;
    return `${noun} ${quarterOf(track.centers[0]!, sides)}`;
  });
  return {
    schemaVersion: CONTROLLED_TRUTH_VERSION,
    kind: 'places',
    ...{ split, seed, index, width, height, fps, durationSeconds: seconds },
    frames: {
      ptsSeconds: Array.from({ length: numFrames }, (_, i) => round(i / fps, 6)),
      shots: Array.from({ length: numFrames }, () => 0),
    },
    audio: { sampleRate: SAMPLE_RATE, numChannels: 2 },
    shots: [
      {
        ...{ index: 0, startSeconds: 0, endSeconds: seconds, firstFrame: 0, numFrames },
        background: backgroundFor(
          looks.map(({ colour }) => colour),
          rng.fork('background'),
        ),
        walls: [],
      },
    ],
    objects,
    tones: [],
    caption: { text: clauses.join(' , ') },
    subtitles: [],
  };
}

/** The quarter of the picture that a point lies in. */
export function quarterOf(
  [x, y]: readonly [number, number],
  { width, height }: Pick<ControlledPlace, 'width' | 'height'>,
): Quarter {
  return QUARTERS[(y < height / 2 ? 0 : 2) + (x < width / 2 ? 0 : 1)]!;
}

/** Objects of the split in the order of their quarters, no colour and no quarter twice, all equally likely. */
function placedFor(split: Split, number: number, rng: Rng): PlacedLook[] {
  for (;;) {
    const colours = shuffled(COLOUR_NAMES, rng);
    const quarters = shuffled([...QUARTERS.keys()], rng)
      .slice(0, number)
      .sort();
    const placed = quarters.map((quarter, i) => ({
      colour: colours[i]!,
      shape: PLACED_SHAPES[rng.integer(PLACED_SHAPES.length)]!,
      quarter: QUARTERS[quarter]!,
    }));
    if (splitOfPlaced(placed) === split) return placed;
  }
}

interface Placed {
  readonly look: Look;
  readonly center: readonly [x: number, y: number];
  readonly radius: number;
}

/** The objects in their quarters, whole in the picture and none over another. */
function arranged(
  looks: readonly PlacedLook[],
  { width, height }: Pick<ControlledPlace, 'width' | 'height'>,
  rng: Rng,
): Placed[] {
  const side = Math.min(width, height);
  for (;;) {
    const placed = looks.map(({ quarter, ...look }): Placed => {
      const radius = side * (RADIUS[0] + (RADIUS[1] - RADIUS[0]) * rng.uniform());
      const along = (length: number, isSecond: boolean): number => {
        const within = radius + (length * (0.5 - MARGIN) - radius) * rng.uniform();
        return isSecond ? length - within : within;
      };
      const center = [
        along(width, quarter.endsWith('right')),
        along(height, quarter.startsWith('bottom')),
      ] as const;
      return { look, radius, center };
    });
    const boxes = placed.map(({ center: [x, y], radius }): Box => [
      x - radius,
      y - radius,
      x + radius,
      y + radius,
    ]);
    const isFree = boxes.every((one, i) => boxes.slice(i + 1).every((other) => !meet(one, other)));
    if (isFree) return placed;
  }
}

function meet(a: Box, b: Box): boolean {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

function backgroundFor(colours: readonly Colour[], rng: Rng) {
  const fitting = BACKGROUND_COLOUR_NAMES.filter((name: BackgroundColour) => {
    const clashes: readonly Colour[] = BACKGROUND_COLOURS[name].clashes;
    return !colours.some((colour) => clashes.includes(colour));
  });
  const ground = fitting[rng.integer(fitting.length)]!;
  return plainBackground(ground, PATTERNS[rng.integer(PATTERNS.length)]!);
}
