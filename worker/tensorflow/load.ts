import { createRequire } from 'node:module';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import { messageOf } from '../../proto/errors.ts';
import { requireOfTfjs } from '../tfjs-modules.ts';
import {
  findTensorflow,
  notInstalled,
  TensorflowError,
  type TensorflowInstallation,
} from './install.ts';
import { TFJS_SYMBOL } from './stand-in.ts';

/**
 * Loads the installed tfjs-node and registers its backend with tfjs as `tensorflow`; once a process.
 *
 * @param threads The size of TensorFlow's thread pools; the cores unless given.
 * @throws TensorflowError `TENSORFLOW_NOT_INSTALLED`, `TENSORFLOW_LOAD_FAILED`
 */
export async function loadTensorflow({
  cacheDir,
  threads,
}: {
  readonly cacheDir: string;
  readonly threads?: number | undefined;
}): Promise<{ readonly usesGpu: boolean }> {
  // The type leaves out that there may be none.
  const registered = tf.findBackend(BACKEND_NAME) as NodeBackend | null;
  if (registered !== null) return { usesGpu: registered.isUsingGpuDevice };
  const installation = await findTensorflow(cacheDir);
  if (installation === undefined) throw notInstalled();

  // The library reads these when it is loaded, and takes no options for them.
  const { env } = process;
  if (threads !== undefined) {
    env['TF_NUM_INTRAOP_THREADS'] = String(threads);
    env['TF_NUM_INTEROP_THREADS'] = String(threads);
  }
  try {
    const backend = openBackend(installation);
    tf.registerBackend(BACKEND_NAME, () => backend);
    return { usesGpu: backend.isUsingGpuDevice };
  } catch (cause) {
    throw new TensorflowError(
      'TENSORFLOW_LOAD_FAILED',
      `${installation.npmPackage} in ${installation.folder} could not be loaded: ${messageOf(cause)}. Delete that ` +
        'folder and run `videoloom engine install tensorflow`.',
      { cause },
    );
  }
}

/** The name that tfjs-node's kernels are registered under. */
const BACKEND_NAME = 'tensorflow';

type NodeBackend = tf.KernelBackend & { readonly isUsingGpuDevice: boolean };

/** Does what the package's own entry does, without its second tfjs, file handlers and download helper. */
function openBackend({ npmPackage, folder, binding }: TensorflowInstallation): NodeBackend {
  const require = createRequire(join(folder, 'package.json'));
  Object.assign(globalThis, { [Symbol.for(TFJS_SYMBOL)]: tf });
  restoreUtilities(require);
  // Some kernels call methods of tensors, `x.toInt()`.
  requireOfTfjs('public/chained_ops/register_all_chained_ops');
  require('./dist/register_all_kernels');
  const { NodeJSKernelBackend } = require('./dist/nodejs_kernel_backend') as {
    NodeJSKernelBackend: new (binding: unknown, npmPackage: string) => NodeBackend;
  };
  return new NodeJSKernelBackend(require(binding), npmPackage);
}

/** tfjs-node 4.22 calls two functions of node:util that Node 22 warns of and Node 23 took away. */
function restoreUtilities(require: NodeJS.Require): void {
  Object.assign(require('node:util') as object, {
    isArray: (value: unknown) => Array.isArray(value),
    isNullOrUndefined: (value: unknown) => value === null || value === undefined,
  });
}
