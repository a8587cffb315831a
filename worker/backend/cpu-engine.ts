import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';

import { eagerEngine } from './eager-engine.ts';
import type { Engine } from './engine.ts';

/** Plain JavaScript: always there, and slow. */
export async function openCpuEngine(): Promise<Engine> {
  await tf.setBackend('cpu');
  // Else its first use prints an advertisement.
  (tf.backend() as unknown as { firstUse: boolean }).firstUse = false;
  return eagerEngine({ name: 'cpu', platform: 'javascript' });
}
