/** How tensors of a program are spread over devices, and how Shardy writes it. Source: openxla.org/shardy/sharding_representation */

/** Sizes of the named axes that devices are arranged along; from one device to the next the last axis varies first. */
export type Mesh = Readonly<Record<string, number>>;

/**
 * For each dimension of a tensor the mesh axes that cut it into equal parts, the major one first. Dimensions past the
 * end of the list are whole, and along axes that are not named every device has a copy.
 */
export type Sharding = readonly (readonly string[])[];

/** Every device has all of it. */
export const REPLICATED: Sharding = [];

/** The shardings of a program's parameters and results over `mesh`. */
export interface ProgramShardings {
  readonly mesh: Mesh;
  readonly parameters: readonly Sharding[];
  readonly results: readonly Sharding[];
  /**
   * Positions of the parameters by which the operations are cut where shardings contradict: they spread through the
   * program first. A batch leads, for example, so that weights that are cut along the same axis are gathered for each
   * use, instead of the batch's activations. Empty: all are alike.
   */
  readonly leading: ReadonlySet<number>;
}

export function numDevicesOf(mesh: Mesh): number {
  return Object.values(mesh).reduce((product, size) => product * size, 1);
}

/** The same sharding without axes of one device and without dimensions at the end that are whole: equal ones look equal. */
export function normalSharding(mesh: Mesh, sharding: Sharding): Sharding {
  const cuts = sharding.map((axes) => axes.filter((axis) => mesh[axis] !== 1));
  const length = cuts.findLastIndex((axes) => axes.length > 0) + 1;
  return length === 0 ? REPLICATED : cuts.slice(0, length);
}

export function sameSharding(a: Sharding, b: Sharding): boolean {
  return a === b || shardingText(a) === shardingText(b);
}

/** For messages and signatures: `data+fsdp,,tensor`; empty when replicated. */
export function shardingText(sharding: Sharding): string {
  return sharding.map((axes) => axes.join('+')).join();
}

/** Into how many parts each dimension of a tensor of that rank is cut. */
export function partsOf(mesh: Mesh, sharding: Sharding, rank: number): number[] {
  return Array.from({ length: rank }, (_, dimension) =>
    (sharding[dimension] ?? []).reduce((parts, axis) => parts * mesh[axis]!, 1),
  );
}

/** `sdy.mesh @mesh = <["data"=2, "tensor"=2]>` */
export function printMesh(mesh: Mesh): string {
  const axes = Object.entries(mesh).map(([name, size]) => `"${name}"=${size}`);
  return `sdy.mesh @mesh = <[${axes.join(', ')}]>`;
}

/** The attribute of a parameter or result of that rank; priority 0 spreads first. */
export function printSharding(sharding: Sharding, rank: number, priority: number): string {
  const dimensions = Array.from({ length: rank }, (_, dimension) => {
    const axes = (sharding[dimension] ?? []).map((axis) => `"${axis}"`);
    return `{${axes.join(', ')}}${axes.length > 0 && priority > 0 ? `p${priority}` : ''}`;
  });
  return `sdy.sharding = #sdy.sharding<@mesh, [${dimensions.join(', ')}]>`;
}
