/**
 * The world's mechanics: bodies move freely, fall, brake, orbit, bounce off solid sides and collide elastically. Time
 * goes in fixed steps; a contact inside a step is solved for its exact moment, so that bodies never overlap.
 */
import type { Collision, Vector } from './ground-truth.ts';
import type { Side } from './palette.ts';

export interface Body {
  readonly position: Vector;
  /** Pixels per second. */
  readonly velocity: Vector;
  readonly acceleration: Vector;
  readonly mass: number;
  /** Stands still, out of sight, until then. Ticks. */
  readonly startTick: number;
  readonly brake: { readonly startTick: number; readonly deceleration: number } | null;
  readonly orbit: {
    readonly center: Vector;
    readonly radius: number;
    readonly radiansPerSecond: number;
    readonly startRadians: number;
  } | null;
  /** Limits to the centre; a side that is not named is open. Reflects. */
  readonly limits: Partial<Readonly<Record<Side, number>>>;
}

/** Two bodies that collide when their centres come this near. Others pass through each other. */
export interface ContactPair {
  readonly first: number;
  readonly second: number;
  readonly distance: number;
}

export type Happening =
  | {
      readonly type: 'reflect';
      readonly seconds: number;
      readonly body: number;
      readonly side: Side;
    }
  | { readonly type: 'stop'; readonly seconds: number; readonly body: number }
  | {
      readonly type: 'collide';
      readonly seconds: number;
      readonly pair: ContactPair;
      readonly positions: readonly [Vector, Vector];
      readonly collision: Collision;
    };

export interface Simulation {
  /** For each body x, y of each tick; tick 0 is the start. {@link vectorAt} reads them. */
  readonly positions: readonly Float64Array[];
  readonly velocities: readonly Float64Array[];
  readonly happenings: readonly Happening[];
}

/** The vector of one tick in a simulation's positions or velocities. */
export function vectorAt(values: Float64Array, tick: number): Vector {
  return [values[2 * tick]!, values[2 * tick + 1]!];
}

interface Moving {
  x: number;
  y: number;
  vx: number;
  vy: number;
}

/** Runs `numTicks` steps. Pure. Bodies with limits or in pairs must not accelerate: contacts are solved on straight lines. */
export function simulate(
  bodies: readonly Body[],
  pairs: readonly ContactPair[],
  numTicks: number,
  ticksPerSecond: number,
): Simulation {
  const step = 1 / ticksPerSecond;
  const moving = bodies.map(({ position, velocity }): Moving => {
    return { x: position[0], y: position[1], vx: velocity[0], vy: velocity[1] };
  });
  const positions = bodies.map(() => new Float64Array(2 * (numTicks + 1)));
  const velocities = bodies.map(() => new Float64Array(2 * (numTicks + 1)));
  const happenings: Happening[] = [];
  const canTouch = pairs.length > 0 || bodies.some(({ limits }) => Object.keys(limits).length > 0);
  for (let tick = 0; tick <= numTicks; tick++) {
    const now = tick * step;
    bodies.forEach((body, i) => {
      if (body.orbit !== null) Object.assign(moving[i]!, orbitAt(body.orbit, now));
    });
    moving.forEach(({ x, y, vx, vy }, i) => {
      positions[i]!.set([x, y], 2 * tick);
      if (tick >= bodies[i]!.startTick) velocities[i]!.set([vx, vy], 2 * tick);
    });
    const active = bodies.map((body) => tick >= body.startTick && body.orbit === null);
    let done = 0;
    // A contact changes velocities, so the rest of the step is looked at anew. More than a handful is impossible
    // with bodies of pixels' size and steps of milliseconds.
    for (let round = 0; round < 16 && done < step; round++) {
      const contact = canTouch ? nextContact(bodies, moving, active, pairs, step - done) : null;
      const span = contact?.after ?? step - done;
      bodies.forEach((body, i) => {
        if (!active[i]) return;
        const stoppedAfter = advance(body, moving[i]!, span, tick);
        if (stoppedAfter !== null) {
          happenings.push({ type: 'stop', seconds: now + done + stoppedAfter, body: i });
        }
      });
      done += span;
      if (contact === null) break;
      happenings.push(resolve(contact, bodies, moving, now + done));
    }
  }
  return { positions, velocities, happenings };
}

function orbitAt(orbit: NonNullable<Body['orbit']>, seconds: number): Moving {
  const angle = orbit.startRadians + orbit.radiansPerSecond * seconds;
  const [cos, sin] = [Math.cos(angle) * orbit.radius, Math.sin(angle) * orbit.radius];
  return {
    x: orbit.center[0] + cos,
    y: orbit.center[1] + sin,
    vx: -sin * orbit.radiansPerSecond,
    vy: cos * orbit.radiansPerSecond,
  };
}

