import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';

test('a process whose readers are gone goes on to its end', async () => {
  const script = `
    import { outliveTerminal } from ${JSON.stringify(new URL('parent-process.ts', import.meta.url).href)};
    outliveTerminal();
    process.stdin.on('data', () => {
      process.stdout.write('nobody\\n');
      process.stderr.write('reads this\\n');
      setTimeout(() => process.exit(75), 50);
    });`;
  const args = [...process.execArgv, '--input-type=module', '-e', script];
  const child = spawn(process.execPath, args, { stdio: 'pipe' });
  child.stdout.destroy();
  child.stderr.destroy();
  await Promise.all([once(child.stdout, 'close'), once(child.stderr, 'close')]);
  child.stdin.write('go\n');
  assert.deepEqual(await once(child, 'exit'), [75, null]);
});
