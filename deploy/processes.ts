import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { realpathSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { compiled } from '../proto/compiled.mjs';
import { VideoloomError } from '../proto/errors.ts';
import { linesOf } from '../proto/lines.ts';
import { withTrainingMemory } from '../proto/memory-environment.ts';
import type { Host } from './hosts.ts';
import { EXIT_RESUMABLE, outliveTerminal } from '../proto/parent-process.ts';

/** The command where the project lies: another machine may have no programs of it yet. */
const VIDEOLOOM = realpathSync(fileURLToPath(new URL('videoloom.mjs', import.meta.url)));

/** A folder's `main.ts`, to be run as a process of its own. */
export type Program = 'worker' | 'coordinator' | 'video';

type Stream = 'ignore' | 'pipe' | 'inherit';

/**
 * Starts `<program>/main.ts`. `stdio` is what becomes of its standard streams. A fourth one,
 * an IPC channel, tells it when this process is gone, so that it leaves too. Who trains gets the memory settings for it.
 */
export function start(
  program: Program,
  args: readonly string[],
  stdio: readonly [Stream, Stream, Stream],
  env: NodeJS.ProcessEnv = process.env,
): ChildProcess {
  const main = compiled(new URL(`../${program}/main.ts`, import.meta.url));
  const trains = program === 'worker' && args[0] === 'train';
  const child = spawn(process.execPath, [main, ...args], {
    stdio: [...stdio, 'ipc'],
    env: trains ? withTrainingMemory(env) : env,
  });
  // Only its end says something: it keeps nobody alive.
  child.channel?.unref();
  return child;
}

/**
 * Starts `videoloom` with these arguments on another machine. It learns from the end of its standard input that this
 * process is gone.
 */
export function startElsewhere(
  host: Host,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
): ChildProcess {
  const [program, ...rest] = host.reach([process.execPath, VIDEOLOOM, ...args]);
  // Of this machine's programs; srun hands on all that there is.
  const own = { ...env };
  delete own['NODE_COMPILE_CACHE'];
  const child = spawn(program!, rest, {
    stdio: ['pipe', 'ignore', 'pipe'],
    // A group of its own: Ctrl-C in a terminal is for this process, which lets the run stop in order.
    detached: true,
    env: own,
  });
  // It may have ended already.
  child.stdin.on('error', () => undefined);
  return child;
}

/** How a process ended. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export async function exitOf(child: ChildProcess): Promise<Exit> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  return { code: child.exitCode, signal: child.signalCode };
}

/** A program that is run again does not come more often, since that would help nobody. */
const MOST_AN_HOUR = 20;
const AGAIN_MS = 1000;

/**
 * Runs a program with this terminal and answers with its exit code; signals of the terminal reach it directly.
 * @param comesAgain it is run again where it ended to be, and nobody asked for its end
 */
export async function runThrough(
  program: Program,
  args: readonly string[],
  { comesAgain = false }: { readonly comesAgain?: boolean } = {},
): Promise<number> {
  outliveTerminal();
  let child: ChildProcess | undefined;
  const asked = new AbortController();
  const onInterrupt = (): void => {
    asked.abort();
  };
  const forward = (): void => {
    asked.abort();
    child?.kill('SIGTERM');
  };
  process.on('SIGINT', onInterrupt);
  process.on('SIGTERM', forward);
  try {
    for (const starts: number[] = []; ;) {
      child = start(program, args, ['inherit', 'inherit', 'inherit']);
      starts.push(performance.now());
      const { code, signal } = await exitOf(child);
      const isTooOften = (starts.at(-MOST_AN_HOUR) ?? -Infinity) > performance.now() - 3_600_000;
      if (comesAgain && code === EXIT_RESUMABLE && !isTooOften)
        await delay(AGAIN_MS, undefined, { signal: asked.signal }).catch(() => undefined);
      // As a shell says it.
      else return code ?? 128 + constants.signals[signal!];
      if (asked.signal.aborted) return code;
    }
  } finally {
    process.off('SIGINT', onInterrupt);
    process.off('SIGTERM', forward);
  }
}

/**
 * The first line that a child prints on stdout, parsed as JSON.
 *
 * @throws VideoloomError `PROCESS_FAILED` when it ends without one; the reason stands in what it printed itself.
 */
export async function firstJsonLine<T>(child: ChildProcess, what: string): Promise<T> {
  const lines = linesOf(child.stdout!);
  const first = await lines.next();
  if (first.done !== true) {
    // What it prints later is of no interest, but must not fill the pipe.
    await lines.return(undefined);
    child.stdout!.resume();
    return JSON.parse(first.value) as T;
  }
  const { code, signal } = await exitOf(child);
  throw new ProcessFailed(what, { code, signal });
}

/** A process that said itself what went wrong: nothing is to be added but its exit code. */
export class ProcessFailed extends VideoloomError {
  readonly exit: Exit;

  constructor(what: string, exit: Exit) {
    const how = exit.signal === null ? `with code ${exit.code ?? '?'}` : `by ${exit.signal}`;
    super('PROCESS_FAILED', `${what} ended ${how}`);
    this.exit = exit;
  }
}
