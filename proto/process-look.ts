import { readFileSync } from 'node:fs';

/** A process as the kernel sees it. */
export interface ProcessLook {
  /** One letter: R runs, S sleeps, T is stopped, Z has ended and nobody has asked how. Source: proc_pid_stat(5). */
  readonly state: string;
  /** Start in clock ticks since boot: a pid that was given to another process has another one. */
  readonly startedAt: string;
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
