import assert from 'node:assert/strict';

import * as tf from '@tensorflow/tfjs-core';
import { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';

/** A tensor with its elements on the host. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly dtype: tf.DataType;
  readonly values: tf.BackendValues;
}

/** The tensors of a kernel, as tfjs passes them: listed or by name, ragged ones as lists below a name. */
export type Nested<T> =
  T | undefined | readonly Nested<T>[] | { readonly [name: string]: Nested<T> };

/** The same structure of changed leaves, which are the objects with `key`. */
export function mapNested<T extends object, U>(
  nested: Nested<T>,
  key: keyof T,
  change: (leaf: T) => U,
): Nested<U> {
  if (nested === undefined) return undefined;
  if (Array.isArray(nested)) {
    return nested.map((part: Nested<T>) => mapNested(part, key, change));
  }
  if (key in nested) return change(nested as T);
  return Object.fromEntries(
    Object.entries(nested).map(([name, part]: [string, Nested<T>]) => [
      name,
      mapNested(part, key, change),
    ]),
  );
}

/** Runs tfjs's JavaScript implementation of a kernel on the host. @throws Error of that kernel for wrong inputs */
export function runOnHost(
  kernelName: string,
  inputs: Nested<HostTensor>,
  attrs: object,
): HostTensor[] {
  const kernel = tf.getKernel(kernelName, 'cpu') as tf.KernelConfig | undefined;
  assert(kernel !== undefined, `tfjs-backend-cpu has the kernel ${kernelName}`);
  const backend = openHostBackend();
  const results = kernel.kernelFunc({
    inputs: mapNested(inputs, 'dtype', (input: HostTensor) =>
      infoOf(backend, input),
    ) as tf.NamedTensorInfoMap,
    attrs: attrs as tf.NamedAttrMap,
    backend,
  });
  return (Array.isArray(results) ? results : [results]).map(({ dataId, shape, dtype }) => ({
    shape,
    dtype,
    values: backend.readSync(dataId),
  }));
}

/** One that holds the tensors of a single call and is left to the garbage collector with them. */
function openHostBackend(): MathBackendCPU {
  const backend = new MathBackendCPU();
  // Else its first use prints an advertisement.
  (backend as unknown as { firstUse: boolean }).firstUse = false;
  return backend;
}

function infoOf(backend: MathBackendCPU, { shape, dtype, values }: HostTensor): tf.TensorInfo {
  const info = backend.makeTensorInfo(
    [...shape],
    dtype,
    dtype === 'complex64' ? undefined : values,
  );
  if (dtype === 'complex64') {
    const { real, imag } = tf.backend_util.splitRealAndImagArrays(values as Float32Array);
    backend.data.get(info.dataId).complexTensorInfos = {
      real: backend.makeTensorInfo([...shape], 'float32', real),
      imag: backend.makeTensorInfo([...shape], 'float32', imag),
    };
  }
  return info;
}
