/** Draws a clip's frames from its ground truth, straight into yuv420p: BT.601, limited range. Pure. */
import { openRng } from '../../proto/random.ts';
import type { GroundTruth, Shot, WorldObject } from './ground-truth.ts';
import type { Rgb } from './palette.ts';
import { signedDistance } from './shapes.ts';

/** Sub-pixel positions that shapes are drawn at, per pixel and axis. */
const PHASES = 4;
/** Falls to the lower right; the strength is in 256ths. */
const SHADOW = { x: 2, y: 3, strength: 77 };

/** What the renderer needs of a ground truth. */
export type Drawable = Pick<
  GroundTruth,
  'seed' | 'index' | 'width' | 'height' | 'frames' | 'shots'
> & { readonly objects: readonly DrawableObject[] };

type DrawableObject = Pick<WorldObject, 'shot' | 'shape' | 'rgb' | 'radius'> & {
  readonly track: Pick<WorldObject['track'], 'firstFrame' | 'centers' | 'boxes'> & {
    /** Of each frame, where the size changes. */
    readonly radii?: readonly number[];
  };
};

/** Yields the frames in order; the buffer (Y, then U, then V) is used again for each. Sides must be even. */
export function* renderFrames(truth: Drawable): Generator<Uint8Array> {
  const { width, height } = truth;
  const frame = new Uint8Array((width * height * 3) / 2);
  let background = new Uint8Array(0) as Uint8Array;
  let painters: Painter[] = [];
  let shotIndex = -1;
  for (const [index, ownShot] of truth.frames.shots.entries()) {
    if (ownShot !== shotIndex) {
      shotIndex = ownShot;
      background = drawBackground(truth, truth.shots[ownShot]!);
      painters = truth.objects
        .filter(({ shot }) => shot === ownShot)
        .map((object) => painterOf(object, width, height));
    }
    frame.set(background);
    const shown = painters
      .filter(({ object }) => boxAt(object, index) !== null)
      .map((painter) => {
        const radius = painter.object.track.radii?.[index - painter.object.track.firstFrame];
        if (radius === undefined || radius === painter.object.radius) return painter;
        return painterOf({ ...painter.object, radius }, width, height);
      });
    for (const { object, shade } of shown) shade(frame, ...centerAt(object, index));
    for (const { object, paint } of shown) paint(frame, ...centerAt(object, index));
    yield frame;
  }
}

function boxAt({ track }: DrawableObject, frame: number): WorldObject['track']['boxes'][number] {
  return track.boxes[frame - track.firstFrame]!;
}

function centerAt({ track }: DrawableObject, frame: number): readonly [number, number] {
  return track.centers[frame - track.firstFrame]!;
}

function toYuv([red, green, blue]: Rgb): [y: number, u: number, v: number] {
  return [
    16 + 0.25679 * red + 0.50413 * green + 0.09791 * blue,
    128 - 0.14822 * red - 0.29099 * green + 0.43922 * blue,
    128 + 0.43922 * red - 0.36779 * green - 0.07143 * blue,
  ];
}

