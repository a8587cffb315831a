import { homedir } from 'node:os';
import { join } from 'node:path';

/** The user's cache: `$XDG_CACHE_HOME/videoloom` or `~/.cache/videoloom`. */
export function userCacheDir(env: NodeJS.ProcessEnv): string {
  const base = env['XDG_CACHE_HOME'];
  return join(base === undefined || base === '' ? join(homedir(), '.cache') : base, 'videoloom');
}
