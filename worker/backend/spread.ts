import type { PjrtBuffer } from '../pjrt/buffer.ts';
import type { PjrtClient } from '../pjrt/client.ts';
import { hostArray } from '../pjrt/element-type.ts';
import type { ElementType, HostArray } from '../pjrt/element-type.ts';
import { partsOf } from '../stablehlo/sharding.ts';
import type { Mesh, Sharding } from '../stablehlo/sharding.ts';
import type { HostValues } from './dtypes.ts';

/** A tensor on the devices of a mesh: each has the part that the sharding gives it. */
export interface Spread {
  readonly mesh: Mesh;
  readonly sharding: Sharding;
  /** Of the whole tensor. */
  readonly shape: readonly number[];
  /** In the order of the devices. */
  readonly parts: readonly PjrtBuffer[];
}

/** Cuts `data`, dense and row-major, and copies each device its part. @throws PjrtError `PJRT_BUFFER_FAILED` */
export function spreadFromHost(
  client: PjrtClient,
  mesh: Mesh,
  sharding: Sharding,
  { data, shape, type }: { data: HostData; shape: readonly number[]; type: ElementType },
): Spread {
  const cut = cutOf(mesh, sharding, shape);
  const onHost = new Map<string, HostData>();
  const parts: PjrtBuffer[] = [];
  try {
    for (const [device, place] of placesOf(mesh, sharding, shape.length).entries()) {
      const key = place.join();
      let part = onHost.get(key);
      if (part === undefined) {
        part = cutPart(data, cut, place, type);
        onHost.set(key, part);
      }
      parts.push(client.bufferFromHost(part, cut.partShape, type, device));
    }
  } catch (error) {
    for (const part of parts) part.close();
    throw error;
  }
  return { mesh, sharding, shape, parts };
}

/** Puts the parts together on the host; one copy of each is read. */
export async function spreadToHost(spread: Spread): Promise<HostArray> {
  const [first] = spread.parts as [PjrtBuffer];
  const places = distinctPlaces(spread);
  if (places.length === 1) return first.toHost();
  const cut = cutOf(spread.mesh, spread.sharding, spread.shape);
  const whole = hostArray(spread.shape, first.type);
  await Promise.all(
    places.map(async ({ place, buffer }) => {
      const [start, isContiguous] = startOf(cut, place);
      if (isContiguous) await buffer.toHost(whole.subarray(start, start + cut.partSize));
      else putPart(whole, await buffer.toHost(), cut, place);
    }),
  );
  return whole;
}

/** `spreadToHost`, with this thread held until the elements are computed and copied. */
export function spreadToHostSync(spread: Spread): HostArray {
  const [first] = spread.parts as [PjrtBuffer];
  const places = distinctPlaces(spread);
  if (places.length === 1) return first.toHostSync();
  const cut = cutOf(spread.mesh, spread.sharding, spread.shape);
  const whole = hostArray(spread.shape, first.type);
  for (const { place, buffer } of places) putPart(whole, buffer.toHostSync(), cut, place);
  return whole;
}

type HostData = HostArray | HostValues;

/** How an array is cut. */
interface Cut {
  readonly shape: readonly number[];
  readonly partShape: readonly number[];
  readonly partSize: number;
}

function cutOf(mesh: Mesh, sharding: Sharding, shape: readonly number[]): Cut {
  const parts = partsOf(mesh, sharding, shape.length);
  const partShape = shape.map((size, dimension) => size / parts[dimension]!);
  return { shape, partShape, partSize: partShape.reduce((size, length) => size * length, 1) };
}

/** For each device the position of its part in every dimension. */
function placesOf(mesh: Mesh, sharding: Sharding, rank: number): number[][] {
  const axes = Object.entries(mesh);
  const numDevices = axes.reduce((product, [, size]) => product * size, 1);
  return Array.from({ length: numDevices }, (_, device) => {
    const coordinates: Record<string, number> = {};
    let rest = device;
    for (const [axis, size] of axes.toReversed()) {
      coordinates[axis] = rest % size;
      rest = Math.floor(rest / size);
    }
    return Array.from({ length: rank }, (_, dimension) =>
      (sharding[dimension] ?? []).reduce(
        (position, axis) => position * mesh[axis]! + coordinates[axis]!,
        0,
      ),
    );
  });
}

function distinctPlaces({ mesh, sharding, shape, parts }: Spread) {
  const found = new Map<string, { place: readonly number[]; buffer: PjrtBuffer }>();
  for (const [device, place] of placesOf(mesh, sharding, shape.length).entries()) {
    const key = place.join();
    if (!found.has(key)) found.set(key, { place, buffer: parts[device]! });
  }
  return [...found.values()];
}

/** Where a part begins in the whole, and whether it is one run there. */
function startOf({ shape, partShape }: Cut, place: readonly number[]): [number, boolean] {
  let start = 0;
  for (const [dimension, size] of shape.entries()) {
    start = start * size + place[dimension]! * partShape[dimension]!;
  }
  const last = shape.findLastIndex((size, dimension) => size !== partShape[dimension]);
  return [start, partShape.slice(0, Math.max(0, last)).every((size) => size === 1)];
}

function cutPart(whole: HostData, cut: Cut, place: readonly number[], type: ElementType): HostData {
  const [start, isContiguous] = startOf(cut, place);
  if (isContiguous) return whole.subarray(start, start + cut.partSize);
  const part = hostArray(cut.partShape, type);
  for (const [inWhole, inPart, length] of runsOf(cut, place)) {
    (part as Uint8Array).set(whole.subarray(inWhole, inWhole + length) as Uint8Array, inPart);
  }
  return part;
}

function putPart(whole: HostArray, part: HostArray, cut: Cut, place: readonly number[]): void {
  for (const [inWhole, inPart, length] of runsOf(cut, place)) {
    (whole as Uint8Array).set(part.subarray(inPart, inPart + length) as Uint8Array, inWhole);
  }
}

/** The runs that a part is in the whole: where each begins in the one and the other, and its length. */
function* runsOf(
  { shape, partShape, partSize }: Cut,
  place: readonly number[],
): Generator<[inWhole: number, inPart: number, length: number]> {
  const last = shape.findLastIndex((size, dimension) => size !== partShape[dimension]);
  const length = partShape.slice(Math.max(0, last)).reduce((size, each) => size * each, 1);
  const outer = partShape.slice(0, Math.max(0, last));
  for (let inPart = 0; inPart < partSize; inPart += length) {
    let run = inPart / length;
    const index = new Array<number>(shape.length).fill(0);
    for (let dimension = outer.length - 1; dimension >= 0; dimension--) {
      index[dimension] = run % outer[dimension]!;
      run = Math.floor(run / outer[dimension]!);
    }
    let inWhole = 0;
    for (const [dimension, size] of shape.entries()) {
      const position = place[dimension]! * partShape[dimension]! + index[dimension]!;
      inWhole = inWhole * size + position;
    }
    yield [inWhole, inPart, length];
  }
}
