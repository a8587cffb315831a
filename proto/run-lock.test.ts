import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { readdir, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { temporaryFolder } from './test/temporary-folder.ts';
import { LOCK_FILE, lockRun } from './run-lock.ts';

/** A lock of a process that has ended. */
function lockOfDead(nonce: string): string {
  return JSON.stringify({ pid: spawnSync('true').pid, host: hostname(), startedAt: '1', nonce });
}

/** Takes the folder and tells `onTaken`, unless another one has it. */
function take(folder: string, onTaken: () => void): void {
  try {
    lockRun(folder);
  } catch (error) {
    assert.equal((error as { code?: string }).code, 'RUN_LOCKED');
    return;
  }
  onTaken();
}

/** Calls `between` before each change that `work` makes to names of files. */
function interrupted(work: () => void, between: () => void): void {
  const { linkSync, renameSync, rmSync } = fs;
  let isBetween = false;
  const after =
    <Args extends unknown[]>(change: (...args: Args) => void) =>
    (...args: Args): void => {
      if (!isBetween) {
        isBetween = true;
        between();
        isBetween = false;
      }
      change(...args);
    };
  const changed = {
    linkSync: after(linkSync),
    renameSync: after(renameSync),
    rmSync: after(rmSync),
  };
  Object.assign(fs, changed);
  syncBuiltinESMExports();
  try {
    work();
  } finally {
    Object.assign(fs, { linkSync, renameSync, rmSync });
    syncBuiltinESMExports();
  }
}

describe('the lock of a run folder', () => {
  it('has one owner, whenever others come while it is taken from one that has died', async () => {
    let numSteps = 0;
    for (let first = 0; first <= numSteps; first++) {
      const folder = await temporaryFolder('lock');
      await writeFile(join(folder, LOCK_FILE), lockOfDead('a'));
      let numOwners = 0;
      numSteps = 0;
      const contend = (): void => {
        take(folder, () => numOwners++);
      };
      interrupted(contend, () => {
        if (numSteps++ >= first) contend();
      });
      assert.equal(numOwners, 1, `others came from step ${first} on`);
      assert.deepEqual(await readdir(folder), [LOCK_FILE]);
    }
    assert.ok(numSteps >= 3, `${numSteps} steps`);
  });

  it('is taken from one that has died while it took it from one that had died', async () => {
    const folder = await temporaryFolder('lock');
    const rightAfter = (lock: string): string =>
      join(
        folder,
        `${LOCK_FILE}.after-${createHash('sha256').update(lock).digest('hex').slice(0, 16)}`,
      );
    const [first, second, third] = ['a', 'b', 'c'].map(lockOfDead);
    await writeFile(join(folder, LOCK_FILE), first!);
    await writeFile(rightAfter(first!), second!);
    await writeFile(rightAfter(second!), third!);
    const lock = lockRun(folder);
    assert.ok(lock.isHeld());
    assert.deepEqual(await readdir(folder), [LOCK_FILE]);
    assert.throws(() => lockRun(folder), { code: 'RUN_LOCKED' });
    lock.release();
    assert.deepEqual(await readdir(folder), []);
  });

  it('holds up no job of a scheduler that was started again, on whatever machine it was before', async () => {
    const folder = await temporaryFolder('lock');
    const held = { pid: 1, host: 'another', startedAt: '1', nonce: 'a' };
    const before = { ...held, job: { id: 'cluster/7', restarts: 1 } };
    for (const job of [
      undefined,
      { id: 'cluster/8', restarts: 2 },
      { id: 'cluster/7', restarts: 1 },
    ]) {
      await writeFile(join(folder, LOCK_FILE), JSON.stringify(before));
      assert.throws(() => lockRun(folder, { job }), { code: 'RUN_LOCKED' });
    }
    const lock = lockRun(folder, { job: { id: 'cluster/7', restarts: 2 } });
    assert.ok(lock.isHeld());
    lock.release();
    await writeFile(join(folder, LOCK_FILE), JSON.stringify(held));
    assert.throws(() => lockRun(folder, { job: { id: 'cluster/7', restarts: 2 } }), {
      code: 'RUN_LOCKED',
    });
  });

  it('tells whether the one before may still write: another machine may, the dead and those who left cannot', async () => {
    const folder = await temporaryFolder('lock');
    const path = join(folder, LOCK_FILE);
    const job = { id: '7', restarts: 0 };
    const elsewhere = JSON.stringify({ pid: 1, host: 'another', startedAt: '1', nonce: 'b', job });
    const restarted = { job: { id: '7', restarts: 1 } };
    const cases = [
      [undefined, {}, false],
      [lockOfDead('a'), {}, false],
      [elsewhere, { takeOver: true }, true],
      [elsewhere, restarted, true],
    ] as const;
    for (const [before, options, isContested] of cases) {
      if (before !== undefined) await writeFile(path, before);
      const lock = lockRun(folder, options);
      assert.equal(lock.isContested, isContested);
      lock.release();
    }
  });
});
