import { spawn } from 'node:child_process';

/** What a command ended with; `output` is the end of both its streams. */
export interface CommandResult {
  readonly exitCode: number | null;
  readonly output: string;
}

const MAX_OUTPUT_CHARS = 64 * 1024;

/**
 * Runs a command to its end.
 * @throws Error with the code `ENOENT` where there is no such command, and `ABORT_ERR` when `signal` stopped it
 */
export function runCommand(
  command: string,
  args: readonly string[],
  {
    onOutput,
    ...options
  }: {
    readonly signal: AbortSignal;
    readonly cwd?: string;
    readonly env?: NodeJS.ProcessEnv;
    readonly onOutput?: (chunk: Buffer) => void;
  },
): Promise<CommandResult> {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let output = '';
    const append = (chunk: Buffer): void => {
      onOutput?.(chunk);
      output = (output + chunk.toString('utf8')).slice(-MAX_OUTPUT_CHARS);
    };
    child.stdout.on('data', append);
    child.stderr.on('data', append);
    child.on('error', fail);
    child.on('close', (exitCode) => {
      done({ exitCode, output });
    });
  });
}
