import assert from 'node:assert/strict';

import { estimatedBytes } from './memory.ts';
import { liveOperations, printProgram } from './print.ts';
import { productsOf, type Product } from './products.ts';
import type { ProgramShardings } from './sharding.ts';
import {
  isFloat,
  LAYOUT_CONSTRAINT,
  numElements,
  printType,
  sameShape,
  sameType,
} from './types.ts';
import type { Donation, ElementType, Operation, Region, TensorType, Value } from './types.ts';

export type HostArray =
  Float32Array | Float64Array | Int32Array | Uint8Array | Int8Array | BigInt64Array | Uint32Array;

export type ComparisonDirection = 'EQ' | 'NE' | 'GE' | 'GT' | 'LE' | 'LT';
/** Operations that combine two scalars, for the bodies of `reduce`, `scatter` and `reduceWindow`. */
export type Combiner = 'add' | 'multiply' | 'maximum' | 'minimum' | 'and' | 'or';
type Pair = readonly [number, number];
type AxisPair = readonly [readonly number[], readonly number[]];

export interface GatherDimensionNumbers {
  readonly offsetDims: readonly number[];
  readonly collapsedSliceDims: readonly number[];
  readonly operandBatchingDims?: readonly number[];
  readonly startIndicesBatchingDims?: readonly number[];
  readonly startIndexMap: readonly number[];
  readonly indexVectorDim: number;
}

export interface ScatterDimensionNumbers {
  readonly updateWindowDims: readonly number[];
  readonly insertedWindowDims: readonly number[];
  readonly inputBatchingDims?: readonly number[];
  readonly scatterIndicesBatchingDims?: readonly number[];
  readonly scatterDimsToOperandDims: readonly number[];
  readonly indexVectorDim: number;
}

/** The windows of `reduceWindow`, one entry an axis. */
export interface Window {
  readonly dimensions: readonly number[];
  readonly strides: readonly number[];
  readonly padding: readonly Pair[];
  readonly baseDilations?: readonly number[];
  readonly dilations?: readonly number[];
}

export interface ConvolutionOptions {
  readonly windowStrides: readonly number[];
  readonly padding: readonly Pair[];
  readonly lhsDilation?: readonly number[];
  readonly rhsDilation?: readonly number[];
  readonly windowReversal?: readonly boolean[];
  /** Dimension labels as in XLA's text, e.g. `[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]`. */
  readonly dimensionNumbers: string;
  readonly featureGroupCount?: number;
  readonly batchGroupCount?: number;
}

export interface BuilderOptions {
  /** Of operands and results of products of f32 matrices and convolutions; the rest stays f32. f32 unless given. */
  readonly productType?: ElementType;
  /** Whether products are to be handed their operands transposed, as their library reads them quickest. */
  readonly transposesAhead?: boolean;
  /** Whether the program is cut for several devices. */
  readonly isPartitioned?: boolean;
}

/**
 * Builds one `@main`: each method adds an operation of the same name and gives its result. Shapes are inferred; an
 * operand that breaks a constraint of the spec is a bug of the caller and fails an assertion. An operation that was
 * built before with the same operands is not built again. Source: openxla.org/stablehlo/spec#ops.
 */
export class HloBuilder {
  readonly #options: BuilderOptions;
  readonly #counter: { next: number };
  readonly #parameters: Value[] = [];
  readonly #operations: Operation[] = [];
  readonly #known = new Map<string, readonly Value[]>();

  constructor(options: BuilderOptions = {}, counter = { next: 0 }) {
    this.#options = options;
    this.#counter = counter;
  }

  get productType(): ElementType {
    return this.#options.productType ?? 'f32';
  }

  get transposesAhead(): boolean {
    return this.#options.transposesAhead ?? false;
  }

  get isPartitioned(): boolean {
    return this.#options.isPartitioned ?? false;
  }

