import { access } from 'node:fs/promises';

/** Whether this process can reach a file or folder at `path`. */
export function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
