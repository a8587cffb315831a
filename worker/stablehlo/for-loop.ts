import type { HloBuilder } from './ops.ts';
import type { Value } from './types.ts';

export interface ForLoop {
  readonly count: number;
  /** What each round changes. */
  readonly state: readonly Value[];
  /** What every round sees alike. */
  readonly invariants: readonly Value[];
  /** One round, `index` being its number from 0 (a scalar i32), to the next state. */
  readonly body: (
    hlo: HloBuilder,
    round: {
      readonly index: Value;
      readonly state: readonly Value[];
      readonly invariants: readonly Value[];
    },
  ) => readonly Value[];
}

/** The state after `count` rounds of one `while`. Source: openxla.org/stablehlo/spec#while */
export function forLoop(hlo: HloBuilder, { count, state, invariants, body }: ForLoop): Value[] {
  const operands = [hlo.constant(0, 'i32'), ...state, ...invariants];
  const condition = hlo.region(operands, (inner, [index]) => [
    inner.compare(index!, inner.constant(count, 'i32'), 'LT'),
  ]);
  const round = hlo.region(operands, (inner, [index, ...rest]) => {
    const [own, seen] = [rest.slice(0, state.length), rest.slice(state.length)];
    const next = body(inner, { index: index!, state: own, invariants: seen });
    return [inner.add(index!, inner.constant(1, 'i32')), ...next, ...seen];
  });
  return hlo.while(operands, condition, round, count).slice(1, 1 + state.length);
}

/** Row `index` of a stack. */
export function rowOf(hlo: HloBuilder, stack: Value, index: Value): Value {
  const [, ...shape] = stack.shape;
  const row = hlo.dynamicSlice(stack, rowStart(hlo, stack, index), [1, ...shape]);
  return hlo.reshape(row, shape);
}

/** The stack with row `index` replaced. */
export function withRow(hlo: HloBuilder, stack: Value, index: Value, row: Value): Value {
  const update = hlo.reshape(row, [1, ...row.shape]);
  return hlo.dynamicUpdateSlice(stack, update, rowStart(hlo, stack, index));
}

function rowStart(hlo: HloBuilder, { shape }: Value, index: Value): Value[] {
  return shape.map((_, axis) => (axis === 0 ? index : hlo.constant(0, 'i32')));
}