  /** An empty builder whose operations can be `inline`d here, any number of times. */
  fork(): HloBuilder {
    return new HloBuilder(this.#options, this.#counter);
  }

  /** Adds a parameter of the function or region being built. */
  parameter(type: TensorType): Value {
    const value = this.#value(type);
    this.#parameters.push(value);
    return value;
  }

  /** The MLIR text of the function built so far, with `results` as its results. */
  print(
    name: string,
    results: readonly Value[],
    donations: readonly (Donation | undefined)[] = [],
    shardings?: ProgramShardings,
  ): string {
    return printProgram({ name, body: this.#region(results), donations, shardings });
  }

  /** Floating-point operations of the products of matrices and convolutions that `results` depend on. */
  flops(results: readonly Value[]): number {
    return flopsOf(liveOperations(this.#region(results)));
  }

  /** The products of matrices that `results` depend on. */
  products(results: readonly Value[]): Product[] {
    return productsOf(this.#region(results));
  }

  /** Memory that `results` take on the way, at most at a time; see {@link estimatedBytes}. */
  bytes(results: readonly Value[]): number {
    return estimatedBytes(this.#region(results));
  }

  /** Operations so far, in order. */
  get operations(): readonly Operation[] {
    return this.#operations;
  }

  /**
   * Builds the operations of a `fork` again, here. `known` tells by id what stands for the values they use, and
   * learns what stands for their results.
   */
  inline(operations: readonly Operation[], known: Map<number, Value>): void {
    for (const { name, operands, attributes, regions, results, flops } of operations) {
      const made = this.#ops(
        name,
        operands.map((operand) => {
          const found = known.get(operand.id);
          assert(found !== undefined, `inline: nothing stands for an operand of ${name}`);
          return found;
        }),
        results,
        attributes,
        {
          regions: regions.map((region) => relinked(region, known)),
          ...(results[0]?.splat === undefined ? {} : { splat: results[0].splat }),
          ...(flops === undefined ? {} : { flops }),
        },
      );
      for (const [index, result] of results.entries()) known.set(result.id, made[index]!);
    }
  }

  /** Parameters so far, in order. */
  get parameters(): readonly Value[] {
    return this.#parameters;
  }

  // Constants.

  /** A scalar or splat constant of `shape`. */
  constant(
    value: number | boolean,
    elementType: ElementType,
    shape: readonly number[] = [],
  ): Value {
    const number = Number(value);
    const type = { shape, elementType };
    if (elementType === 'complex<f32>') {
      return this.complex(this.constant(number, 'f32', shape), this.constant(0, 'f32', shape));
    }
    return this.#op(
      'constant',
      [],
      type,
      `value = dense<${scalarText(number, elementType)}> : ${printType(type)}`,
      {
        splat: number,
      },
    );
  }

  /**
   * A constant from host data in row-major order; one value throughout becomes a splat. Booleans come as bytes, complex
   * numbers as pairs.
   */
  constantArray(data: HostArray, { shape, elementType }: TensorType): Value {
    if (elementType === 'complex<f32>') {
      const part = (offset: 0 | 1) =>
        Float32Array.from(data as Float32Array).filter((_, i) => i % 2 === offset);
      const type = { shape, elementType: 'f32' } as const;
      return this.complex(this.constantArray(part(0), type), this.constantArray(part(1), type));
    }
    assert.equal(data.length, numElements(shape), 'constant: as many elements as the shape has');
    const first = data[0];
    if (first !== undefined && typeof first !== 'bigint' && isSplat(data)) {
      return this.constant(first, elementType, shape);
    }
    // The parsers disagree about how booleans are packed: go through bytes.
    if (elementType === 'i1') {
      const bytes = this.constantArray(Uint8Array.from(data as Uint8Array), {
        shape,
        elementType: 'ui8',
      });
      return this.compare(bytes, this.constant(0, 'ui8', shape), 'NE');
    }
    const type = { shape, elementType };
    const text = data.length === 0 ? 'dense<>' : `dense<"0x${hexBytes(data)}">`;
    return this.#op('constant', [], type, `value = ${text} : ${printType(type)}`);
  }

  iota(shape: readonly number[], iotaDimension: number, elementType: ElementType): Value {
    return this.#op('iota', [], { shape, elementType }, `iota_dimension = ${iotaDimension} : i64`);
  }

  // Elementwise operations.

  abs = this.#unary('abs');
  ceil = this.#unary('ceil');
  cosine = this.#unary('cosine');
  exponential = this.#unary('exponential');
  exponentialMinusOne = this.#unary('exponential_minus_one');
  floor = this.#unary('floor');
  log = this.#unary('log');
  logPlusOne = this.#unary('log_plus_one');
  logistic = this.#unary('logistic');
  negate = this.#unary('negate');
  not = this.#unary('not');
  roundNearestEven = this.#unary('round_nearest_even');
  rsqrt = this.#unary('rsqrt');
  sign = this.#unary('sign');
  sine = this.#unary('sine');
  sqrt = this.#unary('sqrt');
  tan = this.#unary('tan');
  tanh = this.#unary('tanh');
  /** Of the CHLO dialect: the plugin's front end expands it. Source: openxla.org/stablehlo/generated/chlo#chloerf_chloerfop */
  erf = this.#unary('chlo.erf');
  acos = this.#unary('chlo.acos');
  acosh = this.#unary('chlo.acosh');
  asin = this.#unary('chlo.asin');
  asinh = this.#unary('chlo.asinh');
  atan = this.#unary('chlo.atan');
  atanh = this.#unary('chlo.atanh');
  cosh = this.#unary('chlo.cosh');
  sinh = this.#unary('chlo.sinh');

  add = this.#binary('add');
  and = this.#binary('and');
  atan2 = this.#binary('atan2');
  divide = this.#binary('divide');
  maximum = this.#binary('maximum');
  minimum = this.#binary('minimum');
  multiply = this.#binary('multiply');
  or = this.#binary('or');
  power = this.#binary('power');
  shiftRightLogical = this.#binary('shift_right_logical');
  remainder = this.#binary('remainder');
  subtract = this.#binary('subtract');
  xor = this.#binary('xor');

  // Complex numbers: two f32.

  complex(lhs: Value, rhs: Value): Value {
    assert(sameType(lhs, rhs), `complex: ${printType(lhs)} and ${printType(rhs)}`);
    return this.#op('complex', [lhs, rhs], { shape: lhs.shape, elementType: 'complex<f32>' });
  }

  real(operand: Value): Value {
    return this.#op('real', [operand], { shape: operand.shape, elementType: 'f32' });
  }

  imag(operand: Value): Value {
    return this.#op('imag', [operand], { shape: operand.shape, elementType: 'f32' });
  }

  /** The `abs` of complex numbers. */
  magnitude(operand: Value): Value {
    return this.#op('abs', [operand], { shape: operand.shape, elementType: 'f32' });
  }

  /** Over the last axes, as many as `fftLength` has, from complex to complex. */
  fft(operand: Value, fftType: 'FFT' | 'IFFT', fftLength: readonly number[]): Value {
    return this.#op(
      'fft',
      [operand],
      operand,
      `fft_length = ${i64s(fftLength)}, fft_type = #stablehlo<fft_type ${fftType}>`,
    );
  }

  /** Random bits of Threefry from a ui64[2] state. */
  rngBitGenerator(initialState: Value, type: TensorType): Value {
    return this.#ops(
      'rng_bit_generator',
      [initialState],
      [initialState, type],
      'rng_algorithm = #stablehlo<rng_algorithm THREE_FRY>',
    )[1]!;
  }

  isFinite(x: Value): Value {
    return this.#op('is_finite', [x], { shape: x.shape, elementType: 'i1' });
  }

  compare(lhs: Value, rhs: Value, comparisonDirection: ComparisonDirection): Value {
    assert(sameType(lhs, rhs), `compare: ${printType(lhs)} against ${printType(rhs)}`);
    return this.#op(
      'compare',
      [lhs, rhs],
      { shape: lhs.shape, elementType: 'i1' },
      `comparison_direction = #stablehlo<comparison_direction ${comparisonDirection}>`,
    );
  }

  select(pred: Value, onTrue: Value, onFalse: Value): Value {
    assert(sameType(onTrue, onFalse), `select: ${printType(onTrue)} or ${printType(onFalse)}`);
    assert(
      pred.elementType === 'i1' && (pred.shape.length === 0 || sameShape(pred.shape, onTrue.shape)),
      `select: predicate ${printType(pred)} for ${printType(onTrue)}`,
    );
    return this.#op('select', [pred, onTrue, onFalse], onTrue);
  }

  clamp(min: Value, operand: Value, max: Value): Value {
    return this.#op('clamp', [min, operand, max], operand);
  }

  convert(operand: Value, elementType: ElementType): Value {
    if (operand.elementType === elementType) return operand;
    return this.#op('convert', [operand], { shape: operand.shape, elementType });
  }

  bitcastConvert(operand: Value, elementType: ElementType): Value {
    return this.#op('bitcast_convert', [operand], { shape: operand.shape, elementType });
  }

  // Shape and data movement.

  /** `broadcastDimensions[i]` is the axis of the result that axis i of the operand becomes. */
  broadcastInDim(
    operand: Value,
    shape: readonly number[],
    broadcastDimensions: readonly number[],
  ): Value {
    assert.equal(
      broadcastDimensions.length,
      operand.shape.length,
      'broadcastInDim: one dimension each',
    );
    for (const [axis, target] of broadcastDimensions.entries()) {
      assert(
        operand.shape[axis] === 1 || operand.shape[axis] === shape[target],
        `broadcastInDim: ${printType(operand)} to [${shape.join()}]`,
      );
    }
    if (operand.splat !== undefined)
      return this.constant(operand.splat, operand.elementType, shape);
    if (sameShape(operand.shape, shape)) return operand;
    return this.#op(
      'broadcast_in_dim',
      [operand],
      { shape, elementType: operand.elementType },
      `broadcast_dimensions = ${i64s(broadcastDimensions)}`,
    );
  }

  reshape(operand: Value, shape: readonly number[]): Value {
    assert.equal(numElements(shape), numElements(operand.shape), 'reshape: as many elements');
    if (sameShape(operand.shape, shape)) return operand;
    if (operand.splat !== undefined)
      return this.constant(operand.splat, operand.elementType, shape);
    return this.#op('reshape', [operand], { shape, elementType: operand.elementType });
  }

  transpose(operand: Value, permutation: readonly number[]): Value {
    if (permutation.every((from, to) => from === to)) return operand;
    const shape = permutation.map((axis) => operand.shape[axis]!);
    return this.#op(
      'transpose',
      [operand],
      { shape, elementType: operand.elementType },
      `permutation = ${i64s(permutation)}`,
    );
  }

