/** From a planned scene to everything that is true of it: simulated tracks, visible boxes, events in order. Pure. */
import {
  MASS_PER_SQUARED_RADIUS,
  TICKS_PER_SECOND,
  type PlannedObject,
  type PlannedShot,
  type Scene,
} from './scene.ts';
import type {
  Box,
  EventType,
  GroundTruth,
  Vector,
  WorldEvent,
  WorldObject,
} from './ground-truth.ts';
import { COLOURS, SHAPES, type Side } from './palette.ts';
import { simulate, vectorAt, type Simulation } from './physics.ts';
import { EXTENTS, signedDistance } from './shapes.ts';
import { soundOf } from './sound.ts';

/** What the simulation adds to a plan: the ground truth but for names, texts and the file. */
export type SceneTruth = Pick<
  GroundTruth,
  'physics' | 'shots' | 'objects' | 'events' | 'frames'
> & {
  /** The ids of each planned action's objects, by shot and action. */
  readonly actionObjects: readonly (readonly (readonly string[])[])[];
};

export interface Picture {
  readonly width: number;
  readonly height: number;
}

/** Simulates the scene and looks at it at the frames' times (ticks from the clip's start, ascending). */
export function truthOf(scene: Scene, ptsTicks: readonly number[], picture: Picture): SceneTruth {
  const drafts = scene.shots.map((shot) => draftShot(shot, picture));
  // Ids number objects in the order in which they are first seen, over the whole clip.
  const order = drafts
    .flatMap((draft, shot) => draft.firstSeen.map((tick, object) => ({ shot, object, tick })))
    .sort((a, b) => a.shot - b.shot || a.tick - b.tick);
  const idOf = (shot: number, object: number): string =>
    `o${1 + order.findIndex((entry) => entry.shot === shot && entry.object === object)}`;

  const frameShots = ptsTicks.map((tick) =>
    scene.shots.findLastIndex(({ startTick }) => tick >= startTick),
  );
  const shots = scene.shots.map((shot, index) => ({
    index,
    startSeconds: shot.startTick / TICKS_PER_SECOND,
    endSeconds: shot.endTick / TICKS_PER_SECOND,
    firstFrame: frameShots.indexOf(index),
    numFrames: frameShots.filter((own) => own === index).length,
    background: shot.background,
    walls: shot.walls,
  }));
  const objects = order.map(({ shot, object }) => {
    const { firstFrame, numFrames } = shots[shot]!;
    const ticks = ptsTicks.slice(firstFrame, firstFrame + numFrames);
    return objectTruth(scene.shots[shot]!, drafts[shot]!, object, {
      id: idOf(shot, object),
      shot,
      firstFrame,
      ticks,
      picture,
    });
  });
  const events = drafts
    .flatMap((draft, shot) =>
      draft.events.map((event) => ({
        ...event,
        timeSeconds: round(event.seconds + shots[shot]!.startSeconds, 6),
        shot,
      })),
    )
    .sort((a, b) => a.timeSeconds - b.timeSeconds)
    .map((event, i): WorldEvent => {
      const planned = event.bodies.map((body) => scene.shots[event.shot]!.objects[body]!);
      return {
        id: `e${i + 1}`,
        type: event.type,
        timeSeconds: event.timeSeconds,
        shot: event.shot,
        objects: event.bodies.map((body) => idOf(event.shot, body)),
        side: event.side,
        position: roundVector(event.position),
        sound: soundOf(
          event.type,
          planned.map(({ colour }) => colour),
          event.position[0] / picture.width,
        ),
        collision: event.collision,
      };
    });
  return {
    physics: {
      ticksPerSecond: TICKS_PER_SECOND,
      restitution: 1,
      massPerSquaredRadius: MASS_PER_SQUARED_RADIUS,
    },
    frames: {
      ptsSeconds: ptsTicks.map((tick) => round(tick / TICKS_PER_SECOND, 6)),
      shots: frameShots,
    },
    shots,
    objects,
    events,
    actionObjects: scene.shots.map((shot, index) =>
      shot.actions.map((action) => action.objects.map((object) => idOf(index, object))),
    ),
  };
}

interface DraftEvent {
  readonly type: EventType;
  readonly seconds: number;
  readonly bodies: readonly number[];
  readonly side: Side | null;
  readonly position: Vector;
  readonly collision: WorldEvent['collision'];
}

interface ShotDraft {
  readonly simulation: Simulation;
  readonly events: readonly DraftEvent[];
  /** The tick at which each object first shows. */
  readonly firstSeen: readonly number[];
}

