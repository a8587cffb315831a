import { UsageError } from '../../proto/errors.ts';
import { nearest } from '../nearest.ts';
import { pathMatcher, treesOf } from '../parameter-paths.ts';
import { normalSharding, partsOf, type Mesh, type Sharding } from '../stablehlo/sharding.ts';

/** How the devices of one worker share a step; the `parallel` section of a config. */
export interface ParallelConfig {
  readonly mesh: {
    /** null: the devices that the others leave. */
    readonly data: number | null;
    readonly fsdp: number;
    readonly tensor: number;
  };
  readonly fsdpMinElements: number;
  readonly rules: readonly ShardingRule[];
}

export interface ShardingRule {
  /**
   * A parameter's path or that of a tree of them, such as `blocks/3/attention`. `*` stands for any one part of it, `**`
   * for any number of parts.
   */
  readonly path: string;
  /** The axis or axes that cut each dimension. The last entry is for the last dimension, so that biases fit too. */
  readonly axes: readonly (ParameterAxis | readonly ParameterAxis[] | null)[];
}

export type ParameterAxis = 'fsdp' | 'tensor';

/** The mesh of a worker's devices, as the engine takes it. */
export function meshAxes({ mesh }: ParallelConfig): Record<string, number | 'rest'> {
  return { data: mesh.data ?? 'rest', fsdp: mesh.fsdp, tensor: mesh.tensor };
}

/** The rows of a microbatch are cut along both axes along which parameters are not split for good. */
export function rowSharding(mesh: Mesh): Sharding {
  return normalSharding(mesh, [['data', 'fsdp'].filter((axis) => axis in mesh)]);
}

/** Parts that the rows of a microbatch are cut into. */
export function rowParts(mesh: Mesh): number {
  return partsOf(mesh, rowSharding(mesh), 1)[0]!;
}

/**
 * The sharding of every parameter by its path: that of the first rule that fits, and along `fsdp`, where no rule says
 * it, the largest dimension that divides, of parameters with at least `fsdpMinElements`. Moments lie as their
 * parameters. Source of the default: Rajbhandari et al. 2020, arXiv:1910.02054, sec. 5.3 (stage 3).
 *
 * @throws UsageError `SHARDING_INVALID` for a rule that fits no parameter, or cuts one into parts of unequal size
 */
export function parameterShardings(
  mesh: Mesh,
  { rules, fsdpMinElements }: ParallelConfig,
  parameters: readonly (readonly [path: string, { readonly shape: readonly number[] }])[],
): Map<string, Sharding> {
  const matchers = rules.map(({ path }) => pathMatcher(path));
  for (const [index, { path }] of rules.entries()) {
    if (parameters.some(([name]) => matchers[index]!(name))) continue;
    const near = nearest(path, [...new Set(parameters.flatMap(([name]) => treesOf(name)))]);
    throw new UsageError(
      'SHARDING_INVALID',
      `parallel.rules[${index}].path is ${path}, and the model has no such parameters` +
        (near === undefined ? '' : `; did you mean ${near}?`),
    );
  }
  return new Map(
    parameters.map(([path, { shape }]) => {
      const index = matchers.findIndex((matches) => matches(path));
      const ruled = index < 0 ? shape.map(() => []) : cutsOf(rules[index]!, shape);
      if (index >= 0) checkCuts(mesh, ruled, { path, shape, index });
      const isBig = shape.reduce((product, length) => product * length, 1) >= fsdpMinElements;
      // Of stacked layers one is used at a time: each is cut, rather than the stack.
      const first = path.split('/').includes('*') ? 1 : 0;
      return [path, normalSharding(mesh, isBig ? withFsdp(mesh, ruled, shape, first) : ruled)];
    }),
  );
}

function cutsOf({ axes }: ShardingRule, shape: readonly number[]): string[][] {
  return shape.map((_, dimension) => {
    const entry = axes[axes.length - shape.length + dimension] ?? null;
    if (entry === null) return [];
    return typeof entry === 'string' ? [entry] : [...entry];
  });
}

function checkCuts(
  mesh: Mesh,
  cuts: Sharding,
  { path, shape, index }: { path: string; shape: readonly number[]; index: number },
): void {
  const where = `parallel.rules[${index}].axes for ${path} [${shape.join(', ')}]`;
  const axes = cuts.flat();
  const twice = axes.find((axis, at) => axes.indexOf(axis) !== at);
  if (twice !== undefined) {
    throw new UsageError(
      'SHARDING_INVALID',
      `${where}: ${twice} is named twice, and can cut a parameter along one dimension only`,
    );
  }
  for (const [dimension, parts] of partsOf(mesh, cuts, shape.length).entries()) {
    if (shape[dimension]! % parts === 0) continue;
    throw new UsageError(
      'SHARDING_INVALID',
      `${where}: dimension ${dimension} (${shape[dimension]!}) does not divide into the ${parts} parts of ` +
        `${cuts[dimension]!.join(' x ')}; change parallel.mesh, the rule or the model's sizes`,
    );
  }
}

/** `cuts` with the axis `fsdp` on the best dimension for it from `first` on, if there is one. */
function withFsdp(mesh: Mesh, cuts: Sharding, shape: readonly number[], first: number): Sharding {
  const size = mesh['fsdp'] ?? 1;
  if (size === 1 || cuts.flat().includes('fsdp')) return cuts;
  const parts = partsOf(mesh, cuts, shape.length);
  const free = [...shape.keys()].filter(
    (dimension) => dimension >= first && (shape[dimension]! / parts[dimension]!) % size === 0,
  );
  // Where another axis cuts too, the parts would be small and of two kinds: rather elsewhere.
  const best = free.toSorted((a, b) => parts[a]! - parts[b]! || shape[b]! - shape[a]! || a - b)[0];
  return best === undefined
    ? cuts
    : cuts.map((axes, dimension) => (dimension === best ? [...axes, 'fsdp'] : axes));
}
