import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';

const VIDEOLOOM = fileURLToPath(new URL('../videoloom.mjs', import.meta.url));

export interface Outcome {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** What it printed on both streams. */
  readonly output: string;
}

/** A started `videoloom`, leader of a process group of its own, so that a kill reaches all that it started. */
export interface Started {
  readonly child: ChildProcess;
  output(): string;
  ended: Promise<Outcome>;
  /** `kill -9` of the command and everything it started. */
  killAll(): void;
}

export function startVideoloom(
  args: readonly string[],
  { cwd, env = {}, wrap = [] }: { cwd: string; env?: NodeJS.ProcessEnv; wrap?: readonly string[] },
): Started {
  const [program, ...rest] = [...wrap, process.execPath, VIDEOLOOM, ...args];
  const child = spawn(program!, rest, {
    cwd,
    detached: true,
    env: { ...process.env, NO_COLOR: '1', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
  }
  const ended = once(child, 'close').then(([code, signal]): Outcome => ({
    code: code as number | null,
    signal: signal as NodeJS.Signals | null,
    output: text,
  }));
  return {
    child,
    output: () => text,
    ended,
    killAll: () => {
      try {
        process.kill(-child.pid!, 'SIGKILL');
      } catch {
        // It has ended already.
      }
    },
  };
}

/** Runs `videoloom` to its end; a run that hangs is killed. */
export async function videoloom(
  args: readonly string[],
  options: Parameters<typeof startVideoloom>[1],
): Promise<Outcome> {
  const started = startVideoloom(args, options);
  const limit = setTimeout(() => {
    started.killAll();
  }, 1_200_000);
  try {
    return await started.ended;
  } finally {
    clearTimeout(limit);
  }
}

/** The last committed step in a run's journal; 0 before the first. */
export async function committedStep(run: string): Promise<number> {
  const text = await readFile(join(run, 'journal.jsonl'), 'utf8').catch(() => '');
  return Math.max(
    0,
    ...[...text.matchAll(/"type":"commit","step":(\d+)/g)].map(([, step]) => Number(step)),
  );
}

/** Waits until a run has committed `step`. */
export async function reachStep(run: string, step: number, started: Started): Promise<void> {
  for (let polls = 0; (await committedStep(run)) < step; polls++) {
    if (started.child.exitCode !== null || polls > 12_000) {
      throw new Error(`the run did not reach step ${step}:\n${started.output()}`);
    }
    await delay(20);
  }
}

export interface Summary {
  readonly step: number;
  readonly weightsSha256: string;
  readonly figures: readonly Figure[];
  readonly skippedSamples: number;
}

export async function readSummary(run: string): Promise<Summary> {
  return JSON.parse(await readFile(join(run, 'summary.json'), 'utf8')) as Summary;
}
