import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { UsageError } from './errors.ts';
import { forgetLeaderFailure, LeaderFailureWatch, tellLeaderFailure } from './leader-failure.ts';
import { temporaryFolder } from './test/temporary-folder.ts';

const MINUTE_MS = 60_000;
const work = await temporaryFolder('leader-failure');
const isFailure = (error: unknown): boolean =>
  error instanceof UsageError && error.code === 'LEADER_FAILED';

function watched(name: string) {
  const folder = join(work, name);
  let nowMs = 1;
  const watch = new LeaderFailureWatch(folder, () => nowMs);
  return {
    folder,
    after: (minutes: number): Promise<void> => {
      nowMs += minutes * MINUTE_MS;
      return watch.check();
    },
  };
}

test('a failure that comes again ends the waiting at once, any other when nobody leads again', async () => {
  const wrong = watched('wrong');
  await wrong.after(0);
  await wrong.after(60);
  await tellLeaderFailure(wrong.folder, { code: 2, isFinal: true });
  await assert.rejects(wrong.after(0), isFailure);

  const unlucky = watched('unlucky');
  await unlucky.after(0);
  await tellLeaderFailure(unlucky.folder, { code: 1, isFinal: false });
  await unlucky.after(60);
  await unlucky.after(14);
  await assert.rejects(unlucky.after(1), isFailure);
});

test('a leader that comes takes it back, whether it is old or new', async () => {
  const again = watched('again');
  await tellLeaderFailure(again.folder, { code: 2, isFinal: true });
  // It may be of the leader before, which comes with this worker.
  await again.after(0);
  await again.after(14);
  await forgetLeaderFailure(again.folder);
  await again.after(1);
  await again.after(600);
  await tellLeaderFailure(again.folder, { code: 2, isFinal: true });
  await assert.rejects(again.after(0), isFailure);
});

test('one that was there first and stays ends the waiting too', async () => {
  const late = watched('late');
  await tellLeaderFailure(late.folder, { code: 2, isFinal: true });
  await late.after(0);
  await assert.rejects(late.after(15), isFailure);
});
