import assert from 'node:assert/strict';
import { chmod, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { openLocalStore } from '../video/storage/local.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../video/test/films.ts';
import { openClipsOfFile, onlyNamed } from './clip-of-file.ts';
import { resolveConfig } from './config.ts';

describe('clips of a file that is not of the data', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  before(async () => {
    scratch = await temporaryFolder('clip-of-file');
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
    const name = 'videobert.yaml';
    const text = await readFile(join(import.meta.dirname, 'recipes', name), 'utf8');
    const config = resolveConfig({ text, file: name, preset: 'tiny', overrides: [] });
    const clips = await openClipsOfFile({ config }, film, scratch);
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
    await assert.rejects(openClipsOfFile({ config }, join(folder, 'gone.mp4'), scratch), {
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
