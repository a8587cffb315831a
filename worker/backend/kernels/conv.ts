import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';
import { broadcastTo, range } from '../broadcast.ts';
import { activate } from './matmul.ts';

/**
 * Convolutions, tfjs's channels-last ones and 2-D channels-first, as `stablehlo.convolution`: a kernel [...window,
 * input features, output features]. Source: openxla.org/stablehlo/spec#convolution
 */

/** One spatial axis of a convolution or of a pool. */
export interface SpatialAxis {
  readonly inSize: number;
  readonly outSize: number;
  readonly window: number;
  readonly stride: number;
  readonly dilation: number;
  /** Padding in front. */
  readonly low: number;
}

/** Padding in front and behind, so that a window ends at the last output; negative where entries are left over. */
export function paddingOf({
  inSize,
  outSize,
  window,
  stride,
  dilation,
  low,
}: SpatialAxis): [number, number] {
  return [low, (outSize - 1) * stride + (window - 1) * dilation + 1 - inSize - low];
}

type Info2D = ReturnType<typeof tf.backend_util.computeConv2DInfo>;
type Info3D = ReturnType<typeof tf.backend_util.computeConv3DInfo>;

/** The rows and columns of what tfjs works out about a 2-D convolution or pool. */
export function axesOf2D(info: Info2D): SpatialAxis[] {
  return [axisOf(info, 'Height', info.padInfo.top), axisOf(info, 'Width', info.padInfo.left)];
}

/** Depth, rows and columns. */
export function axesOf3D(info: Info3D): SpatialAxis[] {
  const { front, top, left } = info.padInfo;
  return [axisOf(info, 'Depth', front), axisOf(info, 'Height', top), axisOf(info, 'Width', left)];
}

type Property = 'in' | 'out' | 'filter' | 'stride' | 'dilation';

function axisOf<Name extends string>(
  info: Readonly<Record<`${Property}${Name}`, number>>,
  name: Name,
  low: number,
): SpatialAxis {
  return {
    inSize: info[`in${name}`],
    outSize: info[`out${name}`],
    window: info[`filter${name}`],
    stride: info[`stride${name}`],
    dilation: info[`dilation${name}`],
    low,
  };
}

/** What a convolution is about: its axes, where channels are, and in how many groups they are kept apart. */
interface Convolution {
  readonly axes: readonly SpatialAxis[];
  readonly xShape: readonly number[];
  readonly filterShape: readonly number[];
  readonly outShape: readonly number[];
  readonly channelsFirst: boolean;
  /** Input channels are convolved one by one, each to `filterShape`'s last axis many. */
  readonly isDepthwise: boolean;
}

interface Attrs2D {
  readonly strides: [number, number] | number;
  readonly pad: tf.Conv2DAttrs['pad'];
  readonly dataFormat?: 'NHWC' | 'NCHW';
  readonly dilations?: [number, number] | number;
  readonly dimRoundingMode?: 'floor' | 'round' | 'ceil';
}

type Shape4D = [number, number, number, number];
type Shape5D = [number, number, number, number, number];

function conv2DOf(
  xShape: readonly number[],
  filterShape: readonly number[],
  { strides, pad, dataFormat = 'NHWC', dilations = 1, dimRoundingMode }: Attrs2D,
  isDepthwise = false,
): Convolution {
  const info = tf.backend_util.computeConv2DInfo(
    xShape as Shape4D,
    filterShape as Shape4D,
    strides,
    dilations,
    pad,
    dimRoundingMode,
    isDepthwise,
    tf.backend_util.convertConv2DDataFormat(dataFormat),
  );
  return {
    axes: axesOf2D(info),
    xShape,
    filterShape,
    outShape: info.outShape,
    channelsFirst: dataFormat === 'NCHW',
    isDepthwise,
  };
}

function conv3DOf(
  xShape: readonly number[],
  filterShape: readonly number[],
  {
    strides,
    pad,
    dilations = 1,
  }: Pick<tf.Conv3DAttrs, 'strides' | 'pad'> & { dilations?: tf.Conv3DAttrs['dilations'] | number },
): Convolution {
  const info = tf.backend_util.computeConv3DInfo(
    xShape as Shape5D,
    filterShape as Shape5D,
    strides,
    dilations,
    pad,
  );
  return {
    axes: axesOf3D(info),
    xShape,
    filterShape,
    outShape: info.outShape,
    channelsFirst: false,
    isDepthwise: false,
  };
}

