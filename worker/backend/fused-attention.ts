/** Attention as one call of cuDNN, whose scores never reach memory, and its gradient as another. */
import type { HloBuilder } from '../stablehlo/ops.ts';
import { numElements, sameShape } from '../stablehlo/types.ts';
import type { TensorType, Value } from '../stablehlo/types.ts';

/** Operands of attention; key and value may have fewer heads, each of which serves as many of the query's. */
export interface AttentionOperands<T> {
  readonly query: T; // [B, A, Lq, W]
  readonly key: T; // [B, K, Lk, W]
  readonly value: T; // [B, K, Lk, W]
  /** Added to the scaled scores; each axis 1 or that of [B, A, Lq, Lk]. No gradient goes to it. */
  readonly bias?: T | undefined;
}

/** Every generation of GPUs with bfloat16 takes heads up to this width, in steps of eight. */
const MAX_HEAD_WIDTH = 128;
const HEAD_WIDTH_STEP = 8;

/** Whether cuDNN has a kernel for these shapes. Source: JAX's `check_is_flash_attention`. */
export function canFuseAttention({
  query,
  key,
  value,
  bias,
}: AttentionOperands<{ readonly shape: readonly number[] }>): boolean {
  if (query.shape.length !== 4 || key.shape.length !== 4 || !sameShape(key.shape, value.shape))
    return false;
  const [, heads, queryLength, width] = query.shape as [number, number, number, number];
  const [, keyHeads, keyLength] = key.shape as [number, number, number, number];
  if (width > MAX_HEAD_WIDTH || width % HEAD_WIDTH_STEP !== 0 || heads % keyHeads !== 0)
    return false;
  const isEven = queryLength % 2 === 0 && keyLength % 2 === 0;
  return bias === undefined || (bias.shape.length === 4 && isEven);
}

/**
 * softmax(query key^T / sqrt(W) + bias) value, [B, A, Lq, W] in f32, computed in bfloat16 with float32 sums; and what
 * the gradient needs of it. Operands are f32. The caller has asked {@link canFuseAttention}.
 * Source: the custom calls that JAX emits for `dot_product_attention(implementation='cudnn')`.
 */
export function fusedAttention(
  hlo: HloBuilder,
  operands: AttentionOperands<Value>,
): { readonly output: Value; readonly residuals: readonly Value[] } {
  const { query, key, value, bias } = inBfloat16(hlo, operands);
  const { shape } = query;
  const [output, statistics] = call(hlo, operands, {
    target: bias === undefined ? '__cudnn$fmhaSoftmax' : '__cudnn$fmhaScaleBiasSoftmax',
    given: [query, key, value, ...(bias === undefined ? [] : [bias])],
    results: [query, { shape: shape.slice(0, 3), elementType: 'f32' }],
    products: FORWARD_PRODUCTS,
  });
  const wide = hlo.convert(output!, 'f32');
  return { output: wide, residuals: [wide, statistics!] };
}

/** Gradients by query, key and value, f32, from that by the output and the residuals of {@link fusedAttention}. */
export function fusedAttentionGradients(
  hlo: HloBuilder,
  operands: AttentionOperands<Value>,
  cotangent: Value,
  [output, statistics]: readonly Value[],
): Value[] {
  const { query, key, value, bias } = inBfloat16(hlo, operands);
  const late = hlo.convert(cotangent, 'bf16');
  const biases = bias === undefined ? [] : [bias];
  const gradients = call(hlo, operands, {
    target:
      bias === undefined ? '__cudnn$fmhaSoftmaxBackward' : '__cudnn$fmhaScaleBiasSoftmaxBackward',
    given: [query, key, value, statistics!, late, ...biases, hlo.convert(output!, 'bf16')],
    results: [query, key, value, ...biases],
    products: BACKWARD_PRODUCTS,
  });
  return gradients.slice(0, 3).map((gradient) => hlo.convert(gradient, 'f32'));
}

