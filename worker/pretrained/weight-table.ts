/**
 * How our parameters are named and laid out in somebody else's files: a table by our paths. Their names have `*` where
 * ours has it, for the layer's number. PyTorch keeps the kernel of a linear layer as [out, in], ours is [in, out].
 */
import type { HostTensor } from './tensor-source.ts';

/** One tensor of ours, of one layer where layers are stacked. */
export interface Weight {
  /** What theirs are called that it is made of. */
  readonly names: readonly string[];
  /** The number of the layer there that our layer i is; i unless given. */
  readonly layer?: (layer: number) => number;
  /** Undefined where theirs do not have the shapes that ours follows from. @param shape of ours */
  toOurs(theirs: readonly HostTensor[], shape: readonly number[]): HostTensor | undefined;
  /** The inverse of `toOurs`, in the order of `names`. */
  toTheirs(ours: HostTensor): readonly HostTensor[];
}

/** By our path. */
export type Weights = Readonly<Record<string, Weight>>;

export interface WeightTable {
  readonly weights: Weights;
  /** Names there that hold nothing of the model, `position_ids` for one; `*` is a number, `**` anything. */
  readonly ignored?: readonly string[];
  /** Names there that repeat another: may be there, with the same values. They are not written. */
  readonly tied?: Readonly<Record<string, string>>;
}

/** The very same tensor. */
export function same(name: string): Weight {
  return shaped(name, (shape) => shape);
}

/** The same values in another shape there. */
export function shaped(
  name: string,
  shapeOf: (ours: readonly number[]) => readonly number[],
): Weight {
  return {
    names: [name],
    toOurs: ([theirs], shape) =>
      sameShape(theirs!.shape, shapeOf(shape)) ? { shape, data: theirs!.data } : undefined,
    toTheirs: ({ shape, data }) => [{ shape: shapeOf(shape), data }],
  };
}

/** [in, out], there [out, in]. */
export function transposed(name: string): Weight {
  return fused([name]);
}

/**
 * [in, out of all], there one [out, in] each.
 * @param widths how many outputs each has; equal parts unless given
 */
export function fused(names: readonly string[], widths?: readonly number[]): Weight {
  return {
    names,
    toOurs: (theirs) =>
      theirs.every(({ shape }) => shape.length === 2)
        ? joinColumns(theirs.map(transpose))
        : undefined,
    toTheirs: (ours) => splitColumns(ours, widths ?? equalParts(ours, names.length)).map(transpose),
  };
}

/** [out of all], there one [out] each: the biases of what {@link fused} joins. */
export function joined(names: readonly string[], widths?: readonly number[]): Weight {
  return {
    names,
    toOurs: (theirs) =>
      theirs.every(({ shape }) => shape.length === 1) ? joinColumns(theirs) : undefined,
    toTheirs: (ours) => splitColumns(ours, widths ?? equalParts(ours, names.length)),
  };
}

/**
 * The kernel that is multiplied with flat patches, [P P C, D], there that of a convolution, [D, C, P, P].
 * @param size P
 */
export function patchKernel(name: string, size: number): Weight {
  return {
    names: [name],
    toOurs([theirs], shape) {
      const [width, channels] = theirs!.shape as [number, number];
      const isPatches = sameShape(theirs!.shape, [width, channels, size, size]);
      if (!isPatches || !sameShape(shape, [size * size * channels, width])) return undefined;
      // [D, C, P P] to [P P, C, D].
      const data = permute(theirs!.data, [width, channels, size * size], [2, 1, 0]);
      return { shape, data };
    },
    toTheirs({ shape: [rows, width], data }) {
      const channels = rows! / (size * size);
      const turned = permute(data, [size * size, channels, width!], [2, 1, 0]);
      return [{ shape: [width!, channels, size, size], data: turned }];
    },
  };
}

/** Kernel and bias of a `dense` layer. */
export function linear(path: string, name: string): Weights {
  return {
    [`${path}/kernel`]: transposed(`${name}.weight`),
    [`${path}/bias`]: same(`${name}.bias`),
  };
}