/** Moves one body; gives when in the span it came to rest, or null. */
function advance(body: Body, state: Moving, span: number, tick: number): number | null {
  const speed = Math.hypot(state.vx, state.vy);
  let [[ax, ay], time, stoppedAfter] = [body.acceleration, span, null as number | null];
  if (body.brake !== null && tick >= body.brake.startTick) {
    if (speed === 0) return null;
    const { deceleration } = body.brake;
    [ax, ay] = [(-state.vx / speed) * deceleration, (-state.vy / speed) * deceleration];
    if (speed <= deceleration * span) time = stoppedAfter = speed / deceleration;
  }
  state.x += state.vx * time + (ax * time * time) / 2;
  state.y += state.vy * time + (ay * time * time) / 2;
  state.vx = stoppedAfter === null ? state.vx + ax * time : 0;
  state.vy = stoppedAfter === null ? state.vy + ay * time : 0;
  return stoppedAfter;
}

type Contact =
  | { readonly after: number; readonly body: number; readonly side: Side }
  | { readonly after: number; readonly pair: ContactPair };

/** The earliest contact within `span` seconds of straight motion. */
function nextContact(
  bodies: readonly Body[],
  moving: readonly Moving[],
  active: readonly boolean[],
  pairs: readonly ContactPair[],
  span: number,
): Contact | null {
  let earliest: Contact | null = null;
  const offer = (contact: Contact): void => {
    if (contact.after <= (earliest?.after ?? span)) earliest = contact;
  };
  bodies.forEach(({ limits }, body) => {
    if (!active[body]) return;
    const { x, y, vx, vy } = moving[body]!;
    // A body on the limit or beyond that moves outwards touches now.
    const touch = (side: Side, gap: number, speed: number): void => {
      if (speed > 0) offer({ after: Math.max(0, gap / speed), body, side });
    };
    if (limits.left !== undefined) touch('left', x - limits.left, -vx);
    if (limits.right !== undefined) touch('right', limits.right - x, vx);
    if (limits.top !== undefined) touch('top', y - limits.top, -vy);
    if (limits.bottom !== undefined) touch('bottom', limits.bottom - y, vy);
  });
  for (const pair of pairs) {
    if (!active[pair.first] || !active[pair.second]) continue;
    const [a, b] = [moving[pair.first]!, moving[pair.second]!];
    const [dx, dy, dvx, dvy] = [b.x - a.x, b.y - a.y, b.vx - a.vx, b.vy - a.vy];
    // |d + dv t| = distance, the earlier root, for bodies that approach.
    const [approach, speed2] = [dx * dvx + dy * dvy, dvx * dvx + dvy * dvy];
    if (approach >= 0) continue;
    const gap = dx * dx + dy * dy - pair.distance ** 2;
    const discriminant = approach * approach - speed2 * gap;
    if (discriminant < 0) continue;
    offer({ after: Math.max(0, (-approach - Math.sqrt(discriminant)) / speed2), pair });
  }
  return earliest;
}

function resolve(
  contact: Contact,
  bodies: readonly Body[],
  moving: readonly Moving[],
  seconds: number,
): Happening {
  if ('side' in contact) {
    const state = moving[contact.body]!;
    if (contact.side === 'left' || contact.side === 'right') state.vx = -state.vx;
    else state.vy = -state.vy;
    return { type: 'reflect', seconds, body: contact.body, side: contact.side };
  }
  const { pair } = contact;
  const [a, b] = [moving[pair.first]!, moving[pair.second]!];
  const before: [Vector, Vector] = [
    [a.vx, a.vy],
    [b.vx, b.vy],
  ];
  const length = Math.hypot(b.x - a.x, b.y - a.y);
  const normal: Vector = [(b.x - a.x) / length, (b.y - a.y) / length];
  const [massA, massB] = [bodies[pair.first]!.mass, bodies[pair.second]!.mass];
  // Elastic: the impulse along the normal that conserves momentum and kinetic energy.
  const approach = (a.vx - b.vx) * normal[0] + (a.vy - b.vy) * normal[1];
  const impulse = (2 * massA * massB * approach) / (massA + massB);
  a.vx -= (impulse / massA) * normal[0];
  a.vy -= (impulse / massA) * normal[1];
  b.vx += (impulse / massB) * normal[0];
  b.vy += (impulse / massB) * normal[1];
  return {
    type: 'collide',
    seconds,
    pair,
    positions: [
      [a.x, a.y],
      [b.x, b.y],
    ],
    collision: {
      normal,
      before,
      after: [
        [a.vx, a.vy],
        [b.vx, b.vy],
      ],
    },
  };
}
