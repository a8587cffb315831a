/**
 * Pictures made larger or smaller with the bits that Pillow gives them: two passes of integer weights. Models whose
 * authors prepared their pictures so see them so here. Pillow 13 begins with the other pass for some shapes, which
 * changes the last bit of some pixels. Source: python-pillow/Pillow 12, src/libImaging/Resample.c.
 */

/** A filter: how far it reaches at scale 1, and its weight at a distance. */
interface Filter {
  readonly support: number;
  readonly weight: (x: number) => number;
}

export const RESAMPLE_FILTERS = {
  box: { support: 0.5, weight: (x: number) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x: number) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
  lanczos: { support: 3, weight: (x: number) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
} as const satisfies Record<string, Filter>;

export type ResampleFilter = keyof typeof RESAMPLE_FILTERS;

export interface PictureSize {
  readonly width: number;
  readonly height: number;
}

/** Bits behind the point of a weight. */
const PRECISION_BITS = 22;

/** Pixels [H, W, C] of 8 bits, flat, in another size: [H', W', C]. */
export function resample(
  pixels: Uint8Array,
  from: PictureSize,
  to: PictureSize,
  { filter, channels = 3 }: { readonly filter: ResampleFilter; readonly channels?: number },
): Uint8Array {
  const own = RESAMPLE_FILTERS[filter];
  const wide =
    from.width === to.width
      ? pixels
      : along(pixels, weightsOf(from.width, to.width, own), {
          ...{ rows: from.height, stride: channels, size: from.width, inner: channels },
        });
  return from.height === to.height
    ? wide
    : along(wide, weightsOf(from.height, to.height, own), {
        ...{ rows: 1, stride: to.width * channels, size: from.height, inner: to.width * channels },
      });
}

/** For each place there, the first place here that it is made of and the weights from there on. */
interface Weights {
  readonly first: number;
  readonly factors: Int32Array;
}

function weightsOf(from: number, to: number, { support, weight }: Filter): Weights[] {
  const scale = from / to;
  const filterScale = Math.max(scale, 1);
  const reach = support * filterScale;
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const raw = Array.from({ length: end - first }, (_value, i) =>
      weight((i + first - centre + 0.5) * (1 / filterScale)),
    );
    const sum = raw.reduce((a, b) => a + b, 0);
    const factors = Int32Array.from(raw, (value) => {
      const scaled = (sum === 0 ? value : value / sum) * 2 ** PRECISION_BITS;
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    return { first, factors };
  });
}

/** Along an axis of `size` places that lie `stride` apart, `inner` values at each, in `rows` rows of all that. */
function along(
  pixels: Uint8Array,
  weights: readonly Weights[],
  shape: {
    readonly rows: number;
    readonly stride: number;
    readonly size: number;
    readonly inner: number;
  },
): Uint8Array {
  const { rows, stride, size, inner } = shape;
  const out = new Uint8Array(rows * weights.length * inner);
  let at = 0;
  for (let row = 0; row < rows; row++) {
    for (const { first, factors } of weights) {
      const from = (row * size + first) * stride;
      for (let i = 0; i < inner; i++) {
        let sum = 2 ** (PRECISION_BITS - 1);
        for (let k = 0; k < factors.length; k++)
          sum += pixels[from + k * stride + i]! * factors[k]!;
        out[at++] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** PRECISION_BITS)));
      }
    }
  }
  return out;
}

/** Keys' cubic, a = -0.5. */
function cubic(x: number): number {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? ((d - 5) * d + 8) * d * -0.5 + 2 : 0;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}
