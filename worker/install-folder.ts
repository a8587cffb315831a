import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

const PREFIX = '.installing-';

/**
 * A folder in the cache to install into before the result is renamed to its place. Those that killed installations
 * left behind are removed: the ones older than twice the time that an installation may take.
 */
export async function openInstallFolder(cacheDir: string, timeoutMs: number): Promise<string> {
  for (const entry of await readdir(cacheDir)) {
    if (!entry.startsWith(PREFIX)) continue;
    const path = join(cacheDir, entry);
    const age = await stat(path).then(
      ({ mtimeMs }) => Date.now() - mtimeMs,
      () => 0, // another process has just removed it
    );
    if (age > 2 * timeoutMs) await rm(path, { recursive: true, force: true });
  }
  return mkdtemp(join(cacheDir, PREFIX));
}
