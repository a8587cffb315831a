import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../video/test/films.ts';
import { openCpuEngine } from './backend/cpu-engine.ts';
import { look } from './look.ts';
import { makeRunFolder } from './test/run-folder.ts';

describe('what a model guesses of held-out clips', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let folder: string;
  before(async () => {
    await openCpuEngine();
    scratch = await temporaryFolder('look');
    folder = join(scratch, 'run');
    await mkdir(folder);
    const small =
      'model={width: 16, layers: 1, heads: 2, visualBranching: 4, visualComponents: 24}';
    await makeRunFolder(folder, {
      recipe: 'videobert',
      overrides: ['engine.name=cpu', 'data.frameDiskGibibytes=0', small],
    });
    for (const file of [0, 1, 2, 3]) {
      await makeFilm(join(folder, `${file}.mp4`), { seconds: 2, size: '32x32', rate: 10 });
    }
  });

  const draw = async (): Promise<{ page: string; said: string[] }> => {
    const said: string[] = [];
    const file = await look({
      ...{ folder, clips: 4, cacheDir: scratch },
      say: (line) => said.push(line),
    });
    return { page: await readFile(file, 'utf8'), said };
  };

  it('a clip that does not decode is left out, and the others are drawn', async () => {
    const whole = await draw();
    assert.deepEqual(whole.said, []);
    const idsOf = (page: string): string[] =>
      [...page.matchAll(/fill="#889">([^<]*)</g)].map(([, id]) => id!);
    assert.deepEqual(idsOf(whole.page), ['0-0', '1-0', '2-0', '3-0']);
    await writeFile(join(folder, '1.mp4'), 'gone bad');
    const { page, said } = await draw();
    assert.deepEqual(idsOf(page), ['0-0', '2-0', '3-0']);
    assert.equal(said.length, 1);
    assert.match(said[0]!, /left out.*: 1-0 \(VIDEO_[A-Z_]+\)$/);
  });

  it('where none decodes, what is wrong with the first is the error', async () => {
    for (const file of [0, 2, 3]) await writeFile(join(folder, `${file}.mp4`), 'gone bad');
    await assert.rejects(draw(), { code: /^VIDEO_/, message: /0\.mp4/ });
  });
});
