import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { describe, it } from 'node:test';
import { promisify } from 'node:util';

import {
  hasTrainingMemory,
  withoutTrainingMemory,
  withTrainingMemory,
} from './memory-environment.ts';

describe('the memory settings of a training process', () => {
  it('are added once, and leave those that are there', () => {
    const own = { HOME: '/x', GLIBC_TUNABLES: 'glibc.malloc.arena_max=4:glibc.cpu.x=1' };
    assert(!hasTrainingMemory(own) && !hasTrainingMemory({}));
    const set = withTrainingMemory(own);
    assert.match(set['GLIBC_TUNABLES']!, /^glibc\.malloc\.arena_max=4:glibc\.cpu\.x=1:/);
    assert.doesNotMatch(set['GLIBC_TUNABLES']!, /arena_max=1/);
    assert(hasTrainingMemory(set));
    assert.deepEqual(withTrainingMemory(set), set);
    assert.equal(set['HOME'], '/x');
    assert.deepEqual(withoutTrainingMemory(set), own);
    assert.deepEqual(withoutTrainingMemory(withTrainingMemory({ HOME: '/x' })), { HOME: '/x' });
  });

  it('are ones that this process can start with', async () => {
    const env = withTrainingMemory(process.env);
    const { stdout, stderr } = await promisify(execFile)(process.execPath, ['-p', '6 * 7'], {
      env,
    });
    assert.deepEqual([stdout.trim(), stderr.trim()], ['42', '']);
  });
});
