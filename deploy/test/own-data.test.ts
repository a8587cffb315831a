import assert from 'node:assert/strict';
import { copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { realFilms } from '../../video/test/films.ts';
import { makeWorkFolder, readSummary, videoloom } from './command.ts';

/** Captions and subtitles written for the four films of the package. */
const CAPTIONS: Record<string, string> = {
  'bigbuckbunny.txt': 'a large grey rabbit comes out of its burrow and stretches on a green meadow',
  'bikes.vtt':
    'WEBVTT\n\n00:00.500 --> 00:03.000\nmen ride bicycles through the streets of a town\n\n' +
    '00:03.500 --> 00:06.000\nthe riders wear helmets\n\n00:06.500 --> 00:09.500\nthey wait beside parked cars\n',
  'carphone_pristine.srt':
    '1\n00:00:00,200 --> 00:00:02,000\na man talks inside a moving car\n\n2\n00:00:02,200 --> 00:00:03,800\ntrees pass behind the window\n',
  'carphone_distorted.txt': 'a man talks inside a moving car, the picture is noisy',
};

test('a folder of real films with captions and subtitles trains from start to end', async (context) => {
  const films = await realFilms();
  if ('skip' in films) {
    context.skip(films.skip);
    return;
  }
  const work = await makeWorkFolder();
  try {
    const folder = join(work.folder, 'films');
    await mkdir(folder);
    const names = (await readdir(films.folder)).filter((name) => name.endsWith('.mp4'));
    assert.equal(names.length, 4);
    for (const name of names) await copyFile(join(films.folder, name), join(folder, name));
    for (const [name, text] of Object.entries(CAPTIONS)) await writeFile(join(folder, name), text);

    const args = [
      'train',
      'videobert',
      '--preset',
      'tiny',
      '--data',
      'films',
      '--steps',
      '6',
      '--out',
      'run',
    ];
    const { code, output } = await videoloom(args, { cwd: work.folder });
    assert.equal(code, 0, output);
    const { step, figures, skippedSamples } = await readSummary(join(work.folder, 'run'));
    assert.equal(step, 6);
    assert.equal(skippedSamples, 0);
    assert.ok(figures.length > 0);
    const samples = await readFile(join(work.folder, 'run/samples.jsonl'), 'utf8');
    assert.match(samples, /men ride bicycles/);
    assert.match(samples, /trees pass behind the window/);

    const looked = await videoloom(['look', 'run'], { cwd: work.folder });
    assert.equal(looked.code, 0, looked.output);
    assert.match(
      await readFile(join(work.folder, 'run/look.svg'), 'utf8'),
      /<image .*data:image\/png/,
    );
  } finally {
    await work.remove();
  }
});
