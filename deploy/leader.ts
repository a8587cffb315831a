import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { isAlive } from '../proto/process-look.ts';
import { COORDINATOR_FILE } from '../proto/run-plan.ts';

/** What a coordinator leaves in its run folder, also when it has ended. */
interface Whereabouts {
  readonly address: string;
  readonly pid: number;
  /** Absent where an older release wrote it. */
  readonly host?: string;
}

/** The coordinator that a run folder names. */
export interface Leader {
  readonly address: string;
  /** Whether its process lives; undefined for one of another machine, of which nobody here can tell. */
  readonly isAlive: boolean | undefined;
}

/** Who led the run last; undefined where nobody has. */
export async function leaderOf(run: string): Promise<Leader | undefined> {
  let left: Whereabouts;
  try {
    left = JSON.parse(await readFile(join(run, COORDINATOR_FILE), 'utf8')) as Whereabouts;
  } catch {
    return undefined;
  }
  const { address, pid, host } = left;
  return { address, isAlive: host === hostname() ? isAlive(pid) : undefined };
}
