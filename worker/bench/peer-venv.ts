import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { mkdir, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** The PyTorch that benches compare with. */
export const TORCH = 'torch==2.13.0';
/** The newest JAX for Python 3.11. */
const JAX = 'jax==0.10.2';

/** A program that a training step is compared with. */
export interface Peer {
  /** Of several that use the same package. */
  readonly label: string;
  /** What it needs, the one to report it by first. */
  readonly packages: readonly [string, ...string[]];
  /** In `peers/`. */
  readonly script: string;
  readonly args: readonly string[];
}

/** Who a training step is compared with. */
export const PEERS = {
  eager: { label: 'eager', packages: [TORCH, 'numpy'], script: 'step_torch.py', args: [] },
  compile: {
    label: 'compile',
    packages: [TORCH, 'numpy'],
    script: 'step_torch.py',
    args: ['--compile'],
  },
  jax: {
    label: 'jax',
    packages: [JAX, 'jaxlib==0.10.2', 'numpy'],
    script: 'step_jax.py',
    args: [],
  },
} as const satisfies Record<string, Peer>;

/** The same on an NVIDIA GPU; the wheel of PyTorch is for both. */
export const GPU_PEERS = {
  eager: { ...PEERS.eager, args: ['--device', 'cuda'] },
  compile: { ...PEERS.compile, args: ['--compile', '--device', 'cuda'] },
  jax: { ...PEERS.jax, packages: ['jax[cuda12]==0.10.2', 'numpy'] },
} as const satisfies Record<string, Peer>;

/** Longest that an installation takes; a lock that is older was left behind. */
const INSTALL_MS = 900_000;

/**
 * The Python of a virtual environment with a peer's packages, made in the cache folder on first use and when they
 * change. Of several processes that want it at once, one makes it and the others wait.
 */
export async function ensurePeer(cacheDir: string, { packages }: Peer): Promise<string> {
  const name = packages[0].split('==', 1)[0]!.replace(/\W+/g, '-');
  const folder = path.join(cacheDir, `${name}-venv`);
  const python = path.join(folder, 'bin', 'python');
  const mark = packages.join('\n');
  const isComplete = (): boolean => contentOf(path.join(folder, 'complete')) === mark;
  await mkdir(cacheDir, { recursive: true });
  while (!isComplete()) {
    const release = await tryLock(`${folder}.lock`);
    if (release === undefined) {
      await sleep(500);
      continue;
    }
    try {
      if (isComplete()) break;
      process.stderr.write(`installing ${packages.join(' ')} into ${folder}\n`);
      await execute('python3', ['-m', 'venv', folder]);
      await execute(python, ['-m', 'pip', 'install', '--quiet', ...packages]);
      await writeFile(path.join(folder, 'complete'), mark);
    } finally {
      await release();
    }
  }
  return python;
}

/** Empty where there is no such file. */
function contentOf(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
}

/** Undefined while another process has it. */
async function tryLock(lock: string): Promise<(() => Promise<void>) | undefined> {
  try {
    await mkdir(lock);
    return () => rm(lock, { recursive: true, force: true });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    const age = await stat(lock).then(
      ({ mtimeMs }) => Date.now() - mtimeMs,
      () => 0, // it was let go of just now
    );
    if (age > INSTALL_MS) await rm(lock, { recursive: true, force: true });
    return undefined;
  }
}

async function execute(command: string, args: readonly string[]): Promise<void> {
  const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const [code] = (await once(child, 'exit')) as [number | null];
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} exited with ${code}`);
}
