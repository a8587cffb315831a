import assert from 'node:assert/strict';
import { link, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { LOCK_FILE } from '../proto/run-lock.ts';
import { RUN_PLAN_FILE } from '../proto/run-plan.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { timeLimits } from '../proto/time-limits.ts';
import { startCoordinator } from './test/coordinator-process.ts';
import { testPlan } from './test/scripted-worker.ts';

test('a lock that is out of reach for a moment ends no coordinator, one that is gone does', async (t) => {
  const folder = await temporaryFolder('lock');
  const plan = testPlan({ detectWithinMs: 400 });
  await writeFile(join(folder, RUN_PLAN_FILE), JSON.stringify(plan));
  const coordinator = await startCoordinator(folder);
  t.after(() => coordinator.child.kill('SIGKILL'));
  const path = join(folder, LOCK_FILE);
  // Something that cannot be read, as of a file system that is away: at once in its place, a link that leads to itself.
  await link(path, `${path}-aside`);
  await symlink(LOCK_FILE, `${path}-loop`);
  await rename(`${path}-loop`, path);
  await delay(10 * timeLimits(plan).lockCheckMs);
  assert.equal(coordinator.child.exitCode, null, coordinator.stderr());
  assert.match(coordinator.stderr(), /lock of the run folder cannot be read: ELOOP/);
  await rename(`${path}-aside`, path);
  await delay(10 * timeLimits(plan).lockCheckMs);
  assert.equal(coordinator.child.exitCode, null, coordinator.stderr());
  await rm(path);
  assert.equal(await coordinator.exited, 1);
  assert.match(coordinator.stderr(), /RUN_LOCK_LOST/);
});
