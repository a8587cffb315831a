import * as tf from '@tensorflow/tfjs-core';

/** A function with a gradient of its own. */
export interface TracedPasses {
  forward(): { readonly output: tf.Tensor; readonly residuals: readonly tf.Tensor[] };
  /** Gradients of the inputs that {@link applyPasses} is given, in their order. */
  backward(cotangent: tf.Tensor, residuals: readonly tf.Tensor[]): tf.Tensor[];
}

/** The function's output, differentiable by `inputs`. */
export function applyPasses(traced: TracedPasses, inputs: readonly tf.Tensor[]): tf.Tensor {
  const run = tf.customGrad((...given) => {
    const save = given.at(-1) as tf.GradSaveFunc;
    const { output, residuals } = traced.forward();
    save([...residuals]);
    return {
      value: output,
      gradFunc: (cotangent: tf.Tensor, kept: tf.Tensor[]) =>
        tf.tidy(() => traced.backward(cotangent, kept)),
    };
  });
  return run(...inputs);
}
