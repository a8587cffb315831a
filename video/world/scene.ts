/** What happens in a clip: its shots, their backgrounds, who moves how and when. Pure; pixels and ticks. */
import assert from 'node:assert/strict';
import { shuffled, type Rng } from '../../proto/random.ts';
import { combinationsOf, type Split } from './combinations.ts';
import type { Background, Vector } from './ground-truth.ts';
import {
  BACKGROUND_COLOUR_NAMES,
  BACKGROUND_COLOURS,
  COLOUR_NAMES,
  MOTIONS,
  PATTERNS,
  type BackgroundColour,
  type Colour,
  type Motion,
  type Pattern,
  type Shape,
  type Side,
} from './palette.ts';
import type { Body, ContactPair } from './physics.ts';
import { contactDistance, EXTENTS } from './shapes.ts';

/** The simulator's step: all common frame rates and the jitter of irregular ones are whole numbers of it. */
export const TICKS_PER_SECOND = 480;
export const MASS_PER_SQUARED_RADIUS = 100;
const WALL_THICKNESS = 5;

export interface SceneOptions {
  readonly split: Split;
  readonly width: number;
  readonly height: number;
  /** A divisor of {@link TICKS_PER_SECOND}. */
  readonly fps: number;
  /** Nominal; a clip is up to half a second shorter or longer. */
  readonly seconds: number;
}

export interface PlannedObject {
  readonly shape: Shape;
  readonly colour: Colour;
  readonly motion: Motion;
  readonly radius: number;
  readonly directions: readonly Side[];
  readonly body: Body;
}

/** What one clause of the text tells: one object's motion, two that collide, or two that move at the same time. */
export interface Action {
  readonly kind: 'solo' | 'collide' | 'together';
  /** Indices into the shot's objects, in the order in which the text names them. */
  readonly objects: readonly number[];
}

export interface PlannedShot {
  readonly startTick: number;
  readonly endTick: number;
  readonly background: Background;
  readonly walls: readonly { readonly side: Side; readonly thickness: number }[];
  readonly objects: readonly PlannedObject[];
  readonly pairs: readonly ContactPair[];
  readonly actions: readonly Action[];
}

export interface Scene {
  readonly shots: readonly PlannedShot[];
  readonly durationTicks: number;
}

/** The scene of one clip, fixed by the stream. No (shape, colour) comes twice in a clip, and no background. */
export function planScene(options: SceneOptions, rng: Rng): Scene {
  const ticksPerFrame = TICKS_PER_SECOND / options.fps;
  const numFrames = Math.round(options.fps * (options.seconds + rng.uniform() - 0.5));
  const numShots = weighted(rng, [25, 45, 30]) + 1;
  const shares = Array.from({ length: numShots }, () => 0.85 + 0.3 * rng.uniform());
  const total = shares.reduce((sum, share) => sum + share, 0);
  const colours = shuffled(COLOUR_NAMES, rng);
  const grounds = shuffled(BACKGROUND_COLOUR_NAMES, rng);
  const patterns = shuffled(PATTERNS, rng);
  let [share, startFrame] = [0, 0];
  const shots = shares.map((own, index) => {
    share += own;
    const endFrame = Math.round((numFrames * share) / total);
    const [startTick, endTick] = [startFrame * ticksPerFrame, endFrame * ticksPerFrame];
    startFrame = endFrame;
    const plan = planShot(options, rng.fork('shot', index), endTick - startTick, {
      free: colours,
      maxObjects: Math.floor(COLOUR_NAMES.length / numShots),
    });
    for (const { colour } of plan.objects) colours.splice(colours.indexOf(colour), 1);
    // There are as many backgrounds that clash with nothing as a clip has shots at most.
    const place = grounds.findIndex((ground) => {
      const clashes: readonly Colour[] = BACKGROUND_COLOURS[ground].clashes;
      return plan.objects.every(({ colour }) => !clashes.includes(colour));
    });
    const [ground] = grounds.splice(place, 1);
    return { startTick, endTick, background: backgroundOf(ground!, patterns[index]!), ...plan };
  });
  return { shots, durationTicks: numFrames * ticksPerFrame };
}

