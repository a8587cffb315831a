import { join } from 'node:path';

import * as tf from '@tensorflow/tfjs-core';

import { loadTensorflow } from '../tensorflow/load.ts';
import { eagerEngine } from './eager-engine.ts';
import type { Engine } from './engine.ts';

/**
 * TensorFlow's library through tfjs-node, op by op. Once loaded it stays in the process; it is the backend
 * `tensorflow` of tfjs.
 *
 * @param threads The size of TensorFlow's thread pools; its library reads it when it is loaded.
 * @throws TensorflowError `TENSORFLOW_NOT_INSTALLED`, `TENSORFLOW_LOAD_FAILED`
 */
export async function openTensorflowEngine({
  cacheDir,
  threads,
}: {
  readonly cacheDir: string;
  readonly threads?: number | undefined;
}): Promise<Engine> {
  const { usesGpu } = await loadTensorflow({ cacheDir: join(cacheDir, 'tensorflow'), threads });
  await tf.setBackend('tensorflow');
  return eagerEngine({ name: 'tensorflow', platform: usesGpu ? 'cuda' : 'cpu' });
}
