import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openDecoderPool, type DecoderPool } from './decoder.ts';
import { ffmpeg, makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';
import type { ByteRange } from '../storage/store.ts';

const run = promisify(execFile);
const TIMES = [0.1, 1.5, 3.9];
const SIZE = { width: 32, height: 24 };

/** Where tar says its members are. */
async function membersOf(tar: string): Promise<Map<string, ByteRange>> {
  const { stdout } = await run('tar', ['-tvRf', tar]); // block 12: -rw-r--r-- a/b 345 2026-01-01 00:00 name
  const rows = stdout.matchAll(/^block (\d+): \S+ \S+ +(\d+) \S+ \S+ (\S+)$/gm);
  return new Map(
    [...rows].map(([, block, sizeBytes, name]) => [
      name!,
      { offset: (Number(block) + 1) * 512, sizeBytes: Number(sizeBytes) },
    ]),
  );
}

for (const backend of ['node-av', 'ffmpeg'] as const) {
  describe(`parts of files with ${backend}`, { skip: WITHOUT_FFMPEG }, () => {
    let pool: DecoderPool;
    let folder: string;
    before(async () => {
      folder = await temporaryFolder('media-place');
      pool = await openDecoderPool({ numProcesses: 1, backend });
    });
    after(() => pool.close());

    test('a member of a tar file gives what the file itself gives', async () => {
      await makeFilm(join(folder, 'film.mp4'));
      // Another film before and behind: who reads past the range finds frames, but not these.
      await ffmpeg('-f', 'lavfi', '-i', 'color=red:size=64x64:duration=6', join(folder, 'a.mp4'));
      await copyFile(join(folder, 'a.mp4'), join(folder, 'z.mp4'));
      await ffmpeg('-i', join(folder, 'film.mp4'), '-frames:v', '1', join(folder, 'still.png'));
      const names = ['a.mp4', 'film.mp4', 'still.png', 'z.mp4'];
      const tar = join(folder, 'shard, 1:2.tar');
      await run('tar', ['-cf', 'shard.tar', ...names], { cwd: folder });
      await copyFile(join(folder, 'shard.tar'), tar);
      const members = await membersOf(join(folder, 'shard.tar'));
      const [whole, inside] = [
        { path: join(folder, 'film.mp4') },
        { path: tar, range: members.get('film.mp4')! },
      ];
      assert.deepEqual(await pool.probe(inside), await pool.probe(whole));
      const request = { timesSeconds: TIMES, ...SIZE };
      assert.deepEqual(
        await pool.decode({ ...inside, ...request }),
        await pool.decode({ ...whole, ...request }),
      );
      const still = { path: tar, range: members.get('still.png')! };
      assert.deepEqual(
        await pool.decodeImage({ ...still, ...SIZE }),
        await pool.decodeImage({ path: join(folder, 'still.png'), ...SIZE }),
      );
    });

    test('nothing outside of the range is read', async () => {
      const film = await readFile(await makeFilm(join(folder, 'own.mp4')));
      const path = join(folder, 'cut.bin');
      await writeFile(path, Buffer.concat([film, film, film]));
      const at = (offset: number, sizeBytes: number) => ({ path, range: { offset, sizeBytes } });
      const { frames } = await pool.decode({
        path: join(folder, 'own.mp4'),
        timesSeconds: TIMES,
        ...SIZE,
      });
      const inside = await pool.decode({
        ...at(film.length, film.length),
        timesSeconds: TIMES,
        ...SIZE,
      });
      assert.deepEqual(inside.frames, frames);
      // The index lies at the end: with half of the file there is no film, although the other half follows.
      await assert.rejects(
        pool.probe(at(film.length, film.length >> 1)),
        (error: Error & { code: string }) => {
          assert.equal(error.code, 'VIDEO_UNREADABLE');
          assert.ok(error.message.includes(`${path} (bytes ${film.length} to`), error.message);
          return true;
        },
      );
      await assert.rejects(pool.probe(at(0, 0)), { code: 'VIDEO_UNREADABLE' });
      await assert.rejects(pool.probe(at(film.length * 4, 100)), { code: 'VIDEO_UNREADABLE' });
      await assert.rejects(pool.probeImage(at(film.length * 3 - 10, 100)), {
        code: 'IMAGE_UNREADABLE',
      });
    });
  });
}