  /** Elements `start[i] + k * strides[i]` below `limit[i]`. */
  slice(
    operand: Value,
    startIndices: readonly number[],
    limitIndices: readonly number[],
    strides: readonly number[] = startIndices.map(() => 1),
  ): Value {
    const shape = startIndices.map((start, axis) => {
      const limit = limitIndices[axis]!;
      assert(
        start >= 0 && start <= limit && limit <= operand.shape[axis]!,
        `slice: ${start} to ${limit} of axis ${axis} in ${printType(operand)}`,
      );
      return Math.ceil((limit - start) / strides[axis]!);
    });
    if (sameShape(shape, operand.shape)) return operand;
    return this.#op(
      'slice',
      [operand],
      { shape, elementType: operand.elementType },
      `limit_indices = ${i64s(limitIndices)}, start_indices = ${i64s(startIndices)}, strides = ${i64s(strides)}`,
    );
  }

  dynamicSlice(
    operand: Value,
    startIndices: readonly Value[],
    sliceSizes: readonly number[],
  ): Value {
    return this.#op(
      'dynamic_slice',
      [operand, ...startIndices],
      { shape: sliceSizes, elementType: operand.elementType },
      `slice_sizes = ${i64s(sliceSizes)}`,
    );
  }

  dynamicUpdateSlice(operand: Value, update: Value, startIndices: readonly Value[]): Value {
    return this.#op('dynamic_update_slice', [operand, update, ...startIndices], operand);
  }

  /** `paddingValue` is a scalar. Negative edge padding cuts. */
  pad(
    operand: Value,
    paddingValue: Value,
    edgePaddingLow: readonly number[],
    edgePaddingHigh: readonly number[],
    interiorPadding: readonly number[] = edgePaddingLow.map(() => 0),
  ): Value {
    const shape = operand.shape.map(
      (size, axis) =>
        edgePaddingLow[axis]! +
        size +
        Math.max(size - 1, 0) * interiorPadding[axis]! +
        edgePaddingHigh[axis]!,
    );
    const isSame = [edgePaddingLow, edgePaddingHigh, interiorPadding].flat().every((n) => n === 0);
    if (isSame) return operand;
    return this.#op(
      'pad',
      [operand, paddingValue],
      { shape, elementType: operand.elementType },
      `edge_padding_high = ${i64s(edgePaddingHigh)}, edge_padding_low = ${i64s(edgePaddingLow)}, interior_padding = ${i64s(interiorPadding)}`,
    );
  }

  concatenate(inputs: readonly Value[], dimension: number): Value {
    const [first] = inputs;
    assert(first !== undefined, 'concatenate: at least one input');
    if (inputs.length === 1) return first;
    const shape = first.shape.with(
      dimension,
      inputs.reduce((total, input) => total + input.shape[dimension]!, 0),
    );
    for (const { shape: other } of inputs) {
      assert(
        sameShape(other.with(dimension, 0), shape.with(dimension, 0)),
        `concatenate along ${dimension}: [${other.join()}] and [${first.shape.join()}]`,
      );
    }
    return this.#op(
      'concatenate',
      inputs,
      { shape, elementType: first.elementType },
      `dimension = ${dimension} : i64`,
    );
  }

  reverse(operand: Value, dimensions: readonly number[]): Value {
    return this.#op('reverse', [operand], operand, `dimensions = ${i64s(dimensions)}`);
  }

  gather(
    operand: Value,
    startIndices: Value,
    sliceSizes: readonly number[],
    numbers: GatherDimensionNumbers,
  ): Value {
    const batching = numbers.operandBatchingDims ?? [];
    const batch = startIndices.shape.filter((_, axis) => axis !== numbers.indexVectorDim);
    const dropped = new Set([...numbers.collapsedSliceDims, ...batching]);
    const offsets = sliceSizes.filter((_, axis) => !dropped.has(axis));
    const shape = mergeDimensions(batch, offsets, numbers.offsetDims);
    const text = dimensionNumbers('gather', {
      offset_dims: numbers.offsetDims,
      collapsed_slice_dims: numbers.collapsedSliceDims,
      operand_batching_dims: batching,
      start_indices_batching_dims: numbers.startIndicesBatchingDims ?? [],
      start_index_map: numbers.startIndexMap,
      index_vector_dim: numbers.indexVectorDim,
    });
    return this.#op(
      'gather',
      [operand, startIndices],
      { shape, elementType: operand.elementType },
      `dimension_numbers = ${text}, indices_are_sorted = false, slice_sizes = ${i64s(sliceSizes)}`,
    );
  }

  /** `combiner` undefined: the update replaces what was there. */
  scatter(
    input: Value,
    scatterIndices: Value,
    updates: Value,
    numbers: ScatterDimensionNumbers,
    combiner?: Combiner,
  ): Value {
    const text = dimensionNumbers('scatter', {
      update_window_dims: numbers.updateWindowDims,
      inserted_window_dims: numbers.insertedWindowDims,
      input_batching_dims: numbers.inputBatchingDims ?? [],
      scatter_indices_batching_dims: numbers.scatterIndicesBatchingDims ?? [],
      scatter_dims_to_operand_dims: numbers.scatterDimsToOperandDims,
      index_vector_dim: numbers.indexVectorDim,
    });
    const scalar = { shape: [], elementType: input.elementType };
    const body = this.region([scalar, scalar], (inner, [current, update]) => [
      combiner === undefined ? update! : inner[combiner](current!, update!),
    ]);
    return this.#op(
      'scatter',
      [input, scatterIndices, updates],
      input,
      `indices_are_sorted = false, scatter_dimension_numbers = ${text}, unique_indices = false`,
      { regions: [body] },
    );
  }

  // Reductions and contractions.

  /** Combines over `dimensions`, starting from the scalar `initValue`; the reduced axes vanish. */
  reduce(
    operand: Value,
    initValue: Value,
    dimensions: readonly number[],
    combiner: Combiner,
  ): Value {
    if (dimensions.length === 0) return operand;
    const scalar = { shape: [], elementType: operand.elementType };
    const body = this.region([scalar, scalar], (inner, [a, b]) => [inner[combiner](a!, b!)]);
    return this.reduceWith([operand], [initValue], dimensions, body)[0]!;
  }

  /** The general `reduce`: several operands of one shape, reduced together by `body`. */
  reduceWith(
    operands: readonly Value[],
    initValues: readonly Value[],
    dimensions: readonly number[],
    body: Region,
  ): readonly Value[] {
    const shape = operands[0]!.shape.filter((_, axis) => !dimensions.includes(axis));
    return this.#ops(
      'reduce',
      [...operands, ...initValues],
      operands.map(({ elementType }) => ({ shape, elementType })),
      `dimensions = ${i64s([...dimensions].sort((a, b) => a - b))}`,
      { regions: [body] },
    );
  }

  reduceWindow(operand: Value, initValue: Value, combiner: Combiner, window: Window): Value {
    const scalar = { shape: [], elementType: operand.elementType };
    const body = this.region([scalar, scalar], (inner, [a, b]) => [inner[combiner](a!, b!)]);
    return this.reduceWindowWith([operand], [initValue], window, body)[0]!;
  }

  /** The general `reduceWindow`: several operands of one shape, reduced together by `body`. */
  reduceWindowWith(
    operands: readonly Value[],
    initValues: readonly Value[],
    window: Window,
    body: Region,
  ): readonly Value[] {
    const ones = window.dimensions.map(() => 1);
    const base = window.baseDilations ?? ones;
    const dilations = window.dilations ?? ones;
    const shape = operands[0]!.shape.map((size, axis) =>
      windowedSize(size, {
        base: base[axis]!,
        padding: window.padding[axis]!,
        window: window.dimensions[axis]!,
        dilation: dilations[axis]!,
        stride: window.strides[axis]!,
      }),
    );
    return this.#ops(
      'reduce_window',
      [...operands, ...initValues],
      operands.map(({ elementType }) => ({ shape, elementType })),
      `base_dilations = ${i64s(base)}, padding = ${i64Pairs(window.padding)}, window_dilations = ${i64s(dilations)}, window_dimensions = ${i64s(window.dimensions)}, window_strides = ${i64s(window.strides)}`,
      { regions: [body] },
    );
  }

  /**
   * Adds each element of `source` to where its window of `operand` holds the element that `selected` prefers to all
   * others, the first of equal ones by GE, the last by GT. Windows are not padded.
   */
  selectAndScatter(
    operand: Value,
    source: Value,
    selected: ComparisonDirection,
    window: Pick<Window, 'dimensions' | 'strides'>,
  ): Value {
    const scalar = { shape: [], elementType: operand.elementType };
    const select = this.region([scalar, scalar], (inner, [a, b]) => [
      inner.compare(a!, b!, selected),
    ]);
    const added = { shape: [], elementType: source.elementType };
    const scatter = this.region([added, added], (inner, [a, b]) => [inner.add(a!, b!)]);
    const padding = window.dimensions.map((): Pair => [0, 0]);
    return this.#op(
      'select_and_scatter',
      [operand, source, this.constant(0, source.elementType)],
      { shape: operand.shape, elementType: source.elementType },
      `padding = ${i64Pairs(padding)}, window_dimensions = ${i64s(window.dimensions)}, window_strides = ${i64s(window.strides)}`,
      { regions: [select, scatter] },
    );
  }

  /** Result axes: batching, then the rest of lhs, then the rest of rhs. */
  dotGeneral(
    lhs: Value,
    rhs: Value,
    {
      batchingDims = [[], []],
      contractingDims,
      isExact = false,
    }: {
      batchingDims?: AxisPair;
      contractingDims: AxisPair;
      /** In the operands' own type, whatever products are made in. */
      isExact?: boolean;
    },
  ): Value {
    const sizes = (operand: Value, axes: readonly number[]) =>
      axes.map((axis) => operand.shape[axis]!);
    for (const [what, axes] of Object.entries({ batchingDims, contractingDims })) {
      assert(
        sameShape(sizes(lhs, axes[0]), sizes(rhs, axes[1])),
        `dotGeneral: ${what} differ between ${printType(lhs)} and ${printType(rhs)}`,
      );
    }
    const rest = (operand: Value, side: 0 | 1) =>
      operand.shape.filter(
        (_, axis) => !batchingDims[side].includes(axis) && !contractingDims[side].includes(axis),
      );
    const shape = [...sizes(lhs, batchingDims[0]), ...rest(lhs, 0), ...rest(rhs, 1)];
    const text = dimensionNumbers('dot', {
      lhs_batching_dimensions: batchingDims[0],
      rhs_batching_dimensions: batchingDims[1],
      lhs_contracting_dimensions: contractingDims[0],
      rhs_contracting_dimensions: contractingDims[1],
    });
    const attributes = `dot_dimension_numbers = ${text}`;
    const flops = 2 * numElements(shape) * numElements(sizes(lhs, contractingDims[0]));
    if (isExact) {
      const type = { shape, elementType: lhs.elementType };
      return this.#op('dot_general', [lhs, rhs], type, attributes, { flops });
    }
    return this.#product('dot_general', [lhs, rhs], shape, attributes, flops);
  }

  /** `shape` is the shape of the result, which the dimension numbers and window determine. */
  convolution(
    lhs: Value,
    rhs: Value,
    shape: readonly number[],
    options: ConvolutionOptions,
  ): Value {
    const ones = options.windowStrides.map(() => 1);
    const reversal = options.windowReversal ?? ones.map(() => false);
    return this.#product(
      'convolution',
      [lhs, rhs],
      shape,
      [
        `batch_group_count = ${options.batchGroupCount ?? 1} : i64`,
        `dimension_numbers = #stablehlo.conv<${options.dimensionNumbers}>`,
        `feature_group_count = ${options.featureGroupCount ?? 1} : i64`,
        `lhs_dilation = ${i64s(options.lhsDilation ?? ones)}`,
        `padding = ${i64Pairs(options.padding)}`,
        `rhs_dilation = ${i64s(options.rhsDilation ?? ones)}`,
        `window_reversal = array<i1: ${reversal.join(', ')}>`,
        `window_strides = ${i64s(options.windowStrides)}`,
      ].join(', '),
      (2 * numElements(shape) * numElements(rhs.shape)) / rhs.shape[outputFeatureAxis(options)]!,
    );
  }

  /** Sorts all operands along `dimension` by `comparator` over scalars (a0, b0, a1, b1, ...). */
  sort(
    operands: readonly Value[],
    dimension: number,
    isStable: boolean,
    comparator: Region,
  ): readonly Value[] {
    return this.#ops(
      'sort',
      operands,
      operands,
      `dimension = ${dimension} : i64, is_stable = ${isStable}`,
      { regions: [comparator] },
    );
  }

  /** Runs `body` while `condition` (to a scalar i1) holds; both take the loop's state. `trips` counts the rounds. */
  while(operands: readonly Value[], condition: Region, body: Region, trips = 1): readonly Value[] {
    const flops = trips * flopsOf(body.operations);
    return this.#ops('while', operands, operands, '', { regions: [condition, body], flops });
  }

  /**
   * A call of code that the plugin has under a name. Operands and results lie in row-major order. Source:
   * openxla.org/stablehlo/spec#custom_call, API version 2.
   */
  customCall(
    callTargetName: string,
    operands: readonly Value[],
    results: readonly TensorType[],
    { backendConfig, flops }: { readonly backendConfig: string; readonly flops: number },
  ): readonly Value[] {
    return this.#ops(
      'custom_call',
      operands,
      results,
      [
        'api_version = 2 : i32',
        `backend_config = ${quoted(backendConfig)}`,
        `call_target_name = ${quoted(callTargetName)}`,
        `operand_layouts = ${rowMajor(operands)}`,
        `result_layouts = ${rowMajor(results)}`,
      ].join(', '),
      { flops },
    );
  }

  /** `x` as products take it. */
  productOperand(x: Value): Value {
    return x.elementType === 'f32' ? this.convert(x, this.productType) : x;
  }

  /**
   * `x` as it lies in memory in row-major order: the compiler folds no transposition across.
   * Source: the custom call of JAX's `with_layout_constraint`, which XLA's layout assignment takes out.
   */
  rowMajor(x: Value): Value {
    return this.customCall(LAYOUT_CONSTRAINT, [x], [x], { backendConfig: '', flops: 0 })[0]!;
  }

  /** Keeps the compiler from moving operations across. */
  optimizationBarrier(operands: readonly Value[]): readonly Value[] {
    return this.#ops('optimization_barrier', operands, operands);
  }

  /** A region for `reduceWith`, `sort` or `while`; it may use values of the function around it only in `while`. */
  region(
    types: readonly TensorType[],
    build: (inner: HloBuilder, parameters: readonly Value[]) => readonly Value[],
  ): Region {
    const inner = this.fork();
    const parameters = types.map((type) => inner.parameter(type));
    return inner.#region(build(inner, parameters));
  }

  #region(results: readonly Value[]): Region {
    return { parameters: this.#parameters, operations: this.#operations, results };
  }

  #value({ shape, elementType }: TensorType, splat?: number): Value {
    return { id: this.#counter.next++, shape, elementType, splat };
  }

  #unary(name: string): (operand: Value) => Value {
    return (operand) => this.#op(name, [operand], operand);
  }

  #binary(name: string): (lhs: Value, rhs: Value) => Value {
    return (lhs, rhs) => {
      assert(sameType(lhs, rhs), `${name}: ${printType(lhs)} and ${printType(rhs)}`);
      return this.#op(name, [lhs, rhs], lhs);
    };
  }

  /**
   * A product whose operands are of `#productType`. So is its result, which is what a backward pass keeps; the sums
   * inside are f32 on every platform.
   */
  #product(
    name: string,
    operands: readonly Value[],
    shape: readonly number[],
    attributes: string,
    flops: number,
  ): Value {
    const { elementType } = operands[0]!;
    const narrow = operands.map((operand) => this.productOperand(operand));
    const inner = narrow[0]!.elementType;
    const product = this.#op(name, narrow, { shape, elementType: inner }, attributes, { flops });
    return this.convert(product, elementType);
  }

  #op(
    name: string,
    operands: readonly Value[],
    result: TensorType,
    attributes = '',
    options: OperationExtras = {},
  ): Value {
    return this.#ops(name, operands, [result], attributes, options)[0]!;
  }

  #ops(
    name: string,
    operands: readonly Value[],
    results: readonly TensorType[],
    attributes = '',
    { regions = [], splat, flops }: OperationExtras = {},
  ): readonly Value[] {
    const fullName = name.includes('.') ? name : `stablehlo.${name}`;
    const key = `${fullName}(${operands.map((operand) => operand.id).join()})${attributes}${results.map(printType).join()}${regions.map(regionKey).join()}`;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const values = results.map((result) => this.#value(result, splat));
    this.#operations.push({
      name: fullName,
      operands,
      attributes,
      regions,
      results: values,
      flops,
    });
    this.#known.set(key, values);
    return values;
  }
}

