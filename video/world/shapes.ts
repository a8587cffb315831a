/** Shapes as signed distances and polygons, inscribed in the square from -1 to 1; y points down. */
import { SHAPES, type Shape } from './palette.ts';
import type { Box, Vector } from './ground-truth.ts';

const STAR: readonly Vector[] = Array.from({ length: 10 }, (_, i): Vector => {
  const length = i % 2 === 0 ? 1.05 : 0.48;
  const angle = (i * Math.PI) / 5;
  return [length * Math.sin(angle), 0.07 - length * Math.cos(angle)];
});

const POLYGONS: Readonly<Record<Exclude<Shape, 'circle'>, readonly Vector[]>> = {
  square: [
    [-0.88, -0.88],
    [0.88, -0.88],
    [0.88, 0.88],
    [-0.88, 0.88],
  ],
  triangle: [
    [0, -0.94],
    [1, 0.86],
    [-1, 0.86],
  ],
  star: STAR,
  diamond: [
    [0, -1],
    [0.86, 0],
    [0, 1],
    [-0.86, 0],
  ],
};

/** Each edge of a polygon as x, y of its start, then its direction, then 1 / length squared. */
const EDGES = Object.fromEntries(
  Object.entries(POLYGONS).map(([shape, corners]) => [
    shape,
    corners.flatMap(([ax, ay], i) => {
      const [bx, by] = corners.at(i - 1)!;
      return [ax, ay, bx - ax, by - ay, 1 / ((bx - ax) ** 2 + (by - ay) ** 2)];
    }),
  ]),
) as unknown as Readonly<Record<keyof typeof POLYGONS, readonly number[]>>;

/** Distance of a point to the shape's edge, negative inside. Source for polygons: Quilez, "2D distance functions". */
export function signedDistance(shape: Shape, x: number, y: number): number {
  if (shape === 'circle') return Math.sqrt(x * x + y * y) - 1;
  const edges = EDGES[shape];
  let nearest = Infinity;
  let isInside = false;
  for (let i = 0; i < edges.length; i += 5) {
    const [wx, wy, ex, ey] = [x - edges[i]!, y - edges[i + 1]!, edges[i + 2]!, edges[i + 3]!];
    const along = Math.min(1, Math.max(0, (wx * ex + wy * ey) * edges[i + 4]!));
    const [dx, dy] = [wx - ex * along, wy - ey * along];
    nearest = Math.min(nearest, dx * dx + dy * dy);
    // Crossings of a ray: an odd number means inside.
    if (wy >= 0 !== wy - ey >= 0 && ex * wy > ey * wx === ey > 0) isInside = !isInside;
  }
  return isInside ? -Math.sqrt(nearest) : Math.sqrt(nearest);
}

/** Each shape's tight box. */
export const EXTENTS = Object.fromEntries(
  SHAPES.map((shape): [Shape, Box] => {
    if (shape === 'circle') return [shape, [-1, -1, 1, 1]];
    const [xs, ys] = [0, 1].map((axis) => POLYGONS[shape].map((corner) => corner[axis]!));
    return [shape, [Math.min(...xs!), Math.min(...ys!), Math.max(...xs!), Math.max(...ys!)]];
  }),
) as Readonly<Record<Shape, Box>>;

/**
 * How far apart the centres of two bodies are when they touch, the second being right of (`horizontal`) or under
 * the first, so that bodies of any shape meet edge to edge.
 */
export function contactDistance(
  first: { readonly shape: Shape; readonly radius: number },
  second: { readonly shape: Shape; readonly radius: number },
  isHorizontal: boolean,
): number {
  let distance = 0;
  const reach = Math.max(first.radius, second.radius);
  for (let i = -64; i <= 64; i++) {
    const line = (i / 64) * reach;
    const ahead = edgeAlong(first.shape, line / first.radius, isHorizontal, 1) * first.radius;
    const behind = edgeAlong(second.shape, line / second.radius, isHorizontal, -1) * second.radius;
    distance = Math.max(distance, ahead + behind); // -Infinity where a line misses one of them
  }
  return distance;
}

/** The outermost point of the shape on a line parallel to the axis, in the axis's direction; -Infinity off the shape. */
function edgeAlong(shape: Shape, line: number, isHorizontal: boolean, direction: 1 | -1): number {
  if (shape === 'circle') return Math.abs(line) > 1 ? -Infinity : Math.sqrt(1 - line * line);
  const corners = POLYGONS[shape];
  let outermost = -Infinity;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i, i++) {
    const [a, b] = [corners[i]!, corners[j]!];
    const [aLine, bLine] = isHorizontal ? [a[1], b[1]] : [a[0], b[0]];
    const [aAxis, bAxis] = isHorizontal ? [a[0], b[0]] : [a[1], b[1]];
    if (line < Math.min(aLine, bLine) || line > Math.max(aLine, bLine)) continue;
    const share = aLine === bLine ? 0 : (line - aLine) / (bLine - aLine);
    outermost = Math.max(outermost, direction * (aAxis + share * (bAxis - aAxis)));
    if (aLine === bLine) outermost = Math.max(outermost, direction * bAxis);
  }
  return outermost;
}
