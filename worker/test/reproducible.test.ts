import assert from 'node:assert/strict';
import { execFile, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';

const SCRIPT = fileURLToPath(new URL('step-digest.ts', import.meta.url));
const TIME_LIMIT_MS = 600_000;

/** The digest of three steps in a process of its own, which compiles its programs itself. */
async function digest(prefix: readonly string[] = []): Promise<string> {
  const cacheDir = await temporaryFolder('digest');
  const own = [process.execPath, '--import', 'tsx', SCRIPT, '4', cacheDir];
  const [command, ...args] = [...prefix, ...own] as [string, ...string[]];
  const { stdout } = await promisify(execFile)(command, args, { timeout: TIME_LIMIT_MS });
  return stdout;
}

/** Keeps the cores busy, so that the threads of whoever else runs meet in ever other orders. */
async function underLoad<T>(body: () => Promise<T>): Promise<T> {
  const busy: ChildProcess[] = Array.from({ length: availableParallelism() }, () =>
    spawn(process.execPath, ['-e', 'for (;;);'], { timeout: TIME_LIMIT_MS }),
  );
  try {
    return await body();
  } finally {
    for (const child of busy) child.kill('SIGKILL');
  }
}

test('two processes under load compute the same bits', async () => {
  const [first, second] = await underLoad(() => Promise.all([digest(), digest()]));
  assert.match(first, /^[0-9a-f]{64}\n$/);
  assert.equal(first, second);
});

const hasTaskset = spawnSync('taskset', ['-c', '0', 'true']).status === 0;
const skip =
  availableParallelism() < 2
    ? 'needs two cores'
    : hasTaskset
      ? false
      : 'needs taskset and leave to use core 0';
test('one core computes the bits of all cores, with as many threads', { skip }, async () => {
  assert.equal(await digest(['taskset', '-c', '0']), await digest());
});
