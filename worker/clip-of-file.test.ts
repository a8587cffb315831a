import assert from 'node:assert/strict';
import { chmod, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import type { MediaFile } from '../video/index/sample.ts';
import { openLocalStore } from '../video/storage/local.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../video/test/films.ts';
import { openClipsOfFile, onlyNamed } from './clip-of-file.ts';
import { resolveConfig, type Config } from './config.ts';
import type { Row } from './systems/system.ts';

describe('clips of a file that is not of the data', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  before(async () => {
    scratch = await temporaryFolder('clip-of-file');
  });

  const configOf = async (...overrides: string[]): Promise<Config> => {
    const name = 'videobert.yaml';
    const text = await readFile(join(import.meta.dirname, 'recipes', name), 'utf8');
    return resolveConfig({ text, file: name, preset: 'tiny', overrides });
  };

  it('its clips are shown as held-out ones are: the middle part, and nothing of it changed', async () => {
    const folder = join(scratch, 'moving');
    await mkdir(folder);
    const film = await makeFilm(join(folder, 'clip.mp4'), { seconds: 2, size: '64x48', rate: 20 });
    const rowOf = async (config: Config): Promise<Row> => {
      const clips = await openClipsOfFile({ config, index: { files: [] } }, film, scratch);
      await clips.close();
      return clips.rows[0]!;
    };
    const plain = await rowOf(await configOf());
    const changed = await rowOf(await configOf('data.augment={crop: true, flip: true}'));
    assert.deepEqual(changed.frames, plain.frames);
    const part = await rowOf(await configOf('data.sampling={policy: random-clip, seconds: 1}'));
    const { timesSeconds } = part;
    const mean = timesSeconds.reduce((sum, time) => sum + time, 0) / timesSeconds.length;
    assert.ok(Math.abs(mean - 1) < 0.05, `${timesSeconds.join()} s of 2 s`);
  });

  it('its place among the files is one of its own, or that of the same bytes in the run', async () => {
    const folder = join(scratch, 'known');
    await mkdir(folder);
    const film = await makeFilm(join(folder, 'clip.mp4'), { seconds: 1, size: '64x48', rate: 10 });
    const config = await configOf();
    const open = async (files: readonly MediaFile[]) => {
      const clips = await openClipsOfFile({ config, index: { files } }, film, scratch);
      await clips.close();
      return { row: clips.rows[0]!.sample.media[0]!.file, files: clips.index.files };
    };
    const { files: [own] } = await open([]); // prettier-ignore
    const other = { ...own!, path: 'other.mp4', sha256: '0'.repeat(64) };
    const isNew = await open([other, other]);
    assert.deepEqual([isNew.row, isNew.files], [2, [other, other, own]]);
    const isKnown = await open([other, { ...own!, path: 'far/away.mp4' }]);
    assert.deepEqual([isKnown.row, isKnown.files], [1, [other, own]]);
  });

  it('only the file and its words are looked at, whatever else the folder holds', async () => {
    const folder = join(scratch, 'home');
    await mkdir(join(folder, 'clip.frames'), { recursive: true });
    const film = await makeFilm(join(folder, 'clip.mp4'), { seconds: 1, size: '64x48', rate: 10 });
    await writeFile(join(folder, 'clip.en.vtt'), 'WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n');
    await writeFile(join(folder, 'other.mp4'), await readFile(film));
    await writeFile(join(folder, 'clip.jpg'), 'no picture');
    await symlink('/etc/hostname', join(folder, 'clip.txt'));
    await mkdir(join(folder, 'private'));
    const config = await configOf();
    const clips = await openClipsOfFile({ config, index: { files: [] } }, film, scratch);
    const { train, heldOut, files } = clips.index;
    assert.deepEqual(
      [...train, ...heldOut].map(({ id, text: words }) => [id, words]),
      [['clip', 'hello']],
    );
    assert.deepEqual(
      files.map(({ path }) => path),
      ['clip.mp4'],
    );
    assert.equal(clips.rows.length, 1);
    await clips.close();
    const run = { config, index: { files: [] } };
    await assert.rejects(openClipsOfFile(run, join(folder, 'gone.mp4'), scratch), {
      code: 'NOT_FOUND',
    });

    await chmod(join(folder, 'private'), 0o000);
    await chmod(scratch, 0o755);
    // Root may open any folder.
    const isRoot = process.geteuid!() === 0;
    if (isRoot) process.seteuid!(65_534);
    try {
      const store = onlyNamed(openLocalStore(folder), folder, 'clip.mp4');
      const listed: string[] = [];
      for await (const { path } of store.list()) listed.push(path);
      assert.deepEqual(listed, ['clip.mp4', 'clip.en.vtt']);
    } finally {
      if (isRoot) process.seteuid!(0);
      await chmod(join(folder, 'private'), 0o700);
    }
  });
});
