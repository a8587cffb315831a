import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { withTrainingMemory } from '../proto/memory-environment.ts';
import { exitOf, firstJsonLine, start } from './processes.ts';

const SILENT = ['ignore', 'ignore', 'ignore'] as const;
const NO_RUN = ['train', '--run', 'nowhere', '--coordinator', '127.0.0.1:1', '--id', 'a'];

/** What a process was started with; glibc writes a zero behind each of its settings, where there was a colon. */
async function environmentOf(pid: number): Promise<string> {
  for (;;) {
    const text = await readFile(`/proc/${pid}/environ`, 'utf8');
    // Empty while the kernel still begins the program.
    if (text !== '') return text.replaceAll('\0', ':');
    await delay(5);
  }
}

test('a process that trains starts with the memory settings, another without', async (context) => {
  if (process.platform !== 'linux' || process.env['GLIBC_TUNABLES'] !== undefined) {
    context.skip('there is no /proc, or this process has settings of its own');
    return;
  }
  for (const [program, args, isSet] of [
    ['worker', NO_RUN, true],
    ['coordinator', ['--run', 'nowhere'], false],
  ] as const) {
    const child = start(program, args, SILENT);
    try {
      const settings = withTrainingMemory({})['GLIBC_TUNABLES']!;
      assert.equal((await environmentOf(child.pid!)).includes(settings), isSet, program);
    } finally {
      child.kill('SIGKILL');
      await exitOf(child);
    }
  }
});

test('a process leaves when the one that started it lets go of it, even before it listens', async () => {
  // It has a second of work, more than enough to notice.
  const child = start('worker', ['engine', 'doctor'], SILENT);
  child.disconnect();
  assert.deepEqual(await exitOf(child), { code: 75, signal: null });
});

test('the first line that a process prints is read whole, and the rest does not hold it up', async () => {
  const script = `process.stdout.write(JSON.stringify({ folder: 'a\\u2028b' }) + '\\n');
    process.stdout.write('x'.repeat(2 ** 22), () => process.exit(3));`;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  const said = await firstJsonLine(child, 'the script');
  assert.deepEqual(said, { folder: 'a\u2028b' });
  assert.deepEqual(await exitOf(child), { code: 3, signal: null });
});