interface OperationExtras {
  readonly regions?: readonly Region[];
  readonly splat?: number;
  readonly flops?: number;
}

function flopsOf(operations: readonly Operation[]): number {
  return operations.reduce((sum, { flops }) => sum + (flops ?? 0), 0);
}

/** The region with the values that it uses of the block around it replaced; its own ids are nobody else's. */
function relinked(region: Region, known: ReadonlyMap<number, Value>): Region {
  const change = (value: Value): Value => known.get(value.id) ?? value;
  return {
    parameters: region.parameters,
    operations: region.operations.map((operation) => ({
      ...operation,
      operands: operation.operands.map(change),
      regions: operation.regions.map((inner) => relinked(inner, known)),
    })),
    results: region.results.map(change),
  };
}

/** Which axis of the kernel counts output features, by its label in `[...]x[0, 1, i, o]->[...]`. */
function outputFeatureAxis({ dimensionNumbers: labels }: ConvolutionOptions): number {
  const kernel = /x\[([^\]]*)\]/.exec(labels)?.[1]?.split(',') ?? [];
  return kernel.findIndex((label) => label.trim() === 'o');
}

/** The smallest scalar of a type (-Infinity for floats), where a maximum starts. */
export function lowest(type: ElementType): number {
  if (isFloat(type)) return -Infinity;
  if (type === 'i1' || type.startsWith('ui')) return 0;
  return -(2 ** (Number(type.slice(1)) - 1));
}