function draftShot(shot: PlannedShot, picture: Picture): ShotDraft {
  const numTicks = shot.endTick - shot.startTick;
  const bodies = shot.objects.map(({ body }) => body);
  const simulation = simulate(bodies, shot.pairs, numTicks, TICKS_PER_SECOND);
  const wallSides = shot.walls.map(({ side }) => side);
  const events: DraftEvent[] = [];
  for (const happening of simulation.happenings) {
    const { seconds } = happening;
    if (seconds >= numTicks / TICKS_PER_SECOND) continue;
    const tick = Math.round(seconds * TICKS_PER_SECOND);
    const at = (body: number): Vector => vectorAt(simulation.positions[body]!, tick);
    if (happening.type === 'collide') {
      const { pair, positions, collision } = happening;
      const [a, b] = positions;
      const share =
        shot.objects[pair.first]!.radius /
        (shot.objects[pair.first]!.radius + shot.objects[pair.second]!.radius);
      const position: Vector = [a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share];
      events.push({
        type: 'collide',
        seconds,
        bodies: [pair.first, pair.second],
        side: null,
        position,
        collision,
      });
    } else if (happening.type === 'stop') {
      const { body } = happening;
      events.push({
        type: 'stop',
        seconds,
        bodies: [body],
        side: null,
        position: at(body),
        collision: null,
      });
    } else {
      // Solid sides are drawn and heard as such; the zigzag's own limits are turns in the open, or out of sight.
      const { body, side } = happening;
      if (overlap(boxAt(shot.objects[body]!, at(body)), picture) === null) continue;
      const isWall = wallSides.includes(side) && shot.objects[body]!.motion === 'bounce';
      events.push({
        type: isWall ? 'bounce' : 'turn',
        seconds,
        bodies: [body],
        side,
        position: at(body),
        collision: null,
      });
    }
  }
  const firstSeen = shot.objects.map((object, index) => {
    const [left, top, right, bottom] = boxAt(object, [0, 0]);
    const centers = simulation.positions[index]!;
    let [wasIn, first] = [false, Infinity];
    for (let tick = object.body.startTick; tick < numTicks; tick++) {
      const [x, y] = [centers[2 * tick]!, centers[2 * tick + 1]!];
      const isIn =
        x + right > 0 && x + left < picture.width && y + bottom > 0 && y + top < picture.height;
      if (isIn === wasIn) continue;
      wasIn = isIn;
      if (isIn) first = Math.min(first, tick);
      const isThereAtOnce = tick === 0;
      const velocity = vectorAt(simulation.velocities[index]!, tick);
      events.push({
        type: isThereAtOnce ? 'appear' : isIn ? 'enter' : 'leave',
        seconds: tick / TICKS_PER_SECOND,
        bodies: [index],
        side: isThereAtOnce ? null : sideOf(object, [x, y], velocity, picture, isIn),
        position: clamp([x, y], picture),
        collision: null,
      });
    }
    return first;
  });
  events.sort((a, b) => a.seconds - b.seconds);
  return { simulation, events, firstSeen };
}

/** The side through which a body comes (or, when it is out, has gone). */
function sideOf(
  object: PlannedObject,
  center: Vector,
  velocity: Vector,
  picture: Picture,
  isIn: boolean,
): Side {
  const [left, top, right, bottom] = boxAt(object, center);
  // How long ago the box met each edge's line, in the direction of motion: entering, it met the picture's last edge last.
  const [vx, vy] = isIn ? velocity : [-velocity[0], -velocity[1]];
  const horizontal = vx > 0 ? right / vx : vx < 0 ? (left - picture.width) / vx : Infinity;
  const vertical = vy > 0 ? bottom / vy : vy < 0 ? (top - picture.height) / vy : Infinity;
  if (horizontal <= vertical) return vx > 0 ? 'left' : 'right';
  return vy > 0 ? 'top' : 'bottom';
}

interface ObjectPlace {
  readonly id: string;
  readonly shot: number;
  readonly firstFrame: number;
  readonly ticks: readonly number[];
  readonly picture: Picture;
}

