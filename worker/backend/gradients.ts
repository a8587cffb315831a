import { createRequire } from 'node:module';

import * as tf from '@tensorflow/tfjs-core';

import { repairGradients } from './gradient-repairs.ts';

const GRADIENTS = '@tensorflow/tfjs-core/dist/register_all_gradients';

/**
 * Registers the gradients of all tfjs ops, the faulty ones repaired, with tfjs's global registry, which `@tensorflow/tfjs-core` alone leaves
 * empty. The modules beside its bundle are written for bundlers (extensionless imports), so that of Node's loaders
 * only a `require` under tsx reads them; they share engine and registries with the bundle through `globalThis`.
 */
export function registerGradients(): void {
  // `getGradient`'s type leaves out that the registry may have no entry.
  const known: unknown = tf.getGradient(tf.BatchMatMul);
  if (known !== undefined) return;
  createRequire(import.meta.url)(GRADIENTS);
  repairGradients();
}
