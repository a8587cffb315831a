/** Hugging Face's transformers with peft, which decoders, adapters and generation are compared with. */
import { spawn } from 'node:child_process';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../../../proto/errors.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { ensurePeer, TORCH, type Peer } from '../../bench/peer-venv.ts';

const PEER: Peer = {
  label: 'transformers',
  packages: [
    'peft==0.21.2',
    'transformers==5.23.0',
    'gguf==0.19.0',
    TORCH,
    'numpy',
    'jinja2',
    'pillow==12.0.0',
  ],
  script: 'decoders.py',
  args: [],
};
const SCRIPTS = path.join(import.meta.dirname, '..', 'peers');
const TIMEOUT_MS = 600_000;

/** A line of serve.py. */
interface Reply {
  readonly status: number;
  readonly said: string;
  readonly failed: string;
}

/** What keeps a process from ending, unless told otherwise: a process, and its pipes. */
interface Held {
  ref(): void;
  unref(): void;
}

/** Gives what a script printed. */
type Server = (script: string, args: readonly string[]) => Promise<string>;

let server: Promise<Server | undefined> = Promise.resolve(undefined);

/** The script ended by itself, and not well. */
class ScriptFailed extends Error {}

/**
 * Runs a script of `peers/` in the environment, which is made on first use; gives what it printed. The scripts of a
 * process run one after the other, in forks of one that loads torch and transformers once.
 */
export async function runPeer(script: string, ...args: readonly string[]): Promise<string> {
  const current = server.then((running) => running ?? startServer());
  const said = current.then((run) => run(script, args));
  // The next waits for this one, whether it succeeds or not; where none runs any more, it starts another.
  server = said.then(
    () => current,
    (error: unknown) => (error instanceof ScriptFailed ? current : undefined),
  );
  return said;
}

async function startServer(): Promise<Server> {
  const python = await ensurePeer(userCacheDir(process.env), PEER);
  const child = spawn(python, [path.join(SCRIPTS, 'serve.py')], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, HF_HUB_OFFLINE: '1' },
  });
  child.stdin.on('error', () => undefined); // its end says more
  child.on('error', () => undefined); // so does that of its output
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  // Between two scripts it keeps nobody from ending; it ends when its input does.
  const held = [child, child.stdin, child.stdout] as unknown as readonly Held[];
  const release = (): void => {
    for (const each of held) each.unref();
  };
  release();
  return async (script, args) => {
    for (const each of held) each.ref();
    const patience = new AbortController();
    try {
      child.stdin.write(`${JSON.stringify([script, ...args])}\n`);
      const late = sleep(TIMEOUT_MS, undefined, { signal: patience.signal }).then(
        () => undefined,
        () => undefined,
      );
      const line = await Promise.race([lines.next(), late]);
      if (line?.done !== false) {
        child.kill('SIGKILL');
        const what = line === undefined ? `did not end within ${TIMEOUT_MS / 1000} s` : 'was ended';
        throw new Error(`${script} ${args.join(' ')} ${what}`);
      }
      const { status, said, failed } = JSON.parse(line.value) as Reply;
      if (status === 0) return said;
      throw new ScriptFailed(`${script} ${args.join(' ')} exited with ${status}: ${failed}`);
    } finally {
      patience.abort();
      release();
    }
  };
}

/** Why the environment cannot be had, for tests to skip with; undefined where it is there. */
export async function whyNoPeer(): Promise<string | undefined> {
  try {
    await ensurePeer(userCacheDir(process.env), PEER);
    return undefined;
  } catch (error) {
    return `transformers cannot be installed: ${messageOf(error)}`;
  }
}