function forward(hlo: HloBuilder, x: Value, filter: Value, conv: Convolution): Value {
  const { axes, outShape, isDepthwise } = conv;
  const kernelOf = isDepthwise ? groupedFilter(hlo, filter) : filter;
  return hlo.convolution(x, kernelOf, outShape, {
    windowStrides: axes.map(({ stride }) => stride),
    padding: axes.map(paddingOf),
    rhsDilation: axes.map(({ dilation }) => dilation),
    dimensionNumbers: `${activations(conv, 'b', 'f')}x${filters(conv, 'i', 'o')}->${activations(conv, 'b', 'f')}`,
    featureGroupCount: isDepthwise ? channelsOf(conv) : 1,
  });
}

/** The gradient with respect to x: dy, spread by the stride, with the filter turned round. */
function backpropInput(hlo: HloBuilder, dy: Value, filter: Value, conv: Convolution): Value {
  const { axes, xShape, outShape, isDepthwise } = conv;
  const last = filter.shape.length - 1;
  return hlo.convolution(
    // tfjs passes over what lies beyond the result of a convolution of x.
    hlo.slice(
      dy,
      dy.shape.map(() => 0),
      outShape,
    ),
    // [...window, C, M] to [...window, M, C]: in each group M features make one.
    isDepthwise ? hlo.transpose(filter, [...range(last - 1), last, last - 1]) : filter,
    xShape,
    {
      windowStrides: axes.map(() => 1),
      padding: axes.map((axis) => {
        const reach = (axis.window - 1) * axis.dilation;
        const spread = (axis.outSize - 1) * axis.stride + 1;
        return [reach - axis.low, axis.inSize + axis.low - spread];
      }),
      lhsDilation: axes.map(({ stride }) => stride),
      rhsDilation: axes.map(({ dilation }) => dilation),
      windowReversal: axes.map(() => true),
      dimensionNumbers: `${activations(conv, 'b', 'f')}x${isDepthwise ? filters(conv, 'i', 'o') : filters(conv, 'o', 'i')}->${activations(conv, 'b', 'f')}`,
      featureGroupCount: isDepthwise ? channelsOf(conv) : 1,
    },
  );
}

/** The gradient with respect to the filter: x convolved with dy, the batch being summed over. */
function backpropFilter(hlo: HloBuilder, x: Value, dy: Value, conv: Convolution): Value {
  const { axes, filterShape, isDepthwise } = conv;
  const window = filterShape.slice(0, axes.length);
  const [channels, multiplier] = filterShape.slice(axes.length) as [number, number];
  const gradient = hlo.convolution(
    x,
    dy,
    isDepthwise ? [...window, 1, channels * multiplier] : filterShape,
    {
      windowStrides: axes.map(({ dilation }) => dilation),
      padding: axes.map(({ inSize, outSize, window: size, stride, dilation, low }) => [
        low,
        (size - 1) * dilation + (outSize - 1) * stride + 1 - inSize - low,
      ]),
      rhsDilation: axes.map(({ stride }) => stride),
      dimensionNumbers: `${activations(conv, 'f', 'b')}x${activations(conv, 'i', 'o')}->${filters(conv, 'b', 'f')}`,
      batchGroupCount: isDepthwise ? channels : 1,
    },
  );
  return hlo.reshape(gradient, filterShape);
}

/** [...window, C, M] as a kernel of C groups, [...window, 1, C M]. */
function groupedFilter(hlo: HloBuilder, filter: Value): Value {
  const window = filter.shape.slice(0, -2);
  const [channels, multiplier] = filter.shape.slice(-2) as [number, number];
  return hlo.reshape(filter, [...window, 1, channels * multiplier]);
}

function channelsOf({ filterShape, axes }: Convolution): number {
  return filterShape[axes.length]!;
}

/** Labels of an activation whose batch axis plays the part `batch`, and its channel axis `channels`. */
function activations(
  { axes, channelsFirst }: Convolution,
  batch: string,
  channels: string,
): string {
  const spatial = range(axes.length).map(String);
  const labels = channelsFirst ? [batch, channels, ...spatial] : [batch, ...spatial, channels];
  return `[${labels.join(', ')}]`;
}

function filters({ axes }: Convolution, inputs: string, outputs: string): string {
  return `[${[...range(axes.length), inputs, outputs].join(', ')}]`;
}

export const conv2D = kernel<tf.Conv2DInputs, tf.Conv2DAttrs>(
  tf.Conv2D,
  (hlo, { x, filter }, attrs) => forward(hlo, x, filter, conv2DOf(x.shape, filter.shape, attrs)),
);

export const conv2DBackpropInput = kernel<
  tf.Conv2DBackpropInputInputs,
  tf.Conv2DBackpropInputAttrs
>(tf.Conv2DBackpropInput, (hlo, { dy, filter }, attrs) =>
  backpropInput(hlo, dy, filter, conv2DOf(attrs.inputShape, filter.shape, attrs)),
);

