import assert from 'node:assert/strict';
import { copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { realFilms } from '../../video/test/films.ts';
import { readSummary, videoloom } from './command.ts';

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
  const work = await temporaryFolder('work');
  const folder = join(work, 'films');
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
  const { code, output } = await videoloom(args, { cwd: work });
  assert.equal(code, 0, output);
  const { step, figures, skippedSamples } = await readSummary(join(work, 'run'));
  assert.equal(step, 6);
  assert.equal(skippedSamples, 0);
  assert.ok(figures.length > 0);
  const samples = await readFile(join(work, 'run/samples.jsonl'), 'utf8');
  assert.match(samples, /men ride bicycles/);
  assert.match(samples, /trees pass behind the window/);

  const looked = await videoloom(['look', 'run'], { cwd: work });
  assert.equal(looked.code, 0, looked.output);
  assert.match(await readFile(join(work, 'run/look.svg'), 'utf8'), /<image .*data:image\/png/);
});