function objectTruth(
  shot: PlannedShot,
  draft: ShotDraft,
  index: number,
  place: ObjectPlace,
): WorldObject {
  const object = shot.objects[index]!;
  const { body, radius } = object;
  const shotSeconds = shot.startTick / TICKS_PER_SECOND;
  const size = (2 * radius) / Math.min(place.picture.width, place.picture.height);
  const track = {
    centers: [] as Vector[],
    velocities: [] as Vector[],
    boxes: [] as (Box | null)[],
    visibility: [] as number[],
  };
  for (const clipTick of place.ticks) {
    const tick = clipTick - shot.startTick;
    const centers = draft.simulation.positions.map((values) => vectorAt(values, tick));
    const visibility = visibleShare(shot, centers, index, place.picture);
    const box = overlap(boxAt(object, centers[index]!), place.picture);
    track.centers.push(roundVector(centers[index]!));
    track.velocities.push(roundVector(vectorAt(draft.simulation.velocities[index]!, tick)));
    track.visibility.push(round(visibility, 3));
    track.boxes.push(
      visibility === 0 || box === null
        ? null
        : (box.map((edge) => round(edge, 2)) as unknown as Box),
    );
  }
  return {
    id: place.id,
    shot: place.shot,
    shape: object.shape,
    colour: object.colour,
    rgb: COLOURS[object.colour],
    size: size < 0.34 ? 'small' : size > 0.4 ? 'big' : 'medium',
    motion: object.motion,
    directions: object.directions,
    radius: round(radius, 4),
    mass: body.mass,
    acceleration: roundVector(body.acceleration),
    brake:
      body.brake === null
        ? null
        : {
            startSeconds: shotSeconds + body.brake.startTick / TICKS_PER_SECOND,
            deceleration: round(body.brake.deceleration, 4),
          },
    orbit:
      body.orbit === null
        ? null
        : {
            center: body.orbit.center,
            radius: round(body.orbit.radius, 4),
            radiansPerSecond: round(body.orbit.radiansPerSecond, 6),
          },
    track: { firstFrame: place.firstFrame, ...track },
  };
}

function boxAt({ shape, radius }: PlannedObject, [x, y]: Vector): Box {
  const [left, top, right, bottom] = EXTENTS[shape];
  return [x + left * radius, y + top * radius, x + right * radius, y + bottom * radius];
}

function overlap([left, top, right, bottom]: Box, { width, height }: Picture): Box | null {
  const cut: Box = [
    Math.max(0, left),
    Math.max(0, top),
    Math.min(width, right),
    Math.min(height, bottom),
  ];
  return cut[0] < cut[2] && cut[1] < cut[3] ? cut : null;
}

const SAMPLES_A_SIDE = 36;
/** Points spread evenly over each shape, as x, y, x, y, ... */
const SAMPLES = new Map(
  SHAPES.map((shape) => {
    const points: number[] = [];
    for (let i = 0; i < SAMPLES_A_SIDE ** 2; i++) {
      const x = (2 * (i % SAMPLES_A_SIDE) + 1) / SAMPLES_A_SIDE - 1;
      const y = (2 * Math.floor(i / SAMPLES_A_SIDE) + 1) / SAMPLES_A_SIDE - 1;
      if (signedDistance(shape, x, y) < 0) points.push(x, y);
    }
    return [shape, points] as const;
  }),
);

/** The share of a shape's area inside the picture and not under a shape that is drawn later; by a grid of samples. */
function visibleShare(
  shot: PlannedShot,
  centers: readonly Vector[],
  index: number,
  picture: Picture,
): number {
  const object = shot.objects[index]!;
  const box = boxAt(object, centers[index]!);
  const cut = overlap(box, picture);
  if (cut === null) return 0;
  const covering = shot.objects.flatMap((other, i) => {
    if (i <= index) return [];
    const [left, top, right, bottom] = boxAt(other, centers[i]!);
    const meets = left < cut[2] && right > cut[0] && top < cut[3] && bottom > cut[1];
    return meets ? [{ ...other, center: centers[i]! }] : [];
  });
  const isWhole = cut.every((edge, i) => edge === box[i]);
  if (isWhole && covering.length === 0) return 1;
  const [cx, cy] = centers[index]!;
  const points = SAMPLES.get(object.shape)!;
  let seen = 0;
  for (let i = 0; i < points.length; i += 2) {
    const x = cx + points[i]! * object.radius;
    const y = cy + points[i + 1]! * object.radius;
    if (x < 0 || y < 0 || x >= picture.width || y >= picture.height) continue;
    const isCovered = covering.some(
      ({ shape, radius, center }) =>
        signedDistance(shape, (x - center[0]) / radius, (y - center[1]) / radius) < 0,
    );
    if (!isCovered) seen++;
  }
  return (2 * seen) / points.length;
}

function clamp([x, y]: Vector, { width, height }: Picture): Vector {
  return [Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))];
}

function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}

function roundVector([x, y]: Vector): Vector {
  return [round(x, 3), round(y, 3)];
}