/** The words for a background, as they follow "over". */
export function backgroundName(colour: BackgroundColour, pattern: Pattern): string {
  switch (pattern) {
    case 'plain':
      return `a plain ${colour} background`;
    case 'fade':
      return `${colour === 'olive' ? 'an' : 'a'} ${colour} fade`;
    default:
      return `${colour} ${pattern}`;
  }
}

function backgroundOf(colour: BackgroundColour, pattern: Pattern): Background {
  return {
    colour,
    pattern,
    tones: BACKGROUND_COLOURS[colour].tones,
    name: backgroundName(colour, pattern),
  };
}

function weighted(rng: Rng, weights: readonly number[]): number {
  let point = rng.uniform() * weights.reduce((sum, weight) => sum + weight, 0);
  const index = weights.findIndex((weight) => (point -= weight) < 0);
  return index < 0 ? weights.length - 1 : index;
}

function pick<T>(rng: Rng, items: readonly T[]): T {
  return items[rng.integer(items.length)]!;
}

const OPPOSITE = { left: 'right', right: 'left', top: 'bottom', bottom: 'top' } as const;
const TOWARDS = {
  left: [-1, 0],
  right: [1, 0],
  top: [0, -1],
  bottom: [0, 1],
} as const satisfies Record<Side, Vector>;

/** Stay in the picture to the end, so nothing can come after them in the same shot. */
const LAST_MOTIONS: readonly Motion[] = ['stop', 'collide'];
/** There from the first frame to the last: alone in its shot. */
const WHOLE_SHOT_MOTIONS: readonly Motion[] = ['loop'];

/** Part of a shot, in ticks from its start. */
interface Window {
  readonly start: number;
  readonly end: number;
}

/** A range of places across the direction of motion, as shares of the picture's side. */
type Lane = readonly [from: number, to: number];

/** One shot while its objects are chosen. */
interface ShotDraft {
  readonly options: SceneOptions;
  readonly rng: Rng;
  /** The colours that the clip has not used. */
  readonly free: Colour[];
  /** So many that the later shots find colours too. */
  readonly maxObjects: number;
  /** The picture's shorter side. */
  readonly side: number;
  readonly objects: PlannedObject[];
  readonly pairs: ContactPair[];
  readonly actions: Action[];
  readonly walls: Set<Side>;
  /** Sides that something has passed or will pass. */
  readonly crossed: Set<Side>;
}

function planShot(
  options: SceneOptions,
  rng: Rng,
  numTicks: number,
  colours: { readonly free: readonly Colour[]; readonly maxObjects: number },
): Pick<PlannedShot, 'walls' | 'objects' | 'pairs' | 'actions'> {
  const draft: ShotDraft = {
    options,
    rng,
    free: [...colours.free],
    maxObjects: colours.maxObjects,
    side: Math.min(options.width, options.height),
    objects: [],
    pairs: [],
    actions: [],
    walls: new Set(),
    crossed: new Set(),
  };
  const seconds = numTicks / TICKS_PER_SECOND;
  const mostActions = seconds > 4.2 ? 3 : seconds > 2.6 ? 2 : 1;
  const numActions = Math.min(
    mostActions - weighted(rng, mostActions === 1 ? [1] : [33, 67]),
    draft.maxObjects,
  );
  const lead = Math.round((0.06 + 0.1 * draft.rng.uniform()) * TICKS_PER_SECOND);
  const length = (numTicks - lead) / numActions;
  for (let i = 0; i < numActions; i++) {
    const window = {
      start: Math.round(lead + i * length),
      end: Math.round(lead + (i + 0.97) * length),
    };
    const isLast = i === numActions - 1;
    if (numActions === 1 && draft.rng.uniform() < 0.18) planTogether(draft, window);
    else planOne(draft, window, { isLast, isAlone: numActions === 1 });
  }
  return {
    walls: [...draft.walls].map((side) => ({ side, thickness: WALL_THICKNESS })),
    objects: draft.objects,
    pairs: draft.pairs,
    actions: draft.actions,
  };
}

