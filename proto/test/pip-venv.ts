import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { exists } from '../exists.ts';
import { userCacheDir } from '../user-cache.mjs';

const run = promisify(execFile);
const LIMIT_MS = 300_000;

/**
 * The folder of a virtual environment in the user's cache, with packages out of PyPI; or why there is none.
 * @param name says package and version: another version is another environment
 */
export async function pipVenv(
  name: string,
  packages: readonly string[],
): Promise<{ folder: string } | { skip: string }> {
  const cache = userCacheDir(process.env);
  const folder = join(cache, `${name}-venv`);
  if (await exists(join(folder, 'bin', 'python'))) return { folder };
  await mkdir(cache, { recursive: true });
  const fresh = await mkdtemp(`${folder}.`);
  try {
    await run('python3', ['-m', 'venv', fresh], { timeout: LIMIT_MS });
    const args = ['-m', 'pip', 'install', '--quiet', ...packages];
    await run(join(fresh, 'bin', 'python'), args, { timeout: LIMIT_MS });
    // Another test process may have been faster.
    await rename(fresh, folder).catch(() => rm(fresh, { recursive: true, force: true }));
  } catch (error) {
    await rm(fresh, { recursive: true, force: true });
    return {
      skip: `pip cannot install ${packages.join(' ')} (${String(error).split('\n', 1).join('')})`,
    };
  }
  return { folder };
}
