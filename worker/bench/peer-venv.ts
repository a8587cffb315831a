import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';

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

/** The Python of a virtual environment with a peer's packages, made in the cache folder on first use. */
export async function ensurePeer(cacheDir: string, { packages }: Peer): Promise<string> {
  const name = packages[0].split('==', 1)[0]!.replace(/\W+/g, '-');
  const folder = path.join(cacheDir, `${name}-venv`);
  const python = path.join(folder, 'bin', 'python');
  if (existsSync(path.join(folder, 'complete'))) return python;
  process.stderr.write(`installing ${packages.join(' ')} into ${folder}\n`);
  await mkdir(cacheDir, { recursive: true });
  await execute('python3', ['-m', 'venv', folder]);
  await execute(python, ['-m', 'pip', 'install', '--quiet', ...packages]);
  await writeFile(path.join(folder, 'complete'), '');
  return python;
}

async function execute(command: string, args: readonly string[]): Promise<void> {
  const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const [code] = (await once(child, 'exit')) as [number | null];
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} exited with ${code}`);
}