export const conv2DBackpropFilter = kernel<
  tf.Conv2DBackpropFilterInputs,
  tf.Conv2DBackpropFilterAttrs
>(tf.Conv2DBackpropFilter, (hlo, { x, dy }, attrs) =>
  backpropFilter(hlo, x, dy, conv2DOf(x.shape, attrs.filterShape, attrs)),
);

export const conv3D = kernel<tf.Conv3DInputs, tf.Conv3DAttrs>(
  tf.Conv3D,
  (hlo, { x, filter }, attrs) => forward(hlo, x, filter, conv3DOf(x.shape, filter.shape, attrs)),
);

export const conv3DBackpropInput = kernel<
  tf.Conv3DBackpropInputV2Inputs,
  tf.Conv3DBackpropInputV2Attrs
>(tf.Conv3DBackpropInputV2, (hlo, { dy, filter }, attrs) =>
  backpropInput(hlo, dy, filter, conv3DOf(attrs.inputShape, filter.shape, attrs)),
);

export const conv3DBackpropFilter = kernel<
  tf.Conv3DBackpropFilterV2Inputs,
  tf.Conv3DBackpropFilterV2Attrs
>(tf.Conv3DBackpropFilterV2, (hlo, { x, dy }, attrs) =>
  backpropFilter(hlo, x, dy, conv3DOf(x.shape, attrs.filterShape, attrs)),
);

export const depthwiseConv2d = kernel<
  tf.DepthwiseConv2dNativeInputs,
  tf.DepthwiseConv2dNativeAttrs
>(tf.DepthwiseConv2dNative, (hlo, { x, filter }, attrs) =>
  forward(hlo, x, filter, depthwiseOf(x.shape, filter.shape, attrs)),
);

export const depthwiseConv2dBackpropInput = kernel<
  tf.DepthwiseConv2dNativeBackpropInputInputs,
  tf.DepthwiseConv2dNativeBackpropInputAttrs
>(tf.DepthwiseConv2dNativeBackpropInput, (hlo, { dy, filter }, attrs) =>
  backpropInput(hlo, dy, filter, depthwiseOf(attrs.inputShape, filter.shape, attrs)),
);

export const depthwiseConv2dBackpropFilter = kernel<
  tf.DepthwiseConv2dNativeBackpropFilterInputs,
  tf.DepthwiseConv2dNativeBackpropFilterAttrs
>(tf.DepthwiseConv2dNativeBackpropFilter, (hlo, { x, dy }, attrs) =>
  backpropFilter(hlo, x, dy, depthwiseOf(x.shape, attrs.filterShape, attrs)),
);

/** activation(convolution + bias). */
export const fusedConv2D = kernel<tf.FusedConv2DInputs, tf.FusedConv2DAttrs>(
  tf.FusedConv2D,
  (hlo, { x, filter, ...rest }, attrs) =>
    finish(hlo, forward(hlo, x, filter, conv2DOf(x.shape, filter.shape, attrs)), rest, attrs),
);

export const fusedDepthwiseConv2D = kernel<
  tf.FusedDepthwiseConv2DInputs,
  tf.FusedDepthwiseConv2DAttrs
>(tf.FusedDepthwiseConv2D, (hlo, { x, filter, ...rest }, attrs) =>
  finish(hlo, forward(hlo, x, filter, depthwiseOf(x.shape, filter.shape, attrs)), rest, attrs),
);

/** tfjs's depthwise kernels know channels-last images only. */
function depthwiseOf(
  xShape: readonly number[],
  filterShape: readonly number[],
  { strides, pad, dilations, dimRoundingMode }: Attrs2D,
): Convolution {
  const given = dimRoundingMode === undefined ? {} : { dimRoundingMode };
  const attrs = { strides, pad, dilations: dilations ?? 1, ...given };
  return conv2DOf(xShape, filterShape, attrs, true);
}

function finish(
  hlo: HloBuilder,
  product: Value,
  { bias, preluActivationWeights: weights }: { bias?: Value; preluActivationWeights?: Value },
  attrs: tf.FusedConv2DAttrs,
): Value {
  const perChannel = (value: Value) => {
    const isVector = value.shape.length === 1 && value.shape[0] !== 1;
    return attrs.dataFormat === 'NCHW' && isVector
      ? hlo.reshape(value, [...value.shape, 1, 1])
      : value;
  };
  const biased =
    bias === undefined
      ? product
      : hlo.add(product, broadcastTo(hlo, perChannel(bias), product.shape));
  return activate(hlo, biased, attrs, weights && perChannel(weights));
}
