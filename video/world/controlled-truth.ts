/**
 * The schema of `<id>.json` in the controlled worlds `moves`, `slides` and `places`: everything that is true of a clip. Pixels from
 * the top left; seconds from the start.
 */
import type { Split } from './combinations.ts';
import type { Box, Shot, Vector } from './ground-truth.ts';
import type { Colour, Rgb, Shape } from './palette.ts';
import type { ToneSpan } from './tones.ts';
import type { ControlledKind } from './world-kinds.ts';

export const CONTROLLED_TRUTH_VERSION = 1;

interface ClipTruth {
  readonly schemaVersion: typeof CONTROLLED_TRUTH_VERSION;
  readonly kind: ControlledKind;
  readonly id: string;
  readonly split: Split;
  readonly seed: number;
  /** Position in the split: with `seed`, `split` and `kind` it fixes the clip. */
  readonly index: number;
  readonly width: number;
  readonly height: number;
  readonly fps: number;
  readonly durationSeconds: number;
  readonly frames: {
    readonly ptsSeconds: readonly number[];
    /** The shot each frame belongs to. */
    readonly shots: readonly number[];
  };
  readonly audio: { readonly sampleRate: number; readonly numChannels: 2 };
  readonly shots: readonly Shot[];
  /** One a shot, in its order; in `places` several of the one shot, in the order in which a picture is read. */
  readonly objects: readonly ControlledObject[];
  /** What is heard, in the order of time; drawn independently of all else. */
  readonly tones: readonly ToneSpan[];
  readonly caption: { readonly text: string };
  readonly subtitles: readonly ControlledSubtitle[];
}

/** How the object of a clip of `moves` moves: in the picture, or (by its size) towards the viewer and away. */
export const MOVES = ['left', 'right', 'up', 'down', 'nearer', 'farther'] as const;
export type Move = (typeof MOVES)[number];

/** What is said in a clip of `moves`. */
export const SPOKEN_WORDS = [
  'apple',
  'house',
  'river',
  'table',
  'music',
  'paper',
  'garden',
  'window',
] as const;
export type SpokenWord = (typeof SPOKEN_WORDS)[number];

export interface MovesTruth extends ClipTruth {
  readonly kind: 'moves';
  readonly motion: Move;
  readonly word: SpokenWord;
  /** When the object jumps from the end of its way to the beginning, if it does. */
  readonly jumpSeconds: readonly number[];
}

export interface SlidesTruth extends ClipTruth {
  readonly kind: 'slides';
  /** Of each segment, its row of `SLIDE_SCENES`. */
  readonly scenes: readonly number[];
}

/** Nothing moves, sounds or is said. */
export interface PlacesTruth extends ClipTruth {
  readonly kind: 'places';
}

export type ControlledTruth = MovesTruth | SlidesTruth | PlacesTruth;

export interface ControlledObject {
  readonly id: string;
  readonly shot: number;
  readonly shape: Shape;
  readonly colour: Colour;
  readonly rgb: Rgb;
  /** Half the side of the square that the shape is inscribed in, in pixels, in the first frame. */
  readonly radius: number;
  /** One entry for each frame of the shot; the object is always whole in the picture. */
  readonly track: {
    readonly firstFrame: number;
    readonly centers: readonly Vector[];
    readonly boxes: readonly Box[];
    readonly radii: readonly number[];
  };
}

export interface ControlledSubtitle {
  readonly startSeconds: number;
  readonly endSeconds: number;
  readonly text: string;
}
