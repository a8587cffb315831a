import { mkdirSync, renameSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

import * as tf from '@tensorflow/tfjs-core';

import { userCacheDir } from '../../proto/user-cache.ts';
import { repairGradients } from './gradient-repairs.ts';

const GRADIENTS = '@tensorflow/tfjs-core/dist/register_all_gradients';

/**
 * Registers the gradients of all tfjs ops, the faulty ones repaired, with tfjs's global registry, which `@tensorflow/tfjs-core` alone leaves
 * empty. The modules beside its bundle share engine and registries with it through `globalThis`.
 */
export function registerGradients(): void {
  // `getGradient`'s type leaves out that the registry may have no entry.
  const known: unknown = tf.getGradient(tf.BatchMatMul);
  if (known !== undefined) return;
  requireGradients();
  repairGradients();
}

/**
 * The 400 modules are written for bundlers (extensionless imports): Node itself does not read them, tsx does in half a
 * second, and one file of them all loads in ten milliseconds. It is made once for a version of tfjs.
 */
function requireGradients(): void {
  const require = createRequire(import.meta.url);
  const folder = join(userCacheDir(process.env), 'gradients');
  const bundle = join(folder, `tfjs-core-${tf.version_core}.cjs`);
  try {
    require(bundle);
    return;
  } catch {
    // Not made yet, or damaged.
  }
  try {
    mkdirSync(folder, { recursive: true });
    const own = `${bundle}.${process.pid}`;
    const { buildSync } = require('esbuild') as typeof import('esbuild');
    const entryPoints = [require.resolve(GRADIENTS)];
    buildSync({ entryPoints, bundle: true, platform: 'node', format: 'cjs', outfile: own });
    renameSync(own, bundle);
    require(bundle);
  } catch {
    // A home that cannot be written costs the half second.
    require(GRADIENTS);
  }
}
