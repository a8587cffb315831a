/** Names of processes that other processes on any machine can tell dead ones by. */

import { createHash } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { hostname } from 'node:os';

/** This process: its number, when it began, and the system in which the number means something. */
export function ownName(): string {
  return `${process.pid}-${startOf(process.pid) ?? 0}-${systemName()}`;
}

/**
 * Whether the process that gave a folder its {@link ownName} (other text may follow) has ended. Of one on another
 * system only the folder's time of change can tell: a living one renews it.
 */
export async function isDead(name: string, folder: string): Promise<boolean> {
  const [pid, start, system] = name.split('-');
  if (system === systemName()) return String(startOf(Number(pid)) ?? 'none') !== start;
  const stats = await stat(folder).catch(() => undefined); // removed by another one
  return stats !== undefined && Date.now() - stats.mtimeMs > SILENT_MS;
}

/** When a process began, in the system's ticks; 0 where the system does not tell; undefined if there is none. */
function startOf(pid: number): number | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name, in brackets, may hold anything. Source: proc(5), field 22.
    return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[19]);
  } catch {
    return process.platform !== 'linux' && isAlive(pid) ? 0 : undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** The machine since its last start, and of it the container. */
function systemName(): string {
  const parts = [hostname()];
  try {
    parts.push(
      readFileSync('/proc/sys/kernel/random/boot_id', 'utf8'),
      readlinkSync('/proc/self/ns/pid'),
    );
  } catch {
    // not Linux: the host alone
  }
  return createHash('sha256').update(parts.join()).digest('hex').slice(0, 12);
}

const SILENT_MS = 24 * 3_600_000;
