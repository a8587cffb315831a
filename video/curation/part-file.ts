/** Files under a name that nobody reads until they are whole. */
import { createHash } from 'node:crypto';
import { open, readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { syncFolder } from '../../proto/durable-file.ts';

/** Another command writes to its file more often than this. */
const LEFTOVER_AGE_MS = 10 * 60_000;

/** Where a file is made before it has its name: hidden, in the same folder, with the same ending. */
export function partOf(file: string): string {
  // The name itself may be as long as a name can be.
  const name = createHash('sha256').update(basename(file)).digest('hex').slice(0, 12);
  return join(dirname(file), `.part-${process.pid}-${name}${extname(file)}`);
}

/** Flushes a whole part file and gives it its name, for good; its size. */
export async function publish(part: string, file: string): Promise<number> {
  const handle = await open(part, 'r+');
  let size: number;
  try {
    await handle.sync();
    ({ size } = await handle.stat());
  } finally {
    await handle.close();
  }
  await rename(part, file);
  await syncFolder(dirname(file));
  return size;
}

/** Deletes what killed commands left behind, but not the files of one that runs. */
export async function removeLeftovers(out: string): Promise<void> {
  for (const path of await readdir(out, { recursive: true })) {
    const pid = Number(/^\.part-(\d+)-/.exec(basename(path))?.[1] ?? NaN);
    if (Number.isNaN(pid)) continue;
    const file = join(out, path);
    const { mtimeMs } = await stat(file);
    // In a container the same small ids come back.
    const isOld = Date.now() - mtimeMs > LEFTOVER_AGE_MS;
    if (isOld || pid === process.pid || !isRunning(pid)) await rm(file, { force: true });
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as { code?: string }).code === 'EPERM';
  }
}
