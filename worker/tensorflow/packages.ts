import type { Wheel } from '../wheel.ts';

/** One npm package of tfjs-node and the wheels whose library its binding can be built on. */
export interface TensorflowPackage {
  readonly npmPackage: string;
  readonly version: string;
  /** The package's Subresource Integrity, as the registry gives it. */
  readonly integrity: string;
  /** By `process.platform`-`process.arch`. */
  readonly wheels: Readonly<Record<string, Wheel & { readonly megabytes: number }>>;
}

/**
 * What `videoloom engine install tensorflow` installs. The two npm packages have the same sources; the wheel decides
 * whether the library can use a GPU. tensorflow-cpu has half the size, and no build for ARM, where tensorflow itself
 * computes on the processor alone.
 */
export const PACKAGES: Readonly<Record<'cpu' | 'gpu', TensorflowPackage>> = {
  cpu: {
    npmPackage: '@tensorflow/tfjs-node',
    version: '4.22.0',
    integrity:
      'sha512-uHrXeUlfgkMxTZqHkESSV7zSdKdV0LlsBeblqkuKU9nnfxB1pC6DtoyYVaLxznzZy7WQSegjcohxxCjAf6Dc7w==',
    wheels: {
      'linux-x64': {
        package: 'tensorflow-cpu',
        version: '2.21.0',
        sha256: 'dcc8afd32930e42d5296b6ee19078b773706830af4ea97fbe503b9f5e0f820cb',
        builtFor: { pythonVersion: '3.12', abi: 'cp312', platform: 'manylinux_2_27_x86_64' },
        megabytes: 274,
      },
      'linux-arm64': {
        package: 'tensorflow',
        version: '2.21.0',
        sha256: 'b07d15737406533898e36c7ef7944b1be18e9028dc521b9229952c537bbc5552',
        builtFor: { pythonVersion: '3.12', abi: 'cp312', platform: 'manylinux_2_27_aarch64' },
        megabytes: 281,
      },
    },
  },
  gpu: {
    npmPackage: '@tensorflow/tfjs-node-gpu',
    version: '4.22.0',
    integrity:
      'sha512-p//NN6DGiN4hInUmIkRffaFVMcdTREUMjPyjW04J7OXvB2zBlQimj61eFKSgRrH3f5TnOfKzb0n56he/B6a4bw==',
    wheels: {
      'linux-x64': {
        package: 'tensorflow',
        version: '2.21.0',
        sha256: 'b3b95643c4e70eb925839938fb35cbe142f317ec84af6844ee61513713bb13c0',
        builtFor: { pythonVersion: '3.12', abi: 'cp312', platform: 'manylinux_2_27_x86_64' },
        megabytes: 572,
      },
    },
  },
};

/** What the binding needs of a wheel, below `tensorflow/` and `tensorflow/include/`. */
export const WHEEL_FILES = {
  libraries: ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2'],
  /** The names that the package's binding.gyp links with. */
  links: {
    'libtensorflow.so': 'libtensorflow_cc.so.2',
    'libtensorflow_framework.so': 'libtensorflow_framework.so.2',
  },
  /** What the binding's sources include, and what that includes. */
  headers: [
    'tensorflow/c/c_api.h',
    'tensorflow/c/c_api_macros.h',
    'tensorflow/c/eager/c_api.h',
    'tensorflow/c/tf_attrtype.h',
    'tensorflow/c/tf_buffer.h',
    'tensorflow/c/tf_datatype.h',
    'tensorflow/c/tf_status.h',
    'tensorflow/c/tf_tensor.h',
    'tensorflow/c/tf_tstring.h',
    'tensorflow/core/platform/ctstring.h',
    'tensorflow/core/platform/ctstring_internal.h',
    'tsl/platform/ctstring.h',
    'tsl/platform/ctstring_internal.h',
    'xla/tsl/c/tsl_status.h',
  ],
} as const;
