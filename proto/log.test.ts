import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from './test/temporary-folder.ts';

test('a full disk costs lines of the log, and not the process that writes them', async (context) => {
  try {
    execFileSync('prlimit', ['--version'], { stdio: 'ignore' });
  } catch {
    context.skip('there is no prlimit');
    return;
  }
  const folder = await temporaryFolder('log');
  const file = join(folder, 'a.jsonl');
  const code = `
    import { openLog } from ${JSON.stringify(new URL('log.ts', import.meta.url).href)};
    const log = openLog({}, { file: ${JSON.stringify(file)} });
    for (let line = 0; line < 100; line++) log.info({ step: line }, 'a line of some length');
    process.stdout.write('alive');`;
  const script = ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', code];
  const { status, stdout, stderr } = spawnSync(
    'prlimit',
    ['--fsize=2048', process.execPath, ...script],
    { encoding: 'utf8' },
  );
  assert.equal(status, 0, stderr);
  assert.equal(stdout, 'alive');
  assert.match(stderr, /LOG_WRITE_FAILED: .*a\.jsonl: EFBIG/);
  assert.ok((await readFile(file)).length <= 2048);
});
