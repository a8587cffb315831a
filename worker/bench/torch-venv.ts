import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';

/** The PyTorch that benches compare with. */
export const TORCH = 'torch==2.13.0';

/** The Python of a virtual environment with PyTorch, made in the cache folder on first use. */
export async function ensureTorch(cacheDir: string): Promise<string> {
  const folder = path.join(cacheDir, 'torch-venv');
  const python = path.join(folder, 'bin', 'python');
  if (existsSync(path.join(folder, 'complete'))) return python;
  process.stderr.write(`installing ${TORCH} into ${folder}\n`);
  await mkdir(cacheDir, { recursive: true });
  await execute('python3', ['-m', 'venv', folder]);
  await execute(python, ['-m', 'pip', 'install', '--quiet', TORCH, 'numpy']);
  await writeFile(path.join(folder, 'complete'), '');
  return python;
}

async function execute(command: string, args: readonly string[]): Promise<void> {
  const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const [code] = (await once(child, 'exit')) as [number | null];
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} exited with ${code}`);
}
