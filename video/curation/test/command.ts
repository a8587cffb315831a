import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL('curation-main.ts', import.meta.url));

/** False, or the reason to skip a test that looks at processes or bounds the size of files. */
export const ELSEWHERE: string | false =
  process.platform === 'linux' ? false : 'there is no prlimit and no /proc here';

/** Starts `videoloom data …` under `wrapper`, a command that starts another (`prlimit`). */
export function startData(
  args: readonly string[],
  {
    wrapper = [],
    env = process.env,
  }: { wrapper?: readonly string[]; env?: NodeJS.ProcessEnv } = {},
): ChildProcess {
  const [program, ...rest] = [
    ...[...wrapper, process.execPath, '--import', import.meta.resolve('tsx'), MAIN],
    ...args,
  ];
  return spawn(program!, rest, { stdio: ['ignore', 'pipe', 'pipe'], env });
}

/** Runs `videoloom data …` to its end. */
export async function runData(
  ...[args, options]: Parameters<typeof startData>
): Promise<{ code: number | null; output: string }> {
  const child = startData(args, options);
  let output = '';
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, output };
}

/** Ids of the running programs that have `text` among their arguments; Linux. */
export async function processesWith(text: string): Promise<number[]> {
  const ids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(
    ids.map(async (id) => {
      const line = await readFile(`/proc/${id}/cmdline`, 'utf8').catch(() => '');
      return line.includes(text) ? [Number(id)] : [];
    }),
  );
  return found.flat();
}

/** Waits until `look` gives something; fails after two minutes. */
export async function eventually<T>(look: () => Promise<T | undefined>): Promise<T> {
  const end = Date.now() + 120_000;
  while (Date.now() < end) {
    const found = await look();
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error('it did not come about within two minutes');
}
