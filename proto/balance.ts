/**
 * Which samples of a window of steps form which microbatch, so that the microbatches of a step cost the same. All have
 * equally many samples, so that their shapes stay equal.
 *
 * A step waits for its slowest microbatch, so what counts is that microbatches of one step are alike, not that steps
 * are. Within a step the dearest sample goes first, into the cheapest microbatch that is not full. A sample that costs
 * more than a microbatch should ("giant") spoils this whatever is done within its step; where a window has any, its
 * samples are regrouped over its steps: giants come together, one a microbatch, each beside samples that fill up to the
 * dearest; the rest is spread. Source: Graham 1969, "Bounds on Multiprocessing Timing Anomalies" (longest first);
 * grouping across batches as in OmniBal, arXiv:2407.20761, sec. 4.1, but with equal counts and a bounded window.
 */

import { shuffled, type Rng } from './random.ts';

/** Shape of a window: `steps` times `microbatches` times `microbatchSize` samples. */
export interface WindowShape {
  readonly steps: number;
  readonly microbatches: number;
  readonly microbatchSize: number;
}

/** Indices of a window's samples by step and microbatch, ascending within a microbatch. */
export type Grouping = readonly (readonly (readonly number[])[])[];

/** By how much a slowest microbatch may exceed the mean of its step before samples leave the step they stand in. */
const TOLERANCE = 0.05;

/**
 * Every index of `costs` once, by step and microbatch. Samples stay in their step if that is enough for balance in
 * all steps of the window, and where they are if all cost the same. Pure; `rng` orders regrouped steps.
 *
 * @param costs in the order of the samples, at least 0, as many as the shape has places
 */
export function balanceWindow(costs: ArrayLike<number>, shape: WindowShape, rng: Rng): Grouping {
  const { steps, microbatches, microbatchSize: size } = shape;
  const numPerStep = microbatches * size;
  const inOrder = Array.from({ length: steps }, (_, step) =>
    range(step * numPerStep, (step + 1) * numPerStep),
  );
  if (isConstant(costs)) return inOrder.map((step) => chunks(step, size));
  const own = inOrder.map((step) => spread(step, costs, microbatches, size));
  if (own.every((step) => slowest(step, costs) <= (1 + TOLERANCE) * mean(step, costs))) return own;
  const regrouped = regroup(costs, shape);
  const total = (grouping: Grouping): number =>
    grouping.reduce((sum, step) => sum + slowest(step, costs), 0);
  return total(regrouped) < total(own) ? shuffled(regrouped, rng) : own;
}

/**
 * An order of microbatches in which contiguous parts weigh about the same, however many parts there are: the heaviest
 * beside the lightest, then pairs beside pairs, and so on. Gives indices of `loads`, whose number is a power of two.
 */
export function arrangeEvenly(loads: ArrayLike<number>): number[] {
  if (isConstant(loads)) return range(0, loads.length);
  let parts = range(0, loads.length).map((index) => ({ load: loads[index]!, members: [index] }));
  while (parts.length > 1) {
    const sorted = [...parts].sort((a, b) => b.load - a.load || a.members[0]! - b.members[0]!);
    parts = sorted.slice(0, sorted.length / 2).map((heavy, i) => {
      const light = sorted[sorted.length - 1 - i]!;
      return { load: heavy.load + light.load, members: [...heavy.members, ...light.members] };
    });
  }
  return parts[0]!.members;
}

/** Costs of the microbatches of a step. */
export function loadsOf(step: Grouping[number], costs: ArrayLike<number>): number[] {
  return step.map((microbatch) => microbatch.reduce((sum, index) => sum + costs[index]!, 0));
}

/** Distributes `indices` over `count` groups of `size` each: the dearest first, to the cheapest group with a place. */
function spread(
  indices: readonly number[],
  costs: ArrayLike<number>,
  count: number,
  size: number,
): number[][] {
  const groups = Array.from({ length: count }, (): number[] => []);
  const open = new LoadHeap(count);
  for (const index of dearestFirst(indices, costs)) {
    const group = open.lightest;
    groups[group]!.push(index);
    if (groups[group]!.length < size) open.add(costs[index]!);
    else open.remove();
  }
  for (const group of groups) group.sort((a, b) => a - b);
  return groups;
}

