import * as tf from '@tensorflow/tfjs-core';

import type { HloBuilder } from '../../stablehlo/ops.ts';
import type { Value } from '../../stablehlo/types.ts';
import { kernel } from '../backend.ts';

export const complex = kernel<tf.ComplexInputs>(tf.Complex, (hlo, { real: re, imag: im }) =>
  hlo.complex(re, im),
);

/** Of a real tensor, itself. */
export const real = kernel<tf.RealInputs>(tf.Real, (hlo, { input }) =>
  input.elementType === 'complex<f32>' ? hlo.real(input) : input,
);

export const imag = kernel<tf.ImagInputs>(tf.Imag, (hlo, { input }) =>
  input.elementType === 'complex<f32>' ? hlo.imag(input) : hlo.constant(0, 'f32', input.shape),
);

export const complexAbs = kernel<tf.ComplexAbsInputs>(tf.ComplexAbs, (hlo, { x }) =>
  hlo.magnitude(x),
);

/** The discrete Fourier transform of the last axis. */
export const fft = kernel<tf.FFTInputs>(tf.FFT, (hlo, { input }) => transformed(hlo, input, 'FFT'));

/** Its inverse, divided by the length. */
export const ifft = kernel<tf.IFFTInputs>(tf.IFFT, (hlo, { input }) =>
  transformed(hlo, input, 'IFFT'),
);

function transformed(hlo: HloBuilder, input: Value, type: 'FFT' | 'IFFT'): Value {
  return hlo.fft(input, type, input.shape.slice(-1));
}