function planOne(
  draft: ShotDraft,
  window: Window,
  place: { readonly isLast: boolean; readonly isAlone: boolean },
): void {
  const candidates = MOTIONS.filter(
    (motion) =>
      (place.isLast || !LAST_MOTIONS.includes(motion)) &&
      (place.isAlone || !WHOLE_SHOT_MOTIONS.includes(motion)),
  );
  // Directions are drawn anew each round, and whatever walls there are, some motion fits: e.g. off the same wall again.
  for (let round = 0; round < 1000; round++) {
    const motion = pick(draft.rng, candidates);
    const index = draft.objects.length;
    if (motion === 'collide') {
      if (index + 2 > draft.maxObjects) continue;
      if (!planCollision(draft, window, place.isAlone)) continue;
      draft.actions.push({ kind: 'collide', objects: [index, index + 1] });
    } else {
      if (!planSolo(draft, motion, window, [0, 1], [0.31, 0.46])) continue;
      draft.actions.push({ kind: 'solo', objects: [index] });
    }
    return;
  }
  assert(false, 'no motion fits between the walls of a shot');
}

/** Two objects in lanes of their own at the same time, so that one is above or next to the other. */
function planTogether(draft: ShotDraft, window: Window): void {
  const isHorizontal = draft.rng.uniform() < 0.6;
  const motions: readonly Motion[] = isHorizontal ? ['right', 'left'] : ['up', 'down'];
  const lanes = shuffled<Lane>(
    [
      [0, 0.5],
      [0.5, 1],
    ],
    draft.rng,
  );
  const later = Math.round((0.12 + 0.15 * draft.rng.uniform()) * TICKS_PER_SECOND);
  const index = draft.objects.length;
  planSolo(draft, pick(draft.rng, motions), window, lanes[0]!, [0.3, 0.38]);
  const second = { start: window.start + later, end: window.end };
  planSolo(draft, pick(draft.rng, motions), second, lanes[1]!, [0.3, 0.38]);
  draft.actions.push({ kind: 'together', objects: [index, index + 1] });
}

/** A look that this split has for the motion, in a colour not yet used in the clip. */
function cast(
  draft: ShotDraft,
  motion: Motion,
): { readonly shape: Shape; readonly colour: Colour } {
  const allowed = combinationsOf(draft.options.split).filter(
    (look) => look.motion === motion && draft.free.includes(look.colour),
  );
  const { shape, colour } = pick(draft.rng, allowed);
  draft.free.splice(draft.free.indexOf(colour), 1);
  return { shape, colour };
}

/** Half an object's size, which is within `range` (shares of the picture's side). */
function drawRadius(draft: ShotDraft, range: readonly [number, number]): number {
  return ((range[0] + (range[1] - range[0]) * draft.rng.uniform()) * draft.side) / 2;
}

/** False if its way leads through a wall. */
function planSolo(
  draft: ShotDraft,
  motion: Motion,
  window: Window,
  lane: Lane,
  sizes: readonly [number, number],
): boolean {
  const { rng } = draft;
  const axis = rng.uniform() < 0.65 ? (['left', 'right'] as const) : (['top', 'bottom'] as const);
  const directions: readonly Side[] =
    motion === 'right' || motion === 'left'
      ? [motion]
      : motion === 'up'
        ? ['top']
        : motion === 'down'
          ? ['bottom']
          : motion === 'diagonal'
            ? [pick(rng, ['left', 'right'] as const), pick(rng, ['top', 'bottom'] as const)]
            : motion === 'zigzag'
              ? [pick(rng, ['left', 'right'] as const)]
              : motion === 'loop'
                ? []
                : [pick(rng, axis)];
  const crossed = directions.flatMap((side) =>
    motion === 'bounce' || motion === 'stop' ? [OPPOSITE[side]] : [side, OPPOSITE[side]],
  );
  const wall = motion === 'bounce' ? directions[0]! : null;
  if (crossed.some((side) => draft.walls.has(side))) return false;
  if (wall !== null && draft.crossed.has(wall)) return false;
  for (const side of crossed) draft.crossed.add(side);
  if (wall !== null) draft.walls.add(wall);

  const { shape, colour } = cast(draft, motion);
  const radius = drawRadius(draft, motion === 'zigzag' || motion === 'loop' ? [0.29, 0.38] : sizes);
  const body = soloBody(draft, motion, { shape, radius, directions }, window, lane);
  draft.objects.push({ shape, colour, motion, radius, directions, body });
  return true;
}

