/** The user's cache: `$XDG_CACHE_HOME/videoloom` or `~/.cache/videoloom`. */
export function userCacheDir(env: NodeJS.ProcessEnv): string;