function drawBackground(truth: Drawable, shot: Shot): Uint8Array {
  const { width, height } = truth;
  const side = Math.min(width, height);
  const rng = openRng(truth.seed, 'background', truth.index, shot.index);
  const angle = rng.uniform() * 2 * Math.PI;
  const [shiftX, shiftY] = [rng.uniform() * side, rng.uniform() * side];
  const period = side * (0.18 + 0.1 * rng.uniform());
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const { pattern, tones } = shot.background;
  /** Share of the second tone, 0 to 1. */
  const mixAt = (x: number, y: number): number => {
    switch (pattern) {
      case 'plain':
        return 0.5;
      case 'fade':
        return 0.5 + (0.9 * (cos * (x - width / 2) + sin * (y - height / 2))) / side;
      case 'stripes':
        return edge(Math.abs(mod((cos * x + sin * y + shiftX) / period, 1) - 0.5) - 0.25, period);
      case 'checks': {
        const [u, v] = [wave((x + shiftX) / period), wave((y + shiftY) / period)];
        return edge((u * v) / 4, period);
      }
      case 'dots': {
        const [u, v] = [mod((x + shiftX) / period, 1) - 0.5, mod((y + shiftY) / period, 1) - 0.5];
        return edge(Math.hypot(u, v) - 0.3, period);
      }
    }
  };
  const pixels = new Float32Array(3 * width * height);
  let noise = 0;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const mix = Math.min(1, Math.max(0, mixAt(x + 0.5, y + 0.5)));
      if (i % 4 === 0) noise = rng.uint32();
      const grain = ((noise >>> (8 * (i % 4))) & 255) / 64 - 2;
      for (let channel = 0; channel < 3; channel++) {
        const [from, to] = [tones[0][channel]!, tones[1][channel]!];
        // The fade spans more than its two tones, or it would hardly show.
        const stretched = pattern === 'fade' ? 1.7 * mix - 0.35 : mix;
        pixels[3 * i + channel] = from + (to - from) * stretched + grain;
      }
    }
  }
  const isDark = tones[0][1] + tones[1][1] < 260;
  for (const wall of shot.walls) {
    const bar = isDark ? 205 : 40;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const depth = { left: x, right: width - 1 - x, top: y, bottom: height - 1 - y }[wall.side];
        if (depth < wall.thickness) pixels.fill(bar, 3 * i, 3 * i + 3);
      }
    }
  }
  return toPlanes(pixels, width, height);
}

function mod(value: number, divisor: number): number {
  return value - Math.floor(value / divisor) * divisor;
}

/** A triangle wave from -1 to 1 whose sign changes each period. */
function wave(value: number): number {
  return 1 - 2 * Math.abs(mod(value, 2) - 1);
}

/** A step at zero, one pixel wide; `distance` is in periods. */
function edge(distance: number, period: number): number {
  return Math.min(1, Math.max(0, 0.5 + distance * period));
}

function toPlanes(rgb: Float32Array, width: number, height: number): Uint8Array {
  const planes = new Uint8Array((width * height * 3) / 2);
  const [uStart, vStart] = [width * height, (width * height * 5) / 4];
  const chroma = new Float32Array((width * height) / 2);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const [luma, u, v] = toYuv([rgb[3 * i]!, rgb[3 * i + 1]!, rgb[3 * i + 2]!]);
      planes[i] = Math.round(luma);
      const j = (y >> 1) * (width / 2) + (x >> 1);
      chroma[2 * j]! += u / 4;
      chroma[2 * j + 1]! += v / 4;
    }
  }
  for (let j = 0; j < chroma.length / 2; j++) {
    planes[uStart + j] = Math.round(chroma[2 * j]!);
    planes[vStart + j] = Math.round(chroma[2 * j + 1]!);
  }
  return planes;
}

interface Painter {
  readonly object: DrawableObject;
  readonly paint: (frame: Uint8Array, x: number, y: number) => void;
  readonly shade: (frame: Uint8Array, x: number, y: number) => void;
}

/** A shape drawn at one sub-pixel position; coverage from 0 to 256. */
interface Sprite {
  readonly cover: Uint16Array;
  readonly luma: Uint8Array;
  /** In each row the first column with any coverage, and one past the last. */
  readonly spans: readonly (readonly [from: number, to: number])[];
}

