import * as tf from '@tensorflow/tfjs-core';

import { customKernel } from '../backend.ts';
import { constantLike } from '../broadcast.ts';
import { cumulative } from './reduce.ts';
import { softmaxOf } from './normalize.ts';

const UNIFORM_BITS = 24;

/**
 * Draws events [B, numSamples] with the probabilities or logits [B, N], the same ones for the same seed. The seed is an
 * input, so that the program is compiled once; in a compiled function it is the one of the tracing, at every call.
 */
export const multinomial: tf.KernelConfig = customKernel(
  tf.Multinomial,
  (backend, { logits }, attrs) => {
    const { numSamples, seed, normalized } = attrs as tf.MultinomialAttrs;
    const key = backend.hold(
      { shape: [2], dtype: 'int32' },
      { kind: 'host', values: new Int32Array(Float64Array.of(seed).buffer) },
    );
    try {
      return backend.runKernel(
        tf.Multinomial,
        [logits!, key],
        { numSamples, normalized },
        (hlo, [x, state]) => {
          const probabilities = normalized ? x! : softmaxOf(hlo, x!, [1]);
          const [batch, numEvents] = x!.shape as [number, number];
          const bits = hlo.rngBitGenerator(
            hlo.convert(hlo.bitcastConvert(state!, 'ui32'), 'ui64'),
            {
              shape: [batch, numSamples],
              elementType: 'ui32',
            },
          );
          const kept = hlo.shiftRightLogical(bits, constantLike(hlo, bits, 32 - UNIFORM_BITS));
          const fraction = hlo.convert(kept, 'f32');
          const uniform = hlo.multiply(fraction, constantLike(hlo, fraction, 2 ** -UNIFORM_BITS));
          // The event is how many of the running sums, without the last, are not above the draw.
          const sums = hlo.slice(
            cumulative(hlo, probabilities, 1, 'add'),
            [0, 0],
            [batch, numEvents - 1],
          );
          const shape = [batch, numSamples, numEvents - 1];
          const isPassed = hlo.compare(
            hlo.broadcastInDim(uniform, shape, [0, 1]),
            hlo.broadcastInDim(sums, shape, [0, 2]),
            'GE',
          );
          return hlo.reduce(hlo.convert(isPassed, 'i32'), hlo.constant(0, 'i32'), [2], 'add');
        },
      );
    } finally {
      backend.disposeData(key.dataId);
    }
  },
);
