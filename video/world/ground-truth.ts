/** The schema of `<id>.json`: everything that is true of a clip. Pixels from the top left; seconds from the start. */
import type { Split } from './combinations.ts';
import type { BackgroundColour, Colour, Motion, Pattern, Rgb, Shape, Side } from './palette.ts';

export const GROUND_TRUTH_VERSION = 1;

export type Vector = readonly [x: number, y: number];
export type Box = readonly [left: number, top: number, right: number, bottom: number];

export interface GroundTruth {
  readonly schemaVersion: typeof GROUND_TRUTH_VERSION;
  readonly id: string;
  readonly split: Split;
  readonly seed: number;
  /** Position in the split: with `seed` and `split` it fixes the clip. */
  readonly index: number;
  readonly width: number;
  readonly height: number;
  /** Nominal; the frames' own times are in `frames`. */
  readonly fps: number;
  readonly isConstantFrameRate: boolean;
  readonly durationSeconds: number;
  readonly frames: {
    readonly ptsSeconds: readonly number[];
    /** The shot each frame belongs to. */
    readonly shots: readonly number[];
  };
  readonly audio: { readonly sampleRate: number; readonly numChannels: 2 };
  readonly physics: {
    /** Fixed step of the simulator; contacts inside a step are solved exactly. */
    readonly ticksPerSecond: number;
    readonly restitution: 1;
    /** Mass of a body in units of its (radius / picture side)^2. */
    readonly massPerSquaredRadius: number;
  };
  readonly shots: readonly Shot[];
  /** In the order in which they are first seen. */
  readonly objects: readonly WorldObject[];
  /** In the order of time. */
  readonly events: readonly WorldEvent[];
  readonly caption: { readonly text: string; readonly clauses: readonly Clause[] };
  readonly subtitles: readonly Subtitle[];
}

export interface Background {
  readonly colour: BackgroundColour;
  readonly pattern: Pattern;
  readonly tones: readonly [Rgb, Rgb];
  /** As the texts call it: "green stripes". */
  readonly name: string;
}

export interface Shot {
  readonly index: number;
  readonly startSeconds: number;
  readonly endSeconds: number;
  readonly firstFrame: number;
  readonly numFrames: number;
  readonly background: Background;
  /** Solid sides, drawn as bars of `thickness` pixels; all other sides are open. */
  readonly walls: readonly { readonly side: Side; readonly thickness: number }[];
}

export interface WorldObject {
  readonly id: string;
  readonly shot: number;
  readonly shape: Shape;
  readonly colour: Colour;
  readonly rgb: Rgb;
  readonly size: 'small' | 'medium' | 'big';
  readonly motion: Motion;
  /** Where it moves or first moves to (`right`, or for diagonals both: `right`, `bottom`); empty for a body at rest. */
  readonly directions: readonly Side[];
  /** Half the side of the square that the shape is inscribed in, in pixels. */
  readonly radius: number;
  readonly mass: number;
  /** Constant, pixels per second squared: falling bodies accelerate. */
  readonly acceleration: Vector;
  /** Where the body slows down evenly to rest. */
  readonly brake: { readonly startSeconds: number; readonly deceleration: number } | null;
  readonly orbit: {
    readonly center: Vector;
    readonly radius: number;
    readonly radiansPerSecond: number;
  } | null;
  /** One entry for each frame of the shot. */
  readonly track: {
    readonly firstFrame: number;
    readonly centers: readonly Vector[];
    /** Pixels per second. */
    readonly velocities: readonly Vector[];
    /** Tight and cut off at the picture's edge; null where nothing of the object is in the picture. */
    readonly boxes: readonly (Box | null)[];
    /** Share of the object's area that can be seen, 0 to 1. */
    readonly visibility: readonly number[];
  };
}

export type EventType = 'appear' | 'enter' | 'turn' | 'bounce' | 'collide' | 'stop' | 'leave';

export interface WorldEvent {
  readonly id: string;
  readonly type: EventType;
  readonly timeSeconds: number;
  readonly shot: number;
  readonly objects: readonly string[];
  /** The side entered by, left by or bounced off. */
  readonly side: Side | null;
  /** Of the body, or of the point of contact. */
  readonly position: Vector;
  readonly sound: {
    /** One tone for each object. */
    readonly frequenciesHz: readonly number[];
    readonly seconds: number;
    /** -1 left to 1 right; equal power. */
    readonly pan: number;
  };
  readonly collision: Collision | null;
}

export interface Collision {
  /** Unit vector from the first object to the second. */
  readonly normal: Vector;
  readonly before: readonly [Vector, Vector];
  readonly after: readonly [Vector, Vector];
}

/** A part of the caption that tells of one action. */
export interface Clause {
  readonly text: string;
  /** Where it stands in the caption, in characters. */
  readonly start: number;
  readonly end: number;
  readonly shot: number;
  /** In the order in which they are named. */
  readonly objects: readonly string[];
  readonly events: readonly string[];
}

export interface Subtitle {
  readonly startSeconds: number;
  readonly endSeconds: number;
  readonly text: string;
  readonly shot: number;
  readonly objects: readonly string[];
  readonly events: readonly string[];
}
