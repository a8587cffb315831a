import * as tf from '@tensorflow/tfjs-core';

import { hostKernel } from '../backend.ts';

/**
 * What cannot be part of a program, since the shape of its result, or whether there is one, depends on values, or since
 * it works on strings. Such kernels read their inputs and run tfjs's JavaScript on the host.
 */

const VALUES_MAKE_SHAPE = 'the shape of its result depends on values';
const VALUES_ARE_CHECKED = 'it checks values and fails on some';
const STRINGS = 'it computes with strings';

/** Indices of boxes. */
export const nonMaxSuppressionV3 = hostKernel(tf.NonMaxSuppressionV3, VALUES_MAKE_SHAPE);
export const nonMaxSuppressionV4 = hostKernel(tf.NonMaxSuppressionV4, VALUES_MAKE_SHAPE);
export const nonMaxSuppressionV5 = hostKernel(tf.NonMaxSuppressionV5, VALUES_MAKE_SHAPE);
export const unique = hostKernel(tf.Unique, VALUES_MAKE_SHAPE);

/** Ragged and sparse tensors: values with the lengths or positions that they have. */
export const raggedGather = hostKernel(tf.RaggedGather, VALUES_MAKE_SHAPE);
export const raggedRange = hostKernel(tf.RaggedRange, VALUES_MAKE_SHAPE);
export const raggedTensorToTensor = hostKernel(tf.RaggedTensorToTensor, VALUES_MAKE_SHAPE);
export const sparseFillEmptyRows = hostKernel(tf.SparseFillEmptyRows, VALUES_MAKE_SHAPE);
export const sparseReshape = hostKernel(tf.SparseReshape, VALUES_ARE_CHECKED);
export const sparseSegmentMean = hostKernel(tf.SparseSegmentMean, VALUES_MAKE_SHAPE);
export const sparseSegmentSum = hostKernel(tf.SparseSegmentSum, VALUES_MAKE_SHAPE);

/** The shape that two shapes, given as tensors, broadcast to. */
export const broadcastArgs = hostKernel(tf.BroadcastArgs, VALUES_ARE_CHECKED);

export const staticRegexReplace = hostKernel(tf.StaticRegexReplace, STRINGS);
export const stringNGrams = hostKernel(tf.StringNGrams, STRINGS);
export const stringSplit = hostKernel(tf.StringSplit, STRINGS);
export const stringToHashBucketFast = hostKernel(tf.StringToHashBucketFast, STRINGS);

/** Pixels to a canvas. */
export const draw = hostKernel(tf.Draw, 'it paints values on a canvas');
