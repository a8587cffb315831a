import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const MIN_PASSED = 4200;
/** The first run on a machine compiles thousands of single ops; later ones load them. */
const TIMEOUT_MS = 15 * 60_000;

test(
  'the specs that tfjs-core ships pass on the xla backend',
  { timeout: TIMEOUT_MS },
  async () => {
    const script = fileURLToPath(new URL('conformance.cjs', import.meta.url));
    const child = spawn(process.execPath, ['--import', 'tsx', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: TIMEOUT_MS,
    });
    const exited = once(child, 'exit');
    const output = await text(child.stdout);
    await exited;
    assert.equal(child.exitCode, 0, output);
    const passed = Number(/passed (\d+)/.exec(output)?.[1]);
    assert(passed >= MIN_PASSED, output);
  },
);
