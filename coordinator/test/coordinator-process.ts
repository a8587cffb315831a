import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { compiled } from '../../proto/compiled.mjs';

const MAIN = compiled(new URL('../main.ts', import.meta.url));

/** A coordinator in a process of its own. */
export interface CoordinatorProcess {
  readonly child: ChildProcess;
  readonly address: string;
  readonly metricsAddress: string;
  /** Exit code, or the signal that ended it. */
  readonly exited: Promise<number | string>;
  /** What it wrote to stderr so far. */
  stderr(): string;
}

/** Starts a coordinator and waits until it listens. Throws what it wrote when it ends before that. */
export async function startCoordinator(
  folder: string,
  ...flags: string[]
): Promise<CoordinatorProcess> {
  const args = [MAIN, '--run', folder, '--linger-seconds', '0.2', ...flags];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let [stdout, stderr] = ['', ''];
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const exited = once(child, 'close').then(([code, signal]) => (code ?? signal) as number | string);
  const line = new Promise<string>((resolve, reject) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      if (stdout.includes('\n')) resolve(stdout.split('\n', 1)[0]!);
    });
    void exited.then((code) => {
      reject(new Error(`ended with ${code}: ${stderr}`));
    });
  });
  const { address, metricsAddress } = JSON.parse(await line) as {
    address: string;
    metricsAddress: string;
  };
  return { child, address, metricsAddress, exited, stderr: () => stderr };
}
