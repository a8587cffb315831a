import * as tf from '@tensorflow/tfjs-core';

import type { Value } from '../stablehlo/types.ts';
import type { TracedPasses } from '../traced-passes.ts';
import type { XlaBackend } from './backend.ts';
import { dtypeOf } from './dtypes.ts';
import {
  fusedAttention,
  fusedAttentionGradients,
  type AttentionOperands,
} from './fused-attention.ts';
import type { Trace } from './jit.ts';

/** {@link fusedAttention} on tensors of the program being traced; differentiable by query, key and value. */
export function traceAttention(
  backend: XlaBackend,
  trace: Trace,
  { query, key, value, bias }: AttentionOperands<tf.Tensor>,
): TracedPasses {
  const { hlo } = trace;
  const valueOf = (tensor: tf.Tensor): Value => backend.valueIn(trace, tensor);
  const operands = {
    ...{ query: valueOf(query), key: valueOf(key), value: valueOf(value) },
    ...(bias === undefined ? {} : { bias: valueOf(bias) }),
  };
  const tensorOf = (made: Value): tf.Tensor => {
    const spec = { shape: made.shape, dtype: dtypeOf(made.elementType) };
    const content = { kind: 'traced', trace, value: made, op: 'attention' } as const;
    return tf.engine().makeTensorFromTensorInfo(backend.hold(spec, content), backend);
  };
  return {
    forward() {
      const { output, residuals } = fusedAttention(hlo, operands);
      return { output: tensorOf(output), residuals: residuals.map(tensorOf) };
    },
    backward(cotangent, residuals) {
      const kept = residuals.map(valueOf);
      const gradients = fusedAttentionGradients(hlo, operands, valueOf(cotangent), kept);
      return gradients.map(tensorOf);
    },
  };
}
