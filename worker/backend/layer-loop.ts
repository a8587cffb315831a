import assert from 'node:assert/strict';

import * as tf from '@tensorflow/tfjs-core';

import { forLoop, rowOf, withRow } from '../stablehlo/for-loop.ts';
import type { HloBuilder } from '../stablehlo/ops.ts';
import { cutPasses } from '../stablehlo/residuals.ts';
import type { DifferentiatedOperations, Passes } from '../stablehlo/residuals.ts';
import { printType, sameType } from '../stablehlo/types.ts';
import type { Value } from '../stablehlo/types.ts';
import type { LayerScan, LayerStack } from '../layer-loop.ts';
import type { TracedPasses } from '../traced-passes.ts';
import type { XlaBackend } from './backend.ts';
import type { TensorData } from './data.ts';
import { dtypeOf, heldDtypeOf, numericDtype } from './dtypes.ts';
import type { Trace } from './jit.ts';

/**
 * Layers as part of the program being traced. The layer is traced once, together with its gradient. A single one is
 * built in place; of several, each pass is one loop over stacked tensors, so that the program has the size of one
 * layer whatever their number. Source of the form: `lax.scan` and `jax.checkpoint` of JAX.
 */
export function traceLayers(backend: XlaBackend, trace: Trace, stack: LayerStack): TracedPasses {
  const { hlo } = trace;
  const { carried, shared, own } = stack;
  const count = own[0]?.shape[0] ?? 1;
  const traced = traceLayer(backend, trace, stack);
  const passes = cutPasses(traced, stack);
  assert(
    count === 1 || sameType(traced.output, traced.inputs[0]!),
    `${stack.name} makes ${printType(traced.output)} of ${printType(traced.inputs[0]!)}`,
  );
  const ownCount = own.length;
  const [carriedInput, sharedInputs, ownInputs, capturedInputs] = [
    traced.inputs[0]!,
    traced.inputs.slice(1, 1 + shared.length),
    traced.inputs.slice(1 + shared.length, 1 + shared.length + ownCount),
    traced.inputs.slice(1 + shared.length + ownCount),
  ];
  // Values outlive the tensors that stand for them, which the forward pass may dispose.
  const valueOf = (tensor: tf.Tensor): Value => backend.valueIn(trace, tensor);
  const x0 = valueOf(carried);
  const ownStacks = own.map(valueOf);
  const everywhereValues = [
    ...shared.map(valueOf),
    ...traced.captures.map((data) => trace.valueOf(data)),
  ];
  const tensorOf = (value: Value): tf.Tensor => {
    const spec = { shape: value.shape, dtype: heldDtypeOf(value.elementType) };
    const content = { kind: 'traced', trace, value, op: 'a layer' } as const;
    return tf.engine().makeTensorFromTensorInfo(backend.hold(spec, content), backend);
  };
  /** One layer's pass: what stands for the inputs and residuals, by id, to what stands for `results`. */
  const build = (
    into: HloBuilder,
    pass: Passes['forward'],
    given: readonly (readonly [Value, Value])[],
    results: readonly Value[],
  ): Value[] => {
    const known = new Map(given.map(([inner, outer]) => [inner.id, outer]));
    into.inline(pass, known);
    return results.map(({ id }) => known.get(id)!);
  };
  const pairs = (inner: readonly Value[], outer: readonly Value[]) =>
    inner.map((value, index) => [value, outer[index]!] as const);
  const everywhere = [...sharedInputs, ...capturedInputs];
  // The loop's state has to be handed on by every round; an input that nobody reads again is not kept.
  const keepsCarried = passes.usedInputs.has(carriedInput.id);
  const kept = keepsCarried ? [carriedInput, ...passes.residuals] : passes.residuals;

  return {
    forward() {
      if (count === 1) {
        const given = [...pairs(everywhere, everywhereValues), [carriedInput, x0] as const];
        const [output, ...residuals] = build(hlo, passes.forward, given, [
          traced.output,
          ...passes.residuals,
        ]);
        return { output: tensorOf(output!), residuals: residuals.map(tensorOf) };
      }
      const empty = kept.map(({ shape, elementType }) =>
        hlo.constant(0, elementType, [count, ...shape]),
      );
      const [output, ...residuals] = forLoop(hlo, {
        count,
        state: [x0, ...empty],
        invariants: [...ownStacks, ...everywhereValues],
        body: (inner, { index, state: [x, ...rows], invariants }) => {
          const rowsOfOwn = invariants.slice(0, ownCount).map((all) => rowOf(inner, all, index));
          const given = [
            ...pairs(ownInputs, rowsOfOwn),
            ...pairs(everywhere, invariants.slice(ownCount)),
            [carriedInput, x!] as const,
          ];
          const [next, ...made] = build(inner, passes.forward, given, [traced.output, ...kept]);
          return [next!, ...rows.map((all, k) => withRow(inner, all, index, made[k]!))];
        },
      });
      return { output: tensorOf(output!), residuals: residuals.map(tensorOf) };
    },

    backward(cotangent, residuals) {
      const dy = valueOf(cotangent);
      const gradients = traced.gradients;
      if (count === 1) {
        let [late, inputs] = [dy, [x0, ...everywhereValues]];
        if (stack.remat) {
          // Else what is computed again would be found to have been computed before, and be kept.
          [late, ...inputs] = hlo.optimizationBarrier([dy, ...inputs]) as [Value, ...Value[]];
        }
        const given = [
          ...pairs(traced.inputs, inputs),
          ...pairs(passes.residuals, residuals.map(valueOf)),
          [traced.cotangent, late] as const,
        ];
        return build(hlo, passes.backward, given, gradients).map(tensorOf);
      }
      const [dCarried, ...others] = gradients;
      const [dShared, dOwn] = [others.slice(0, shared.length), others.slice(shared.length)];
      const keptStacks = residuals.map(valueOf);
      const zerosLike = (values: readonly Value[], leading: readonly number[]): Value[] =>
        values.map(({ shape, elementType }) =>
          hlo.constant(0, elementType, [...leading, ...shape]),
        );
      const state = [dy, ...zerosLike(dShared, []), ...zerosLike(dOwn, [count])];
      const results = forLoop(hlo, {
        count,
        state,
        invariants: [...ownStacks, ...keptStacks, ...everywhereValues],
        body: (inner, { index, state: [late, ...sums], invariants }) => {
          const layer = inner.subtract(inner.constant(count - 1, 'i32'), index);
          const rows = invariants
            .slice(0, ownCount + kept.length)
            .map((all) => rowOf(inner, all, layer));
          const given = [
            ...pairs([...ownInputs, ...kept], rows),
            ...pairs(everywhere, invariants.slice(ownCount + kept.length)),
            [traced.cotangent, late!] as const,
          ];
          const made = build(inner, passes.backward, given, [dCarried!, ...dShared, ...dOwn]);
          const [dx, ...rest] = made;
          const added = rest.slice(0, shared.length).map((row, k) => inner.add(sums[k]!, row));
          const written = rest
            .slice(shared.length)
            .map((row, k) => withRow(inner, sums[shared.length + k]!, layer, row));
          return [dx!, ...added, ...written];
        },
      });
      return results.map(tensorOf);
    },
  };
}

