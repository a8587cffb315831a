import { homedir } from 'node:os';
import { join } from 'node:path';

/** The user's cache: `$XDG_CACHE_HOME/videoloom` or `~/.cache/videoloom`. */
export function userCacheDir(env: NodeJS.ProcessEnv): string {
  return join(env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'videoloom');
}