function soloBody(
  draft: ShotDraft,
  motion: Motion,
  look: { readonly shape: Shape; readonly radius: number; readonly directions: readonly Side[] },
  window: Window,
  lane: Lane,
): Body {
  const { rng } = draft;
  const { width, height } = draft.options;
  const { radius, directions } = look;
  const time = (window.end - window.start) / TICKS_PER_SECOND;
  const [left, top, right, bottom] = EXTENTS[look.shape].map((edge) => edge * radius) as [
    number,
    number,
    number,
    number,
  ];
  // Somewhere in the lane, wholly inside the picture and off the walls.
  const across = (length: number, before: number, after: number): number => {
    const from = Math.max(lane[0] * length, 0) + before + WALL_THICKNESS + 1;
    const to = lane[1] * length - after - WALL_THICKNESS - 1;
    return from >= to ? (from + to) / 2 : from + (to - from) * rng.uniform();
  };
  const main = directions[0] ?? 'right';
  const isHorizontal = main === 'left' || main === 'right';
  const [sign] = isHorizontal ? [TOWARDS[main][0]] : [TOWARDS[main][1]];
  // Just outside the picture on the side it comes from and on the side it goes to, along the main axis.
  const length = isHorizontal ? width : height;
  const [low, high] = isHorizontal ? [-right, width - left] : [-bottom, height - top];
  const [from, to] = sign > 0 ? [low, high] : [high, low];
  const other = isHorizontal ? across(height, -top, bottom) : across(width, -left, right);
  const along = (position: number, speed: number): Pick<Body, 'position' | 'velocity'> =>
    isHorizontal
      ? { position: [position, other], velocity: [speed, 0] }
      : { position: [other, position], velocity: [0, speed] };
  const still: Body = {
    ...along(from, (to - from) / time),
    acceleration: [0, 0],
    mass: massOf(radius, draft.side),
    startTick: window.start,
    brake: null,
    orbit: null,
    limits: {},
  };
  switch (motion) {
    case 'down': {
      // Falls: a slow start, then evenly faster.
      const start = (0.4 * (to - from)) / time;
      const gravity = (2 * (to - from - start * time)) / time ** 2;
      return { ...still, ...along(from, start), acceleration: [0, gravity] };
    }
    case 'diagonal': {
      const [sx, sy] = [TOWARDS[directions[0]!][0], TOWARDS[directions[1]!][1]];
      const [ax, bx] = sx > 0 ? [-right, width - left] : [width - left, -right];
      const [ay, by] = sy > 0 ? [-bottom, height - top] : [height - top, -bottom];
      return {
        ...still,
        position: [ax, ay],
        velocity: [(bx - ax) / time, (by - ay) / time],
      };
    }
    case 'zigzag': {
      const margin = WALL_THICKNESS + 1;
      const limits = { top: margin - top, bottom: height - margin - bottom };
      const numCrossings = time > 2.5 ? 4 : 3;
      const climb = ((limits.bottom - limits.top) * numCrossings) / time;
      const [vx] = still.velocity;
      const start = limits.top + (limits.bottom - limits.top) * (0.2 + 0.6 * rng.uniform());
      return {
        ...still,
        position: [from, start],
        velocity: [vx, rng.uniform() < 0.5 ? climb : -climb],
        limits,
      };
    }
    case 'loop': {
      const center: Vector = [width / 2, height / 2];
      const orbitRadius = draft.side / 2 - 1.08 * radius - 2;
      const turns = (time > 3.5 ? 2 : 1) * (0.95 + 0.3 * rng.uniform());
      const startRadians = 2 * Math.PI * rng.uniform();
      const radiansPerSecond = (rng.uniform() < 0.5 ? 1 : -1) * ((2 * Math.PI * turns) / time);
      return {
        ...still,
        startTick: 0,
        velocity: [0, 0],
        position: center,
        orbit: { center, radius: orbitRadius, radiansPerSecond, startRadians },
      };
    }
    case 'bounce': {
      // There and back at one speed, over in the window.
      const edge =
        main === 'left'
          ? -left
          : main === 'right'
            ? width - right
            : main === 'top'
              ? -top
              : height - bottom;
      const limit = edge - sign * WALL_THICKNESS;
      return { ...still, ...along(from, (2 * (limit - from)) / time), limits: { [main]: limit } };
    }
    case 'stop': {
      const target = length / 2 + 0.08 * (rng.uniform() - 0.5) * length;
      const [cruise, braking] = [0.3 * time, 0.28 * time];
      const speed = (target - from) / (cruise + braking / 2);
      const startTick = window.start + Math.round(cruise * TICKS_PER_SECOND);
      return {
        ...still,
        ...along(from, speed),
        brake: { startTick, deceleration: Math.abs(speed) / braking },
      };
    }
    default:
      return still;
  }
}