/**
 * Layers of which each makes something beside what it hands on, as one loop without a gradient: the last carried, then
 * what they made, stacked. Source of the form: `lax.scan` of JAX.
 */
export function scanLayers(
  backend: XlaBackend,
  trace: Trace,
  { name, layer, carried, shared, own }: LayerScan,
): tf.Tensor[] {
  const { hlo } = trace;
  const count = own[0]!.shape[0];
  const inner = trace.fork(name);
  const rows = own.map(({ shape: [, ...shape], dtype }) => ({ shape, dtype }));
  const [inputs, results] = backend.during(inner, () => {
    const given: Value[] = [];
    let made: Value[] = [];
    tf.tidy(() => {
      const tensors = [carried, ...shared, ...rows].map(({ shape, dtype }) => {
        const { value, tensor } = parameterOf(backend, inner, { shape, dtype });
        given.push(value);
        return tensor;
      });
      made = withOwnTape(() => layer(tensors)).map((tensor) => backend.valueIn(inner, tensor));
    });
    return [given, made];
  });
  const everywhere = [
    ...shared.map((tensor) => backend.valueIn(trace, tensor)),
    ...inner.outer.map(({ data }) => trace.valueOf(data)),
  ];
  const looped = forLoop(hlo, {
    count,
    state: [
      backend.valueIn(trace, carried),
      ...results
        .slice(1)
        .map(({ shape, elementType }) => hlo.constant(0, elementType, [count, ...shape])),
    ],
    invariants: [...own.map((tensor) => backend.valueIn(trace, tensor)), ...everywhere],
    body: (round, { index, state: [x, ...stacks], invariants }) => {
      const seen = invariants.slice(own.length);
      const known = new Map<number, Value>();
      const give = (values: readonly Value[], given: readonly Value[]): void => {
        for (const [k, { id }] of values.entries()) known.set(id, given[k]!);
      };
      give(inputs, [
        x!,
        ...seen.slice(0, shared.length),
        ...invariants.slice(0, own.length).map((all) => rowOf(round, all, index)),
      ]);
      give(
        inner.outer.map(({ value }) => value),
        seen.slice(shared.length),
      );
      round.inline(inner.hlo.operations, known);
      const [next, ...made] = results.map(({ id }) => known.get(id)!);
      return [next!, ...stacks.map((all, k) => withRow(round, all, index, made[k]!))];
    },
  });
  return looped.map((value) => {
    const spec = { shape: value.shape, dtype: dtypeOf(value.elementType) };
    const content = { kind: 'traced', trace, value, op: 'a layer' } as const;
    return tf.engine().makeTensorFromTensorInfo(backend.hold(spec, content), backend);
  });
}

