import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

/** Variable that all processes of a drill inherit, so that they are found wherever they end up. */
export const MARK = 'VIDEOLOOM_DRILL';

/** What a run should not leave behind. */
export interface Leftovers {
  /** Processes that live on, or have ended without anybody asking how. */
  readonly processes: readonly string[];
  /** Temporary files and sockets, absolute. */
  readonly files: readonly string[];
}

/** Names of what is renamed or removed once it is whole. */
const TEMPORARY = /\.tmp\b|\.tmp-|\.partial$|\.lock(\.|$)|\.stale-/;
/** A process that has just been told to go takes a moment. */
const PATIENCE_MS = 5000;

/**
 * Looks for what a run has left: processes that bear `mark`, zombies of our process group, files of temporary names in
 * `folders`, anything in `temporary`, the folder that was their TMPDIR.
 */
export async function findLeftovers(
  mark: string,
  { folders, temporary }: { readonly folders: readonly string[]; readonly temporary: string },
): Promise<Leftovers> {
  let processes = await processesOf(mark);
  for (const endMs = performance.now() + PATIENCE_MS; performance.now() < endMs;) {
    if (processes.length === 0) break;
    await delay(50);
    processes = await processesOf(mark);
  }
  const files = (await Promise.all(folders.map(filesBelow)))
    .flat()
    .filter((file) => TEMPORARY.test(file));
  const left = await filesBelow(temporary);
  return { processes, files: [...new Set([...files, ...left])] };
}

/** Processes with the mark in their environment, and zombies (which have none any more) of our group, as `pid command`. */
async function processesOf(mark: string): Promise<string[]> {
  const found: string[] = [];
  const group = statOf(await textOf('/proc/self/stat')).group;
  for (const pid of await readdir('/proc').catch((): string[] => [])) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const stat = statOf(await textOf(`/proc/${pid}/stat`));
    if (stat.state === 'Z' ? stat.group === group : await bears(pid, mark)) {
      const command = (await textOf(`/proc/${pid}/cmdline`)).replaceAll('\0', ' ').trim();
      found.push(`${pid} ${stat.state === 'Z' ? 'zombie' : command.slice(0, 200)}`);
    }
  }
  return found;
}

async function bears(pid: string, mark: string): Promise<boolean> {
  return (await textOf(`/proc/${pid}/environ`)).split('\0').includes(`${MARK}=${mark}`);
}

/** Fields of /proc/PID/stat from the third on: the second, the command, stands in parentheses and may hold anything. */
function statOf(text: string): { state: string; group: string } {
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0] ?? '', group: fields[2] ?? '' };
}

async function filesBelow(folder: string): Promise<string[]> {
  const found = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  return found
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name));
}

/** Empty for what is gone meanwhile or is not ours to read. */
async function textOf(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}
