import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const execute = promisify(execFile);

/**
 * Lets a running process write no file beyond `sizeBytes`, as on a disk that is full, until {@link freeDisk}. Linux, no
 * rights needed. Source: prlimit(1), RLIMIT_FSIZE; the error is EFBIG where a full disk gives ENOSPC.
 */
export async function fillDisk(pid: number, sizeBytes: number): Promise<void> {
  // The soft limit alone: the hard one could not be raised again.
  await execute('prlimit', [`--pid=${pid}`, `--fsize=${sizeBytes}:`]);
}

export async function freeDisk(pid: number): Promise<void> {
  await execute('prlimit', [`--pid=${pid}`, '--fsize=unlimited:']);
}

/** Why disks cannot be filled here; undefined where they can. */
export async function whyNoFullDisk(): Promise<string | undefined> {
  try {
    const { stdout } = await execute('prlimit', ['--fsize', '--raw', '--noheadings', '-o', 'HARD']);
    return stdout.trim() === 'unlimited'
      ? undefined
      : 'this process has a limit on file sizes itself (ulimit -f)';
  } catch {
    return 'there is no prlimit (util-linux) here';
  }
}
