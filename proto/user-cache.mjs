import { homedir } from 'node:os';
import { join } from 'node:path';

// Plain JavaScript: it is needed before TypeScript can be read.

/** @param {NodeJS.ProcessEnv} env */
export function userCacheDir(env) {
  return join(env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'videoloom');
}
