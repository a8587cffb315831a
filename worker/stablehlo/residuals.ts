import { isLayoutConstraint } from './types.ts';
import type { Operation, Region, Value } from './types.ts';

/** A function and its gradient as one list of operations. */
export interface DifferentiatedOperations {
  readonly operations: readonly Operation[];
  /** Known before and after: the function's parameters. */
  readonly inputs: readonly Value[];
  /** The gradient of the output, known only in the backward pass. */
  readonly cotangent: Value;
  readonly output: Value;
  readonly gradients: readonly Value[];
}

/** The two passes of a function, and what the first hands to the second beside the inputs. */
export interface Passes {
  readonly forward: readonly Operation[];
  readonly residuals: readonly Value[];
  readonly backward: readonly Operation[];
  /** Inputs that the backward pass reads. */
  readonly usedInputs: ReadonlySet<number>;
}

/**
 * Cuts the operations into passes. Kept are results of products, convolutions and reductions; what is cheap to compute
 * from them is computed again, so that it need not be stored. With `remat` nothing is kept: the backward pass computes
 * everything again from the inputs. Source: Chen et al. 2016, arXiv:1604.06174, sec. 3.
 */
export function cutPasses(
  { operations, inputs, cotangent, output, gradients }: DifferentiatedOperations,
  { remat }: { readonly remat: boolean },
): Passes {
  const producer = new Map<number, Operation>();
  const isBackward = new Set([cotangent.id]);
  for (const operation of operations) {
    const late = usesOf(operation).some(({ id }) => isBackward.has(id));
    for (const { id } of operation.results) {
      producer.set(id, operation);
      if (late) isBackward.add(id);
    }
  }
  const inputIds = new Set(inputs.map(({ id }) => id));
  const usedInputs = new Set<number>();
  const residuals = new Map<number, Value>();
  const backward = collect(gradients, (value) => {
    if (inputIds.has(value.id)) usedInputs.add(value.id);
    const operation = producer.get(value.id);
    if (operation === undefined) return undefined;
    if (isBackward.has(value.id) || remat || isCheap(operation)) return operation;
    residuals.set(value.id, value);
    return undefined;
  });
  const kept = [...residuals.values()];
  const forward = collect([output, ...kept], ({ id }) => producer.get(id));
  const inOrder = (chosen: ReadonlySet<Operation>): Operation[] =>
    operations.filter((operation) => chosen.has(operation));
  return { forward: inOrder(forward), residuals: kept, backward: inOrder(backward), usedInputs };
}

/** The operations that `values` need, as far as `follow` goes from a value to the one that makes it. */
function collect(
  values: readonly Value[],
  follow: (value: Value) => Operation | undefined,
): Set<Operation> {
  const chosen = new Set<Operation>();
  const seen = new Set<number>();
  const open = [...values];
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    if (seen.has(value.id)) continue;
    seen.add(value.id);
    const operation = follow(value);
    if (operation === undefined || chosen.has(operation)) continue;
    chosen.add(operation);
    open.push(...usesOf(operation));
  }
  return chosen;
}

/** Operands, and values of the block around it that an operation's regions use. */
function usesOf({ operands, regions }: Operation): Value[] {
  return [...operands, ...regions.flatMap(freeValues)];
}

function freeValues({ parameters, operations, results }: Region): Value[] {
  const own = new Set(parameters.map(({ id }) => id));
  for (const operation of operations) for (const { id } of operation.results) own.add(id);
  const used = [...operations.flatMap(usesOf), ...results];
  return used.filter(({ id }) => !own.has(id));
}

function isCheap(operation: Operation): boolean {
  return CHEAP.has(operation.name) || isLayoutConstraint(operation);
}

/** One pass over memory at most, and fused into what uses them. */
const CHEAP = new Set(
  [
    'abs add and atan2 bitcast_convert broadcast_in_dim ceil clamp compare concatenate constant convert cosine divide',
    'exponential exponential_minus_one floor iota is_finite log log_plus_one logistic maximum minimum multiply negate',
    'not or pad power remainder reshape reverse round_nearest_even rsqrt select sign sine slice sqrt subtract tan tanh',
    'transpose xor',
  ]
    .flatMap((names) => names.split(' '))
    .map((name) => `stablehlo.${name}`),
);
