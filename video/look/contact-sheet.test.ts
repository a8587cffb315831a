import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import sharp from 'sharp';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openContactSheet } from './contact-sheet.ts';
import { drawPage } from './contact-sheet-page.ts';
import { drawTerminal } from './contact-sheet-terminal.ts';
import { openDataAccess, type DataAccess } from '../loading/data-access.ts';
import { findIndex, makeIndex } from '../index/make-index.ts';
import { writeIndex, type SampleIndex } from '../index/sample-index.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../test/films.ts';
import type { Sample } from '../index/sample.ts';

describe('a contact sheet', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let data: DataAccess;
  let root: string;
  let index: SampleIndex;
  before(async () => {
    scratch = await temporaryFolder('contact-sheet');
    root = join(scratch, 'a & b');
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
    data = await openDataAccess({ root, decoders: 1, cacheDir: scratch });
    index = await makeIndex({ ...data, clipSeconds: 10, heldOutFraction: 0.1 });
  });
  after(() => data.close());
  const open = (of: SampleIndex) =>
    openContactSheet({ index: of, ...data, numSamples: 5, framesPerSample: 4 });
  const draw = async (of: SampleIndex): Promise<string> =>
    String(await drawPage(await open(of), 'page.svg'));

  test('shows the frames of each sample in proportion, with their times and words', async () => {
    const page = await draw(index);
    const images = [
      ...page.matchAll(
        /<image [^>]*width="(\d+)" height="(\d+)" href="data:image\/jpeg;base64,([^"]+)"/g,
      ),
    ];
    assert.deepEqual(images.map(([, width, height]) => `${width!}x${height!}`).sort(), [
      ...['120x240', '120x240', '120x240', '120x240'],
      ...['160x120', '160x120', '160x120', '160x120'],
    ]);
    const pixel = await sharp(Buffer.from(images[0]![3]!, 'base64')).extract({ left: 80, top: 60, width: 1, height: 1 }).raw().toBuffer(); // prettier-ignore
    assert.ok(pixel[0]! > 220 && pixel[1]! < 40 && pixel[2]! < 40, `red is ${[...pixel].join()}`);
    // The middle of a quarter of 4 s, at 10 frames a second.
    for (const time of ['0.50 s', '1.50 s', '2.50 s', '3.50 s'])
      assert.ok(page.includes(`>${time}<`));
    assert.ok(
      page.includes('>0.50-1.00 s: first words<') && page.includes('>2.00-3.50 s: last words<'),
    );
    assert.match(page, />letter\.mp4: VIDEO_[A-Z_]+: /);
  });

  test('shows the words of the whole and those with a time, each once', async () => {
    const sample = [...index.train, ...index.heldOut].find(({ id }) => id === 'red')!;
    const cue = { startSeconds: 0.5, endSeconds: 1, text: 'said meanwhile' };
    const linesOf = async (own: Partial<Sample>): Promise<string[]> => {
      const page = await draw({ ...index, train: [{ ...sample, ...own }], heldOut: [] });
      return [...page.matchAll(/font-size="13" fill="#223">([^<]*)</g)].map(([, line]) => line!);
    };
    const timed = '0.50-1.00 s: said meanwhile';
    assert.deepEqual(await linesOf({ text: 'a caption', cues: [cue] }), ['a caption', timed]);
    assert.deepEqual(await linesOf({ text: 'a caption', cues: [cue, cue] }), [
      ...['a caption', timed, timed],
    ]);
    assert.deepEqual(await linesOf({ text: cue.text, cues: [cue] }), [timed]);
    assert.deepEqual(await linesOf({ text: 'a caption', cues: [] }), ['a caption']);
    const parts = [
      { role: 'user', media: 0 },
      { role: 'user', text: 'what is it ?' },
      { role: 'assistant', text: 'red' },
    ] as const;
    assert.deepEqual(await linesOf({ text: 'what is it ?\nred', parts, cues: [cue] }), [
      ...['user: [picture 1]', 'user: what is it ?', 'assistant: red', timed],
    ]);
  });

  test('is well-formed XML whatever the words are', async (context) => {
    const page = await draw(index);
    assert.ok(page.includes('x &#60; y &#38; &#34;z&#34; \uFFFD'));
    const file = join(scratch, 'page.svg');
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

  test('is a picture and lines of a terminal too, in the colours of the frames', async () => {
    const sheet = await open(index);
    const png = await sharp(await drawPage(sheet, 'page.png'))
      .raw()
      .toBuffer({ resolveWithObject: true });
    const { data: pixels, info } = png;
    let numRed = 0;
    for (let at = 0; at < pixels.length; at += info.channels) {
      if (pixels[at]! > 220 && pixels[at + 1]! < 40 && pixels[at + 2]! < 40) numRed++;
    }
    assert.ok(numRed > 0.95 * (4 * 160 * 120 + 4 * 120 * 240), `${numRed} red pixels`);
    await assert.rejects(drawPage(sheet, 'page.gif'), { code: 'USAGE' });
    const lines = [...drawTerminal(sheet, 80)];

    const colours = lines.join('').matchAll(/\x1b\[[34]8;2;(\d+);(\d+);(\d+)m/g);
    const reds = [...colours].map(
      ([, r, g, b]) => Number(r) > 220 && Number(g) < 40 && Number(b) < 40,
    );
    assert.ok(reds.length > 500 && reds.every(Boolean));
    assert.ok(lines.some((line) => line.includes('0.50-1.00 s: first words')));
    // A character is two pixels high: a picture twice as high as wide has as many lines as columns.
    const tall = lines.slice(lines.findIndex((line) => line.startsWith('tall.mp4')) + 1);
    const numLines = tall.findIndex((line) => !line.includes('▀'));
    assert.deepEqual(new Set(tall.slice(0, numLines).map((line) => line.split('▀').length - 1)), new Set([4 * numLines])); // prettier-ignore
  });

  test('shows a video that does not decode any more as its error, and the others as they are', async () => {
    const file = join(scratch, 'films.jsonl');
    await writeIndex(index, file);
    const read = (await findIndex(file))!;
    assert.deepEqual(read, index);
    await writeFile(join(root, 'tall.mp4'), 'gone bad');
    const page = await draw(read);
    assert.equal(page.match(/<image /g)?.length, 4);
    assert.match(page, />VIDEO_[A-Z_]+: [^<]*tall\.mp4/);
  });
});
