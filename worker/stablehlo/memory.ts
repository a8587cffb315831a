/** How much memory a program's values take at most at a time, estimated without a compiler. */
import { liveOperations } from './print.ts';
import {
  isLayoutConstraint,
  numElements,
  type ElementType,
  type Operation,
  type Region,
  type Value,
} from './types.ts';

const ELEMENT_BYTES: Partial<Record<ElementType, number>> = {
  ...{ i1: 1, i8: 1, ui8: 1, i16: 2, ui16: 2, bf16: 2, f16: 2 },
  ...{ i64: 8, ui64: 8, f64: 8, 'complex<f32>': 8 },
};
const USUAL_BYTES = 4;

/** The same bytes under another shape. */
const ALIASES = new Set(['stablehlo.reshape', 'stablehlo.optimization_barrier', 'stablehlo.while']);
/** Written where their first operand lies. */
const IN_PLACE = new Set(['stablehlo.dynamic_update_slice', 'stablehlo.scatter']);
/** Computed where they are used, as a part of what uses them. */
const FUSED = new Set(
  [
    ...['abs', 'add', 'and', 'broadcast_in_dim', 'ceil', 'clamp', 'compare', 'constant', 'convert'],
    ...['cosine', 'divide', 'exponential', 'floor', 'iota', 'log', 'log_plus_one', 'logistic'],
    ...[
      'maximum',
      'minimum',
      'multiply',
      'negate',
      'not',
      'or',
      'pad',
      'power',
      'reverse',
      'rsqrt',
    ],
    ...[
      'select',
      'sign',
      'sine',
      'slice',
      'dynamic_slice',
      'sqrt',
      'subtract',
      'tanh',
      'transpose',
    ],
    ...['exponential_minus_one', 'is_finite', 'round_nearest_even', 'remainder', 'shift_left'],
    ...['shift_right_arithmetic', 'shift_right_logical', 'xor', 'bitcast_convert'],
  ].map((name) => `stablehlo.${name}`),
);

/** Of a value, bytes. */
function bytesOf({ shape, elementType }: Value): number {
  return numElements(shape) * (ELEMENT_BYTES[elementType] ?? USUAL_BYTES);
}

/**
 * Bytes that a program's results and what it keeps on the way take at most at a time; its parameters are not counted.
 * In the order of the operations, each value lives from where it is made to where it is last used. Elementwise ones
 * have memory where something else than an elementwise operation reads them, which is how compilers fuse; a compiler
 * that orders, shares and recomputes otherwise needs some tens of per cent more or less.
 */
export function estimatedBytes(region: Region): number {
  const operations = liveOperations(region);
  const owners = ownersOf(region, operations);
  const lastUse = new Map<number, number>();
  const use = (value: Value, at: number): void => {
    for (const owner of owners.get(value.id) ?? []) lastUse.set(owner, at);
  };
  for (const [at, { operands }] of operations.entries())
    for (const operand of operands) use(operand, at);
  for (const result of region.results) use(result, operations.length);

  const ending = new Map<number, number>();
  let [now, most] = [0, 0];
  for (const [at, operation] of operations.entries()) {
    const inside = operation.name === 'stablehlo.while' ? loopBytes(operation) : 0;
    for (const result of operation.results) {
      if (!(owners.get(result.id)?.includes(result.id) ?? false)) continue;
      const end = lastUse.get(result.id) ?? at;
      const bytes = bytesOf(result);
      now += bytes;
      ending.set(end, (ending.get(end) ?? 0) + bytes);
    }
    most = Math.max(most, now + inside);
    now -= ending.get(at) ?? 0;
  }
  return most;
}

function loopBytes({ regions }: Operation): number {
  const [, body] = regions;
  return body === undefined ? 0 : estimatedBytes(body);
}

/**
 * By value, those whose memory it reads: itself where it has memory of its own, what it is a part of, or all that it
 * is computed from where it is used. Parameters have none here.
 */
function ownersOf(
  region: Region,
  operations: readonly Operation[],
): ReadonlyMap<number, readonly number[]> {
  // What something reads that is not computed on the fly needs memory, and so do results.
  const read = new Set(region.results.map(({ id }) => id));
  for (const { name, operands } of operations)
    if (!FUSED.has(name) && !ALIASES.has(name)) for (const { id } of operands) read.add(id);
  const owners = new Map<number, readonly number[]>();
  for (const operation of operations) {
    const { name, operands, results, regions } = operation;
    const from = (value: Value | undefined): readonly number[] =>
      value === undefined ? [] : (owners.get(value.id) ?? []);
    for (const [index, result] of results.entries()) {
      if (name === 'stablehlo.while' || name === 'stablehlo.optimization_barrier') {
        const own = from(operands[index]);
        const isKept = own.length > 0 || isPassedThrough(regions[1], index);
        owners.set(result.id, isKept ? own : [result.id]);
      } else if (isLayoutConstraint(operation)) {
        owners.set(result.id, from(operands[0]));
      } else if (ALIASES.has(name) || IN_PLACE.has(name)) {
        const own = from(operands[0]);
        owners.set(result.id, own.length > 0 || name === 'stablehlo.reshape' ? own : [result.id]);
      } else if (FUSED.has(name) && !read.has(result.id)) {
        owners.set(result.id, [...new Set(operands.flatMap(from))]);
      } else if (result.splat !== undefined) {
        owners.set(result.id, []);
      } else {
        owners.set(result.id, [result.id]);
      }
    }
  }
  return owners;
}

/** Whether no round of a loop changes that part of its state; of what is no loop nothing is changed. */
function isPassedThrough(body: Region | undefined, index: number): boolean {
  return body === undefined || body.results[index]!.id === body.parameters[index]!.id;
}
