import { readFileSync } from 'node:fs';

/** CPU time so far of this process, which takes what is made, and of those that make it. */
export function cpuSeconds(pids: readonly number[]): number {
  const { user, system } = process.cpuUsage();
  return pids.reduce(
    (sum, pid) => {
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
      return sum + (Number(fields[11]) + Number(fields[12])) / 100;
    },
    (user + system) / 1e6,
  );
}
