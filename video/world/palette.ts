/** The closed set of things that the world is made of, and how they look. Words and pictures both follow from here. */

export type Rgb = readonly [red: number, green: number, blue: number];

/** sRGB, 0 to 255. */
export const COLOURS = {
  red: [222, 40, 40],
  orange: [250, 140, 25],
  yellow: [250, 222, 55],
  green: [60, 185, 75],
  blue: [45, 95, 235],
  purple: [150, 60, 205],
  pink: [250, 130, 190],
  white: [245, 245, 245],
} as const satisfies Record<string, Rgb>;
export type Colour = keyof typeof COLOURS;
export const COLOUR_NAMES = Object.keys(COLOURS) as readonly Colour[];

export const SHAPES = ['circle', 'square', 'triangle', 'star', 'diamond'] as const;
export type Shape = (typeof SHAPES)[number];

export const MOTIONS = [
  'right',
  'left',
  'up',
  'down',
  'diagonal',
  'zigzag',
  'loop',
  'bounce',
  'stop',
  'collide',
] as const;
export type Motion = (typeof MOTIONS)[number];

export const SIDES = ['left', 'right', 'top', 'bottom'] as const;
export type Side = (typeof SIDES)[number];

/** Two tones each, muted, so that every object colour but the named ones stands out. */
export const BACKGROUND_COLOURS = {
  black: {
    tones: [
      [16, 16, 20],
      [40, 40, 48],
    ],
    clashes: [],
  },
  grey: {
    tones: [
      [104, 106, 112],
      [134, 136, 142],
    ],
    clashes: [],
  },
  brown: {
    tones: [
      [84, 56, 36],
      [112, 78, 52],
    ],
    clashes: [],
  },
  sand: {
    tones: [
      [206, 192, 160],
      [184, 168, 134],
    ],
    clashes: ['white', 'yellow', 'pink'],
  },
  teal: {
    tones: [
      [14, 84, 88],
      [28, 112, 116],
    ],
    clashes: ['green'],
  },
  navy: {
    tones: [
      [16, 26, 76],
      [34, 48, 108],
    ],
    clashes: ['blue', 'purple'],
  },
  olive: {
    tones: [
      [70, 80, 30],
      [96, 106, 48],
    ],
    clashes: ['green'],
  },
  mint: {
    tones: [
      [168, 214, 190],
      [142, 192, 166],
    ],
    clashes: ['white', 'green', 'pink'],
  },
} as const satisfies Record<string, { tones: readonly [Rgb, Rgb]; clashes: readonly Colour[] }>;
export type BackgroundColour = keyof typeof BACKGROUND_COLOURS;
export const BACKGROUND_COLOUR_NAMES = Object.keys(
  BACKGROUND_COLOURS,
) as readonly BackgroundColour[];

export const PATTERNS = ['plain', 'fade', 'stripes', 'checks', 'dots'] as const;
export type Pattern = (typeof PATTERNS)[number];
