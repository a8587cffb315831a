import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openRng } from '../../proto/random.ts';
import { simulate, vectorAt, type Body } from './physics.ts';
import { contactDistance, signedDistance } from './shapes.ts';
import { SHAPES } from './palette.ts';

const TICKS = 480;
const FREE: Body = {
  position: [0, 0],
  velocity: [0, 0],
  acceleration: [0, 0],
  mass: 1,
  startTick: 0,
  brake: null,
  orbit: null,
  limits: {},
};

function close(actual: number, expected: number, tolerance: number, what: string): void {
  assert.ok(Math.abs(actual - expected) <= tolerance, `${what}: ${actual}, expected ${expected}`);
}

test('a head-on collision ends in the textbook velocities, at the exact time', () => {
  const [m1, m2, v1, v2] = [2, 5, 40, -25];
  const bodies: Body[] = [
    { ...FREE, position: [0, 10], velocity: [v1, 0], mass: m1 },
    { ...FREE, position: [100, 10], velocity: [v2, 0], mass: m2 },
  ];
  const pair = { first: 0, second: 1, distance: 31.3 };
  const { happenings, velocities } = simulate(bodies, [pair], 2 * TICKS, TICKS);
  assert.equal(happenings.length, 1);
  close(happenings[0]!.seconds, (100 - 31.3) / (v1 - v2), 1e-12, 'time');
  const [u1, u2] = velocities.map((values) => vectorAt(values, 2 * TICKS)[0]);
  close(u1!, ((m1 - m2) * v1 + 2 * m2 * v2) / (m1 + m2), 1e-12, 'first');
  close(u2!, ((m2 - m1) * v2 + 2 * m1 * v1) / (m1 + m2), 1e-12, 'second');
});

test('oblique collisions conserve momentum and energy, and bodies never come nearer than they touch', () => {
  const rng = openRng(7, 'physics test');
  for (let round = 0; round < 50; round++) {
    const bodies = Array.from({ length: 3 }, (_, i): Body => ({
      ...FREE,
      position: [40 * i, 60 + 10 * rng.normal()],
      velocity: [40 * rng.normal(), 40 * rng.normal()],
      mass: 0.5 + rng.uniform(),
      limits: { left: -20, right: 120, top: 0, bottom: 120 },
    }));
    const pairs = [
      { first: 0, second: 1, distance: 18 },
      { first: 0, second: 2, distance: 16 },
      { first: 1, second: 2, distance: 20 },
    ];
    const { positions, happenings } = simulate(bodies, pairs, 3 * TICKS, TICKS);
    for (const happening of happenings) {
      if (happening.type !== 'collide') continue;
      const masses = [happening.pair.first, happening.pair.second].map((i) => bodies[i]!.mass);
      const sum = (
        of: (v: readonly [number, number], mass: number) => number,
        when: 'before' | 'after',
      ): number => happening.collision[when].reduce((total, v, i) => total + of(v, masses[i]!), 0);
      for (const of of [
        (v: readonly [number, number], mass: number) => mass * v[0],
        (v: readonly [number, number], mass: number) => mass * v[1],
        (v: readonly [number, number], mass: number) => (mass * (v[0] ** 2 + v[1] ** 2)) / 2,
      ]) {
        close(sum(of, 'after'), sum(of, 'before'), 1e-9, 'conserved');
      }
    }
    for (const { first, second, distance } of pairs) {
      for (let tick = 0; tick <= 3 * TICKS; tick++) {
        const [a, b] = [vectorAt(positions[first]!, tick), vectorAt(positions[second]!, tick)];
        assert.ok(Math.hypot(a[0] - b[0], a[1] - b[1]) >= distance - 1e-6);
      }
    }
  }
});

test('free fall, braking and orbits follow their closed forms', () => {
  const bodies: Body[] = [
    { ...FREE, velocity: [3, 5], acceleration: [0, 70] },
    { ...FREE, velocity: [60, 0], brake: { startTick: TICKS / 2, deceleration: 80 } },
    {
      ...FREE,
      orbit: { center: [64, 60], radius: 20, radiansPerSecond: 2.5, startRadians: 0.3 },
    },
  ];
  const { positions, happenings } = simulate(bodies, [], 2 * TICKS, TICKS);
  const [falling, braking, orbiting] = positions.map((values) => vectorAt(values, 2 * TICKS));
  close(falling![0], 6, 1e-9, 'x');
  close(falling![1], 5 * 2 + (70 * 4) / 2, 1e-9, 'fall');
  close(braking![0], 60 * 0.5 + 60 ** 2 / (2 * 80), 1e-9, 'way to rest');
  assert.deepEqual(
    happenings.map(({ type }) => type),
    ['stop'],
  );
  close(happenings[0]!.seconds, 0.5 + 60 / 80, 1e-9, 'time of rest');
  close(orbiting![0], 64 + 20 * Math.cos(0.3 + 5), 1e-9, 'orbit');
});

test('a wall turns a body around at the exact time and place', () => {
  const body: Body = { ...FREE, velocity: [37, 0], limits: { right: 50 } };
  const { positions, happenings } = simulate([body], [], 2 * TICKS, TICKS);
  assert.equal(happenings.length, 1);
  close(happenings[0]!.seconds, 50 / 37, 1e-12, 'time');
  close(vectorAt(positions[0]!, 2 * TICKS)[0], 50 - (37 * 2 - 50), 1e-9, 'place');
});

test('shapes at their contact distance touch: their insides do not meet, and a pixel nearer they do', () => {
  for (const [i, shape] of SHAPES.entries()) {
    const [first, second] = [
      { shape, radius: 20 },
      { shape: SHAPES[(i + 2) % SHAPES.length]!, radius: 24 },
    ];
    for (const isHorizontal of [true, false]) {
      const distance = contactDistance(first, second, isHorizontal);
      for (const [gap, meets] of [
        [0.4, false],
        [-1.2, true],
      ] as const) {
        let found = false;
        for (let x = -30; x <= 80; x += 0.5) {
          for (let y = -30; y <= 80; y += 0.5) {
            const [dx, dy] = isHorizontal ? [distance + gap, 0] : [0, distance + gap];
            found ||=
              signedDistance(first.shape, x / 20, y / 20) < 0 &&
              signedDistance(second.shape, (x - dx) / 24, (y - dy) / 24) < 0;
          }
        }
        assert.equal(
          found,
          meets,
          `${shape} and ${second.shape}, gap ${gap}, horizontal ${isHorizontal}`,
        );
      }
    }
  }
});