/** Draws one object: sprites are made when a sub-pixel position is first needed, and blended from then on. */
function painterOf(object: DrawableObject, width: number, height: number): Painter {
  const [, objectU, objectV] = toYuv(object.rgb);
  const reach = Math.ceil(object.radius) + 2;
  const size = 2 * reach + 1;
  const sprites: (Sprite | undefined)[] = [];
  const [uStart, vStart] = [width * height, (width * height * 5) / 4];

  /** The sprite for a centre, and where its left top corner comes. */
  const place = (x: number, y: number): [Sprite, left: number, top: number] => {
    const [qx, qy] = [Math.round(x * PHASES), Math.round(y * PHASES)];
    const [left, top] = [Math.floor(qx / PHASES), Math.floor(qy / PHASES)];
    const [phaseX, phaseY] = [qx - left * PHASES, qy - top * PHASES];
    const sprite = (sprites[phaseY * PHASES + phaseX] ??= drawSprite(object, reach, {
      x: phaseX / PHASES,
      y: phaseY / PHASES,
    }));
    return [sprite, left - reach, top - reach];
  };

  return {
    object,
    paint(frame, x, y) {
      const [{ cover, luma, spans }, left, top] = place(x, y);
      const [firstY, endY] = [Math.max(0, top), Math.min(height, top + size)];
      for (let py = firstY; py < endY; py++) {
        const [from, to] = spans[py - top]!;
        const end = Math.min(width, left + to);
        for (let px = Math.max(0, left + from); px < end; px++) {
          const [i, j] = [(py - top) * size + px - left, py * width + px];
          frame[j] = frame[j]! + (((luma[i]! - frame[j]!) * cover[i]! + 128) >> 8);
        }
      }
      // Each chroma sample is covered by the mean of its four pixels.
      for (let py = firstY & ~1; py < endY; py += 2) {
        const [above, below] = [spans[py - top] ?? [size, 0], spans[py + 1 - top] ?? [size, 0]];
        const end = Math.min(width, left + Math.max(above[1], below[1]));
        for (let px = Math.max(0, left + Math.min(above[0], below[0])) & ~1; px < end; px += 2) {
          let sum = 0;
          for (let dy = 0; dy < 2; dy++) {
            const row = py + dy - top;
            if (row < 0 || row >= size) continue;
            const column = px - left;
            if (column >= 0) sum += cover[row * size + column]!;
            if (column + 1 < size) sum += cover[row * size + column + 1]!;
          }
          const j = (py >> 1) * (width >> 1) + (px >> 1);
          const [u, v] = [frame[uStart + j]!, frame[vStart + j]!];
          frame[uStart + j] = u + (((objectU - u) * sum + 512) >> 10);
          frame[vStart + j] = v + (((objectV - v) * sum + 512) >> 10);
        }
      }
    },
    shade(frame, x, y) {
      const [{ cover, spans }, left, top] = place(x + SHADOW.x, y + SHADOW.y);
      const endY = Math.min(height, top + size);
      for (let py = Math.max(0, top); py < endY; py++) {
        const [from, to] = spans[py - top]!;
        const end = Math.min(width, left + to);
        for (let px = Math.max(0, left + from); px < end; px++) {
          const j = py * width + px;
          const strength = SHADOW.strength * cover[(py - top) * size + px - left]!;
          frame[j] = frame[j]! - (((frame[j]! - 16) * strength) >> 16);
        }
      }
    },
  };
}

function drawSprite(
  { shape, radius, rgb }: DrawableObject,
  reach: number,
  phase: { readonly x: number; readonly y: number },
): Sprite {
  const size = 2 * reach + 1;
  const cover = new Uint16Array(size * size);
  const luma = new Uint8Array(size * size);
  const [objectY] = toYuv(rgb);
  const spans = Array.from({ length: size }, (_, row): [number, number] => {
    let [from, to] = [size, 0];
    // Distances of the pixel's centre from the object's, in pixels.
    const y = row - reach + 0.5 - phase.y;
    for (let column = 0; column < size; column++) {
      const x = column - reach + 0.5 - phase.x;
      const distance = signedDistance(shape, x / radius, y / radius) * radius;
      if (distance >= 0.5) continue;
      [from, to] = [Math.min(from, column), column + 1];
      const i = row * size + column;
      cover[i] = Math.round(256 * Math.min(1, 0.5 - distance));
      // A darker rim, and light from above.
      const rim = Math.min(1, Math.max(0, (distance + 2.6) / 1.4));
      luma[i] = Math.round(16 + (objectY - 16) * (1 - 0.38 * rim) - (7 * y) / radius);
    }
    return [from, to];
  });
  return { cover, luma, spans };
}
