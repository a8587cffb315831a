/** Which (shape, colour, motion) an object may have in which split: composition is tested on combinations never seen. */
import { COLOUR_NAMES, MOTIONS, SHAPES, type Colour, type Motion, type Shape } from './palette.ts';

export const SPLITS = ['train', 'held-out'] as const;
export type Split = (typeof SPLITS)[number];

export interface Combination {
  readonly shape: Shape;
  readonly colour: Colour;
  readonly motion: Motion;
}

const HELD_OUT_ONE_IN = 5;

/**
 * A fifth of all combinations is held out, along the diagonals of the cube: so each pair of words (red + circle,
 * circle + falls, red + falls) is seen in training with four fifths of the third words, and each word in both splits.
 */
export function splitOf({ shape, colour, motion }: Combination): Split {
  const sum = SHAPES.indexOf(shape) + COLOUR_NAMES.indexOf(colour) + MOTIONS.indexOf(motion);
  return sum % HELD_OUT_ONE_IN === 0 ? 'held-out' : 'train';
}

/** All combinations of a split, in a fixed order. */
export function combinationsOf(split: Split): Combination[] {
  return SHAPES.flatMap((shape) =>
    COLOUR_NAMES.flatMap((colour) =>
      MOTIONS.map((motion): Combination => ({ shape, colour, motion })),
    ),
  ).filter((combination) => splitOf(combination) === split);
}
