import * as tf from '@tensorflow/tfjs-core';

import { requireOfTfjs } from '../tfjs-modules.ts';
import { repairGradients } from './gradient-repairs.ts';

/**
 * Registers the gradients of all tfjs ops, the faulty ones repaired, with tfjs's global registry, which
 * `@tensorflow/tfjs-core` alone leaves empty.
 */
export function registerGradients(): void {
  // `getGradient`'s type leaves out that the registry may have no entry.
  const known: unknown = tf.getGradient(tf.BatchMatMul);
  if (known !== undefined) return;
  requireOfTfjs('register_all_gradients');
  repairGradients();
}