/** Two bodies head-on, or one that hits another at rest; false if a wall is in the way. */
function planCollision(draft: ShotDraft, window: Window, isAlone: boolean): boolean {
  const { rng } = draft;
  const { width, height } = draft.options;
  const isHorizontal = rng.uniform() < 0.7;
  const sides = isHorizontal ? (['left', 'right'] as const) : (['top', 'bottom'] as const);
  if (sides.some((side) => draft.walls.has(side))) return false;
  for (const side of sides) draft.crossed.add(side);
  const hitsResting = isAlone && rng.uniform() < 0.35;
  const looks = [cast(draft, 'collide'), cast(draft, 'collide')];
  const radii = looks.map(() => drawRadius(draft, [0.28, 0.38]));
  // The first comes from sides[0] or, mirrored, from sides[1].
  const from = pick(rng, sides);
  const [forwards, backwards] = [OPPOSITE[from], from];
  const sign = isHorizontal ? TOWARDS[forwards][0] : TOWARDS[forwards][1];
  const [first, second] = looks.map((look, i) => ({ ...look, radius: radii[i]! }));
  const distance =
    sign > 0
      ? contactDistance(first!, second!, isHorizontal)
      : contactDistance(second!, first!, isHorizontal);

  const length = isHorizontal ? width : height;
  const breadth = isHorizontal ? height : width;
  const lane = breadth / 2 + 0.16 * (rng.uniform() - 0.5) * breadth;
  const outside = (radius: number, direction: number): number =>
    direction > 0 ? -1.05 * radius : length + 1.05 * radius;
  const time = (window.end - window.start) / TICKS_PER_SECOND;
  const [meet, impact] = [length / 2, (hitsResting ? 0.36 : 0.46) * time];
  const later = hitsResting ? 0 : Math.round((0.08 + 0.12 * rng.uniform()) * TICKS_PER_SECOND);
  const firstStart = outside(radii[0]!, sign);
  const secondStart = hitsResting ? meet + 0.1 * sign * length : outside(radii[1]!, -sign);
  const contactAt = hitsResting ? secondStart - sign * distance : meet - (sign * distance) / 2;
  const speeds = [
    (contactAt - firstStart) / impact,
    hitsResting
      ? 0
      : (contactAt + sign * distance - secondStart) / (impact - later / TICKS_PER_SECOND),
  ];
  // Circles may meet off-centre, and then fly apart at an angle.
  const bothRound = looks.every(({ shape }) => shape === 'circle');
  const offset = bothRound ? 0.5 * (rng.uniform() - 0.5) * distance : 0;
  const index = draft.objects.length;
  looks.forEach(({ shape, colour }, i) => {
    const place = i === 0 ? firstStart : secondStart;
    const across = lane + (i === 0 ? -offset / 2 : offset / 2);
    const radius = radii[i]!;
    draft.objects.push({
      shape,
      colour,
      motion: 'collide',
      radius,
      directions: i === 0 ? [forwards] : hitsResting ? [] : [backwards],
      body: {
        position: isHorizontal ? [place, across] : [across, place],
        velocity: isHorizontal ? [speeds[i]!, 0] : [0, speeds[i]!],
        acceleration: [0, 0],
        mass: massOf(radius, draft.side),
        startTick: i === 0 ? window.start : hitsResting ? 0 : window.start + later,
        brake: null,
        orbit: null,
        limits: {},
      },
    });
  });
  draft.pairs.push({ first: index, second: index + 1, distance });
  return true;
}

function massOf(radius: number, side: number): number {
  return MASS_PER_SQUARED_RADIUS * (radius / side) ** 2;
}
