import { readFileSync } from 'node:fs';

/** A process as the kernel sees it. */
export interface ProcessLook {
  /** One letter: R runs, S sleeps, T is stopped, Z has ended and nobody has asked how. Source: proc_pid_stat(5). */
  readonly state: string;
  /** Start in clock ticks since boot: a pid that was given to another process has another one. */
  readonly startedAt: string;
}

/** Whether a process of this machine lives, and is the one that started then; where there is no /proc, any of its id. */
export function isAlive(pid: number, startedAt = ''): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
  const seen = lookUpProcess(pid);
  if (seen === undefined) return true;
  // A zombie has ended; it only waits for its parent to ask how.
  return (
    seen.state !== 'Z' && seen.state !== 'X' && (startedAt === '' || seen.startedAt === startedAt)
  );
}

/** Looks a process of this machine up; undefined when there is none or no /proc. */
export function lookUpProcess(pid: number): ProcessLook | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // Fields from the third on: the second, the command, stands in parentheses and may hold anything.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0] ?? '', startedAt: fields[19] ?? '' };
}