/** The largest scalar of a type (Infinity for floats), where a minimum starts. */
export function highest(type: ElementType): number {
  if (isFloat(type)) return Infinity;
  if (type === 'i1') return 1;
  return type.startsWith('ui')
    ? 2 ** Number(type.slice(2)) - 1
    : 2 ** (Number(type.slice(1)) - 1) - 1;
}

/** Structure of a region with its values renumbered, so that equal bodies give equal keys. */
function regionKey(region: Region): string {
  const numbers = new Map<number, number>();
  const name = ({ id }: Value) => {
    const known = numbers.get(id);
    if (known !== undefined) return `%${known}`;
    return `outer${id}`;
  };
  const define = (value: Value) => numbers.set(value.id, numbers.size);
  region.parameters.forEach(define);
  const lines = region.operations.map((operation) => {
    const operands = operation.operands.map(name).join();
    operation.results.forEach(define);
    // A reshape, conversion or iota says in its result alone what it makes.
    const types = operation.results.map(printType).join();
    return `${operation.name}(${operands})${operation.attributes}${types}${operation.regions.map(regionKey).join()}`;
  });
  return `{${region.parameters.map(printType).join()}|${lines.join(';')}|${region.results.map(name).join()}}`;
}

/** Batch sizes with the offset sizes put in at `offsetDims`. Source: spec#gather, result shape. */
function mergeDimensions(
  batch: readonly number[],
  offsets: readonly number[],
  offsetDims: readonly number[],
): number[] {
  const [batchQueue, offsetQueue] = [[...batch], [...offsets]];
  return Array.from({ length: batch.length + offsets.length }, (_, axis) =>
    offsetDims.includes(axis) ? offsetQueue.shift()! : batchQueue.shift()!,
  );
}

