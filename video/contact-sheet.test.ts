import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import sharp from 'sharp';
import { contactSheet } from './contact-sheet.ts';
import { openDecoderPool, type DecoderPool } from './decoder.ts';
import { findIndex, writeIndex, type SampleIndex } from './sample-index.ts';
import { makeFilm, scratchFolder, WITHOUT_FFMPEG } from './test/films.ts';

describe('a contact sheet', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: Awaited<ReturnType<typeof scratchFolder>>;
  let pool: DecoderPool;
  let root: string;
  let index: SampleIndex;
  before(async () => {
    scratch = await scratchFolder();
    pool = await openDecoderPool({ numProcesses: 1 });
    root = join(scratch.folder, 'a & b');
    await mkdir(root);
    const args = ['-vf', 'drawbox=c=red:t=fill', '-c:v', 'libx264'];
    await makeFilm(join(root, 'red.mp4'), { seconds: 4, size: '64x48', rate: 10, args });
    await makeFilm(join(root, 'tall.mp4'), { seconds: 2, size: '32x64', rate: 10, args });
    await writeFile(join(root, 'tall.txt'), 'x < y & "z" \u0001');
    await writeFile(
      join(root, 'red.vtt'),
      'WEBVTT\n\n00:00.500 --> 00:01.000\nfirst words\n\n00:02.000 --> 00:03.500\nlast words\n',
    );
    await writeFile(join(root, 'letter.mp4'), 'no film');
    index = await findIndex(root, { clipSeconds: 10, pool });
  });
  after(async () => {
    await pool.close();
    await scratch.remove();
  });
  const draw = (of: SampleIndex): Promise<string> =>
    contactSheet({ index: of, pool, numSamples: 5, framesPerSample: 4 });

  test('shows the frames of each sample in proportion, with their times and words', async () => {
    const page = await draw(index);
    const images = [
      ...page.matchAll(/<image [^>]*height="(\d+)" href="data:image\/jpeg;base64,([^"]+)"/g),
    ];
    assert.deepEqual(images.map(([, height]) => height).sort(), [
      ...['120', '120', '120', '120'],
      ...['240', '240', '240', '240'],
    ]);
    const pixel = await sharp(Buffer.from(images[0]![2]!, 'base64')).extract({ left: 80, top: 60, width: 1, height: 1 }).raw().toBuffer(); // prettier-ignore
    assert.ok(pixel[0]! > 220 && pixel[1]! < 40 && pixel[2]! < 40, `red is ${[...pixel].join()}`);
    // The middle of a quarter of 4 s, at 10 frames a second.
    for (const time of ['0.50 s', '1.50 s', '2.50 s', '3.50 s'])
      assert.ok(page.includes(`>${time}<`));
    assert.ok(
      page.includes('>0.50-1.00 s: first words<') && page.includes('>2.00-3.50 s: last words<'),
    );
    assert.match(page, />letter\.mp4: VIDEO_[A-Z_]+: /);
  });

  test('is well-formed XML whatever the words are', async (context) => {
    const page = await draw(index);
    assert.ok(page.includes('x &#60; y &#38; &#34;z&#34; \uFFFD'));
    const file = join(scratch.folder, 'page.svg');
    await writeFile(file, page);
    try {
      execFileSync('python3', [
        '-c',
        'import sys, xml.dom.minidom as d; d.parse(sys.argv[1])',
        file,
      ]);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      context.skip('there is no Python');
    }
  });

  test('shows a video that does not decode any more as its error, and the others as they are', async () => {
    const file = join(scratch.folder, 'films.jsonl');
    await writeIndex(index, file);
    const read = await findIndex(file, { clipSeconds: 1 });
    assert.deepEqual(read, index);
    await writeFile(join(root, 'tall.mp4'), 'gone bad');
    const page = await draw(read);
    assert.equal(page.match(/<image /g)?.length, 4);
    assert.match(page, />VIDEO_[A-Z_]+: [^<]*tall\.mp4/);
  });
});
