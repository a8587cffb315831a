import { mkdirSync, renameSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import { userCacheDir } from '../proto/user-cache.mjs';

/**
 * Loads a module that lies beside tfjs-core's bundle, by its path in `dist`. It and the hundreds that it imports are
 * written for bundlers (extensionless imports), so that Node itself does not read them: one file of them all is made once
 * for a version of tfjs, and loads in ten milliseconds. It shares engine and registries with the bundle through
 * `globalThis`.
 */
export function requireOfTfjs(path: string): void {
  const require = createRequire(import.meta.url);
  const folder = join(userCacheDir(process.env), 'tfjs');
  const bundle = join(folder, `${basename(path)}-${tf.version_core}.cjs`);
  try {
    require(bundle);
    return;
  } catch {
    // Not made yet, or damaged.
  }
  mkdirSync(folder, { recursive: true });
  const own = `${bundle}.${process.pid}`;
  const { buildSync } = require('esbuild') as typeof import('esbuild');
  buildSync({
    ...{ entryPoints: [require.resolve(`@tensorflow/tfjs-core/dist/${path}`)], outfile: own },
    ...{ bundle: true, platform: 'node', format: 'cjs' },
  });
  renameSync(own, bundle);
  require(bundle);
}