function windowedSize(
  size: number,
  {
    base,
    padding,
    window,
    dilation,
    stride,
  }: { base: number; padding: Pair; window: number; dilation: number; stride: number },
): number {
  const padded = padding[0] + (size === 0 ? 0 : (size - 1) * base + 1) + padding[1];
  const reach = (window - 1) * dilation + 1;
  return padded < reach ? 0 : Math.floor((padded - reach) / stride) + 1;
}

/** An MLIR string. Source: mlir.llvm.org/docs/LangRef/#string-attribute */
function quoted(text: string): string {
  const escaped = text.replace(/["\\]/g, (letter) => `\\${hex(letter.charCodeAt(0), 2)}`);
  return `"${escaped}"`;
}

function rowMajor(types: readonly TensorType[]): string {
  const layouts = types.map(({ shape: { length: rank } }) => {
    const axes = Array.from({ length: rank }, (_, i) => rank - 1 - i);
    const text = rank === 1 ? '0' : `[${axes.join(', ')}]`;
    return `dense<${text}> : tensor<${rank}xindex>`;
  });
  return `[${layouts.join(', ')}]`;
}

function i64s(values: readonly number[]): string {
  return values.length === 0 ? 'array<i64>' : `array<i64: ${values.join(', ')}>`;
}

function i64Pairs(pairs: readonly Pair[]): string {
  if (pairs.length === 0) return 'dense<> : tensor<0x2xi64>';
  return `dense<[${pairs.map(([low, high]) => `[${low}, ${high}]`).join(', ')}]> : tensor<${pairs.length}x2xi64>`;
}

function dimensionNumbers(
  kind: string,
  fields: Record<string, readonly number[] | number>,
): string {
  const parts = Object.entries(fields)
    .filter(([, value]) => typeof value === 'number' || value.length > 0)
    .map(
      ([key, value]) => `${key} = ${typeof value === 'number' ? value : `[${value.join(', ')}]`}`,
    );
  return `#stablehlo.${kind}<${parts.join(', ')}>`;
}

const floatBits = new DataView(new ArrayBuffer(8));

/** A scalar that the parser reads back bit for bit: floats as their bits. */
function scalarText(value: number, type: ElementType): string {
  switch (type) {
    case 'i1':
      return value === 0 ? 'false' : 'true';
    case 'f32':
      floatBits.setFloat32(0, value);
      return `0x${hex(floatBits.getUint32(0), 8)}`;
    case 'f64':
      floatBits.setFloat64(0, value);
      return `0x${hex(floatBits.getUint32(0), 8)}${hex(floatBits.getUint32(4), 8)}`;
    case 'bf16':
      floatBits.setFloat32(0, value);
      return `0x${hex(roundToBfloat16(floatBits.getUint32(0)), 4)}`;
    case 'f16':
      // Decimals that are exact for a double, which the parser rounds once; it wants a point in them.
      assert(Number.isFinite(value), 'constant: f16 is finite');
      return value.toExponential(17);
    case 'i32':
      return String(value | 0); // as a typed array takes it
    default:
      return String(Math.trunc(value));
  }
}

/** Round to nearest even on the bits of a float32. */
function roundToBfloat16(bits: number): number {
  const isNaN = (bits & 0x7fffffff) > 0x7f800000;
  return isNaN ? 0x7fc0 : ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

function hex(value: number, digits: number): string {
  return value.toString(16).toUpperCase().padStart(digits, '0');
}

function hexBytes(data: HostArray): string {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('hex').toUpperCase();
}

/** Whether all elements are the same bits: an array is, if it equals itself moved by one element. */
export function isSplat({ buffer, byteOffset, byteLength, BYTES_PER_ELEMENT }: HostArray): boolean {
  const bytes = Buffer.from(buffer, byteOffset, byteLength);
  return (
    byteLength <= BYTES_PER_ELEMENT ||
    bytes.subarray(BYTES_PER_ELEMENT).equals(bytes.subarray(0, byteLength - BYTES_PER_ELEMENT))
  );
}