/** A parameter of a layer's own trace. */
function parameterOf(
  backend: XlaBackend,
  inner: Trace,
  { shape, dtype }: { readonly shape: readonly number[]; readonly dtype: tf.DataType },
): { value: Value; tensor: tf.Tensor } {
  const spec = { shape, dtype: numericDtype(dtype) };
  const value = inner.parameter(spec);
  const content = { kind: 'traced', trace: inner, value, op: 'an argument' } as const;
  const tensor = tf.engine().makeTensorFromTensorInfo(backend.hold(spec, content), backend);
  return { value, tensor };
}

interface TracedLayer extends DifferentiatedOperations {
  /** Tensors that the layer used without being given them, behind the given inputs. */
  readonly captures: readonly TensorData[];
}

/** One layer and its gradient in a trace of their own; inputs are the carried, the shared, the layer's own. */
function traceLayer(
  backend: XlaBackend,
  trace: Trace,
  { name, layer, carried, shared, own, remat }: LayerStack,
): TracedLayer {
  const inner = trace.fork(name, { isRecomputed: remat });
  const rows = own.map(({ shape: [, ...shape], dtype }) => ({ shape, dtype }));
  const given = [carried, ...shared, ...rows];
  const parameter = (spec: { shape: readonly number[]; dtype: tf.DataType }) =>
    parameterOf(backend, inner, spec);
  return backend.during(inner, () => {
    let traced: TracedLayer | undefined;
    tf.tidy(() => {
      const inputs = given.map(parameter);
      const tensors = inputs.map(({ tensor }) => tensor);
      const valueOf = (tensor: tf.Tensor): Value => backend.valueIn(inner, tensor);
      let output: Value | undefined;
      let cotangent: ReturnType<typeof parameter> | undefined;
      const { grads } = withOwnTape(() => {
        const floats = tensors.filter(({ dtype }) => dtype === 'float32');
        return differentiate(
          () => {
            const made = layer(tensors);
            output = valueOf(made);
            return made;
          },
          floats,
          (shape) => {
            cotangent = parameter({ shape, dtype: 'float32' });
            return cotangent.tensor;
          },
        );
      });
      let next = 0;
      const gradients = tensors.map((tensor) => {
        const gradient = tensor.dtype === 'float32' ? grads[next++] : undefined;
        return gradient ?? tf.zeros(tensor.shape);
      });
      traced = {
        operations: inner.hlo.operations,
        inputs: [...inputs.map(({ value }) => value), ...inner.outer.map(({ value }) => value)],
        captures: inner.outer.map(({ data }) => data),
        cotangent: cotangent!.value,
        output: output!,
        gradients: gradients.map(valueOf),
      };
    });
    return traced!;
  });
}

/** `tf.grads`, with the cotangent made once the output is known; inputs without a gradient have none. */
function differentiate(
  forward: () => tf.Tensor,
  inputs: tf.Tensor[],
  cotangentOf: (shape: readonly number[]) => tf.Tensor,
): { grads: (tf.Tensor | null | undefined)[] } {
  const weigh = tf.customGrad((output, save) => {
    (save as tf.GradSaveFunc)([]);
    return {
      value: (output as tf.Tensor).clone(),
      gradFunc: (ones: tf.Tensor) => cotangentOf(ones.shape),
    };
  });
  return tf.engine().gradients(() => weigh(forward()), inputs, undefined, true);
}

/** Runs `body` on a gradient tape of its own, so that it can be within another's forward or backward pass. */
function withOwnTape<T>(body: () => T): T {
  const { state } = tf.engine();
  const { activeTape, gradientDepth, kernelDepth } = state;
  [state.gradientDepth, state.kernelDepth] = [0, 0];
  try {
    return body();
  } finally {
    [state.activeTape, state.gradientDepth, state.kernelDepth] = [
      activeTape,
      gradientDepth,
      kernelDepth,
    ];
  }
}