/** One `dense` layer of ours, there one for each of `names`. */
export function fusedLinear(path: string, names: readonly string[]): Weights {
  return {
    [`${path}/kernel`]: fused(names.map((name) => `${name}.weight`)),
    [`${path}/bias`]: joined(names.map((name) => `${name}.bias`)),
  };
}

export function norm(path: string, name: string): Weights {
  return { [`${path}/scale`]: same(`${name}.weight`), [`${path}/offset`]: same(`${name}.bias`) };
}

/** A part's weights within a whole: `path` and `prefix` go before ours and theirs. */
export function nested(
  weights: Weights,
  { path, prefix }: { path: string; prefix: string },
): Weights {
  return Object.fromEntries(
    Object.entries(weights).map(([own, weight]) => [
      `${path}${own}`,
      { ...weight, names: weight.names.map((name) => `${prefix}${name}`) },
    ]),
  );
}

/** Weights whose layer i is another one there. */
export function atLayers(weights: Weights, layer: (layer: number) => number): Weights {
  return Object.fromEntries(
    Object.entries(weights).map(([path, weight]) => [path, { ...weight, layer }]),
  );
}

export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((extent, axis) => extent === b[axis]);
}

/** [rows, columns] to [columns, rows]. */
export function transpose({ shape, data }: HostTensor): HostTensor {
  const [rows, columns] = shape as [number, number];
  return { shape: [columns, rows], data: permute(data, [rows, columns, 1], [1, 0, 2]) };
}

/** Axis i of the result is axis `order[i]` of the values. */
function permute(
  values: Float32Array,
  shape: readonly [number, number, number],
  order: readonly [0 | 1 | 2, 0 | 1 | 2, 0 | 1 | 2],
): Float32Array {
  const strides = [shape[1] * shape[2], shape[2], 1];
  const [a, b, c] = order.map((axis) => ({ extent: shape[axis], stride: strides[axis]! })) as [
    { extent: number; stride: number },
    { extent: number; stride: number },
    { extent: number; stride: number },
  ];
  const out = new Float32Array(values.length);
  let at = 0;
  for (let i = 0; i < a.extent; i++) {
    for (let j = 0; j < b.extent; j++) {
      const from = i * a.stride + j * b.stride;
      for (let k = 0; k < c.extent; k++) out[at++] = values[from + k * c.stride]!;
    }
  }
  return out;
}

/** Along the last axis; undefined where the others differ. */
function joinColumns(parts: readonly HostTensor[]): HostTensor | undefined {
  const front = parts[0]!.shape.slice(0, -1);
  if (!parts.every(({ shape }) => sameShape(shape.slice(0, -1), front))) return undefined;
  const widths = parts.map(({ shape }) => shape.at(-1)!);
  const width = widths.reduce((a, b) => a + b, 0);
  const rows = front.reduce((a, b) => a * b, 1);
  const data = new Float32Array(rows * width);
  let left = 0;
  for (const [part, own] of widths.entries()) {
    const { data: from } = parts[part]!;
    for (let row = 0; row < rows; row++) {
      data.set(from.subarray(row * own, (row + 1) * own), row * width + left);
    }
    left += own;
  }
  return { shape: [...front, width], data };
}

function splitColumns({ shape, data }: HostTensor, widths: readonly number[]): HostTensor[] {
  const front = shape.slice(0, -1);
  const width = shape.at(-1)!;
  const rows = front.reduce((a, b) => a * b, 1);
  let left = 0;
  return widths.map((own) => {
    const part = new Float32Array(rows * own);
    for (let row = 0; row < rows; row++) {
      const from = row * width + left;
      part.set(data.subarray(from, from + own), row * own);
    }
    left += own;
    return { shape: [...front, own], data: part };
  });
}

function equalParts({ shape }: HostTensor, count: number): number[] {
  return new Array<number>(count).fill(shape.at(-1)! / count);
}