/** Steps of a window whose samples may change the step: those of giants first, then the dearer ones. */
function regroup(costs: ArrayLike<number>, shape: WindowShape): number[][][] {
  const { steps, microbatches, microbatchSize: size } = shape;
  const rest = dearestFirst(range(0, costs.length), costs);
  const made: number[][][] = [];
  for (let left = steps; left > 0; left--) {
    const average = sumOf(rest, costs) / (left * microbatches);
    // What a microbatch with the dearest sample costs at least.
    const target = costs[rest[0]!]! + sumOf(rest.slice(rest.length - (size - 1)), costs);
    if (target <= average || left === 1) {
      const groups = spread(rest, costs, left * microbatches, size);
      const loads = loadsOf(groups, costs);
      const order = range(0, groups.length).sort((a, b) => loads[b]! - loads[a]! || a - b);
      made.push(
        ...chunks(
          order.map((group) => groups[group]!),
          microbatches,
        ),
      );
      break;
    }
    const filled = Array.from({ length: microbatches }, () => {
      const [giant] = rest.splice(0, 1) as [number];
      const first = nearestRun(rest, costs, size - 1, target - costs[giant]!);
      return [giant, ...rest.splice(first, size - 1)].sort((a, b) => a - b);
    });
    // Where too few samples are large enough to fill up with, longest first does better.
    const again = spread(filled.flat(), costs, microbatches, size);
    made.push(slowest(again, costs) < slowest(filled, costs) ? again : filled);
  }
  return made;
}

/** Where in `sorted` the run of `length` begins whose costs add up to about `wanted`; of equals the cheapest. */
function nearestRun(
  sorted: readonly number[],
  costs: ArrayLike<number>,
  length: number,
  wanted: number,
): number {
  let sum = sumOf(sorted.slice(0, length), costs);
  let [best, bestDistance] = [0, Math.abs(sum - wanted)];
  for (let first = 1; first + length <= sorted.length; first++) {
    sum += costs[sorted[first + length - 1]!]! - costs[sorted[first - 1]!]!;
    const distance = Math.abs(sum - wanted);
    if (distance <= bestDistance) [best, bestDistance] = [first, distance];
  }
  return best;
}

/** Groups by load, then by number; the lightest on top (a binary heap). */
class LoadHeap {
  readonly #heap: { load: number; group: number }[];

  constructor(count: number) {
    this.#heap = Array.from({ length: count }, (_, group) => ({ load: 0, group }));
  }

  get lightest(): number {
    return this.#heap[0]!.group;
  }

  /** Adds to the load of the lightest. */
  add(load: number): void {
    this.#heap[0]!.load += load;
    this.#sink();
  }

  /** Takes the lightest out. */
  remove(): void {
    const last = this.#heap.pop()!;
    if (this.#heap.length === 0) return;
    this.#heap[0] = last;
    this.#sink();
  }

  #sink(): void {
    const heap = this.#heap;
    const isBefore = (a: number, b: number): boolean =>
      heap[a]!.load < heap[b]!.load ||
      (heap[a]!.load === heap[b]!.load && heap[a]!.group < heap[b]!.group);
    for (let at = 0; ;) {
      let first = at;
      for (const child of [2 * at + 1, 2 * at + 2])
        if (child < heap.length && isBefore(child, first)) first = child;
      if (first === at) return;
      [heap[at], heap[first]] = [heap[first]!, heap[at]!];
      at = first;
    }
  }
}

function dearestFirst(indices: readonly number[], costs: ArrayLike<number>): number[] {
  return [...indices].sort((a, b) => costs[b]! - costs[a]! || a - b);
}

function slowest(step: Grouping[number], costs: ArrayLike<number>): number {
  return loadsOf(step, costs).reduce((a, b) => Math.max(a, b), 0);
}

function mean(step: Grouping[number], costs: ArrayLike<number>): number {
  return loadsOf(step, costs).reduce((a, b) => a + b, 0) / step.length;
}

function sumOf(indices: readonly number[], costs: ArrayLike<number>): number {
  return indices.reduce((sum, index) => sum + costs[index]!, 0);
}

function isConstant(values: ArrayLike<number>): boolean {
  for (let i = 1; i < values.length; i++) if (values[i] !== values[0]) return false;
  return true;
}

function chunks<T>(items: readonly T[], size: number): T[][] {
  return Array.from({ length: items.length / size }, (_, i) =>
    items.slice(i * size, (i + 1) * size),
  );
}

function range(start: number, end: number): number[] {
  return Array.from({ length: end - start }, (_, i) => start + i);
}
