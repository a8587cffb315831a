/** What the controlled worlds share: facts that come equally often, and tracks of an object that is whole in the picture. */
import { openRng, shuffled } from '../../proto/random.ts';
import type { Split } from './combinations.ts';
import type { ControlledObject } from './controlled-truth.ts';
import type { Background, Box, Vector } from './ground-truth.ts';
import {
  BACKGROUND_COLOURS,
  COLOURS,
  type BackgroundColour,
  type Colour,
  type Pattern,
  type Shape,
} from './palette.ts';
import { backgroundName } from './scene.ts';
import { EXTENTS } from './shapes.ts';

/** Where a clip is, and what it is fixed by. */
export interface ControlledPlace {
  readonly seed: number;
  readonly width: number;
  readonly height: number;
  readonly fps: number;
  readonly seconds: number;
  readonly split: Split;
  readonly index: number;
}

/**
 * One of the items for each index: every run of as many clips as there are items has each of them once, in an order of
 * its own. So chance is exactly one in so many, and what two purposes draw is independent.
 */
export function balanced<T>(
  items: readonly T[],
  purpose: string,
  { seed, split, index }: Pick<ControlledPlace, 'seed' | 'split' | 'index'>,
): T {
  const run = Math.floor(index / items.length);
  const rng = openRng(seed, `balanced ${purpose} ${split}`, run);
  return shuffled(items, rng)[index % items.length]!;
}

export function plainBackground(colour: BackgroundColour, pattern: Pattern): Background {
  const { tones } = BACKGROUND_COLOURS[colour];
  return { colour, pattern, tones, name: backgroundName(colour, pattern) };
}

/** An object from where it is, and how big, in each frame of its shot. */
export function trackedObject(
  {
    shot,
    shape,
    colour,
    firstFrame,
  }: {
    readonly shot: number;
    readonly shape: Shape;
    readonly colour: Colour;
    readonly firstFrame: number;
  },
  places: readonly { readonly center: Vector; readonly radius: number }[],
): ControlledObject {
  const [left, top, right, bottom] = EXTENTS[shape];
  const radii = places.map(({ radius }) => round(radius, 3));
  const centers = places.map(({ center: [x, y] }): Vector => [round(x, 3), round(y, 3)]);
  const boxes = centers.map(([x, y], i): Box => {
    const radius = radii[i]!;
    return [
      round(x + left * radius, 2),
      round(y + top * radius, 2),
      round(x + right * radius, 2),
      round(y + bottom * radius, 2),
    ];
  });
  return {
    ...{ id: `o${shot + 1}`, shot, shape, colour, rgb: COLOURS[colour], radius: radii[0]! },
    track: { firstFrame, centers, boxes, radii },
  };
}

export function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}
