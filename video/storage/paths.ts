import { StorageError } from './store.ts';

/**
 * A path of a store as it is used: `./` taken off. Data sets name paths, so that none may lead out of the root.
 * @throws StorageError PATH_OUTSIDE for an absolute path, one with `..`, or one with a NUL
 */
export function checkPath(path: string): string {
  const problem = path.includes('\0')
    ? 'holds a NUL'
    : path.startsWith('/') || /^[a-z]:[\\/]/i.test(path)
      ? 'is absolute'
      : path.split(/[\\/]/).includes('..')
        ? 'has a `..`'
        : undefined;
  if (problem !== undefined) throw pathOutside(path, problem);
  return path
    .split('/')
    .filter((segment) => segment !== '.')
    .join('/');
}

/** That a path leads out of its store. */
export function pathOutside(path: string, problem: string): StorageError {
  return new StorageError(
    'PATH_OUTSIDE',
    `the path ${JSON.stringify(path)} ${problem}: paths of a data set are relative to its root and stay below it`,
  );
}

/** Whether the path or a folder of it begins with a dot. */
export function isHidden(path: string): boolean {
  return path.startsWith('.') || path.includes('/.');
}

/** By code unit, whatever the locale. */
export function comparePaths(a: { readonly path: string }, b: { readonly path: string }): number {
  return a.path < b.path ? -1 : a.path > b.path ? 1 : 0;
}

/** Whether a location is a URL rather than a path of the store. */
export function isUrl(location: string): boolean {
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(location);
}

/** A URL or a path as a message may show it: without user, password, query and fragment, where secrets are. */
export function redactUrl(location: string): string {
  if (!isUrl(location)) return location;
  const [shown] = location.split(/[?#]/, 1);
  return shown!.replace(/^([a-z][a-z0-9+.-]*:\/\/)[^/]*@/i, '$1');
}