/** The bias gets the lengths of the scores, which the kernels ask for. */
function inBfloat16(
  hlo: HloBuilder,
  { query, key, value, bias }: AttentionOperands<Value>,
): AttentionOperands<Value> {
  const narrow = (x: Value): Value => hlo.convert(x, 'bf16');
  const narrowed = { query: narrow(query), key: narrow(key), value: narrow(value) };
  if (bias === undefined) return narrowed;
  const [batch, heads] = bias.shape as [number, number, number, number];
  const full = [batch, heads, query.shape[2]!, key.shape[2]!];
  const whole = sameShape(bias.shape, full) ? bias : hlo.broadcastInDim(bias, full, [0, 1, 2, 3]);
  return { ...narrowed, bias: narrow(whole) };
}

interface Call {
  readonly target: string;
  readonly given: readonly Value[];
  /** Without the workspace, whose size the compiler finds. */
  readonly results: readonly TensorType[];
  readonly products: Readonly<Record<string, Product>>;
}

/** Axes that a product sums over, of its left and right operand; batch and head go through. */
type Product = readonly [lhs: number, rhs: number];

const FORWARD_PRODUCTS: Call['products'] = {
  bmm1_dot_dimension_numbers: [3, 3],
  bmm2_dot_dimension_numbers: [3, 2],
};
const BACKWARD_PRODUCTS: Call['products'] = {
  bmm1_grad_gemm1_dot_dimension_numbers: [2, 2],
  bmm1_grad_gemm2_dot_dimension_numbers: [3, 2],
  bmm2_grad_gemm1_dot_dimension_numbers: [2, 2],
  bmm2_grad_gemm2_dot_dimension_numbers: [3, 3],
};

function call(
  hlo: HloBuilder,
  { query, key }: AttentionOperands<Value>,
  { target, given, results, products }: Call,
): readonly Value[] {
  const [batch, heads, queryLength, width] = query.shape as [number, number, number, number];
  const scores = [batch, heads, queryLength, key.shape[2]!];
  const config = {
    operation_queue_id: '0',
    cudnn_fmha_backend_config: {
      algorithm: {
        ...{ algo_id: '0', math_type: 'TENSOR_OP_MATH', tuning_knobs: { '17': '1', '24': '0' } },
        ...{ is_cudnn_frontend: true, workspace_size: '0' },
      },
      fmha_scale: 1 / Math.sqrt(width),
      intermediate_tensor_shape: {
        element_type: 'BF16',
        dimensions: scores.map(String),
        tuple_shapes: [],
        layout: {
          ...{ dim_level_types: [], dim_unique: [], dim_ordered: [] },
          ...{ minor_to_major: ['3', '2', '1', '0'], tiles: [], element_size_in_bits: '0' },
          ...{ memory_space: '0', index_primitive_type: 'PRIMITIVE_TYPE_INVALID' },
          pointer_primitive_type: 'PRIMITIVE_TYPE_INVALID',
          dynamic_shape_metadata_prefix_bytes: '0',
        },
        is_dynamic_dimension: [false, false, false, false],
      },
      is_flash_attention: true,
      mask_type: 'NO_MASK',
      ...Object.fromEntries(
        Object.entries(products).map(([name, [lhs, rhs]]) => [name, dimensionNumbers(lhs, rhs)]),
      ),
      ...{ dropout_rate: 0, seed: 42, sliding_window_length: 0, max_seg_per_batch: 1 },
      is_paged_attention: false,
    },
  };
  const workspace: TensorType = { shape: [0], elementType: 'ui8' };
  const flops = 2 * Object.keys(products).length * numElements(scores) * width;
  const options = { backendConfig: JSON.stringify(config), flops };
  return hlo.customCall(target, given, [...results, workspace], options).slice(0, -1);
}

function dimensionNumbers(lhs: number, rhs: number): Readonly<Record<string, string[]>> {
  return {
    lhs_contracting_dimensions: [String(lhs)],
    rhs_contracting_dimensions: [String(rhs)],
    lhs_batch_dimensions: ['0', '1'],
    rhs_batch_dimensions: ['0', '1'],
  };
}
