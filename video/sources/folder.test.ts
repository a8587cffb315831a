import assert from 'node:assert/strict';
import { truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { folder } from './folder.ts';
import { makeFolder, readSource } from './test/read-source.ts';

const VTT = 'WEBVTT\n\n00:01.000 --> 00:02.000\nfrom vtt\n';
const SRT = '1\n00:00:03,000 --> 00:00:04,000\nfrom srt\n';

test('words come from the file beside the medium that counts most', async () => {
  const root = await makeFolder({
    'a/all.mp4': '',
    'a/all.vtt': VTT,
    'a/all.srt': SRT,
    'a/all.txt': 'from txt',
    'b.mkv': '',
    'b.srt': SRT,
    'b.json': '{"caption":"no"}',
    'c.jpg': '',
    'c.txt': 'from\n  txt\n',
    'd.WEBP': '',
    'd.json': '{"title":"from json","height":3}',
    // As yt-dlp writes them; the picture is the video's preview.
    'e.mp4': '',
    'e.jpg': '',
    'e.de.vtt': VTT.replace('vtt', 'German'),
    'e.en-US.vtt': VTT.replace('vtt', 'English'),
    'e.info.json': '{"title":"no","description":"no"}',
    'f.webm': '',
    'f.info.json': '{"id":"f","title":"from info","description":"no"}',
    'g.png': '',
    'notes.md': '',
  });
  const { samples, faults } = await readSource(folder, root);
  assert.deepEqual(faults, []);
  assert.deepEqual(
    samples.map(({ id, media, text }) => [id, media[0]!.kind, media[0]!.path, text]),
    [
      ['a/all', 'video', 'a/all.mp4', 'from vtt'],
      ['b', 'video', 'b.mkv', 'from srt'],
      ['c', 'image', 'c.jpg', 'from txt'],
      ['d', 'image', 'd.WEBP', 'from json'],
      ['e', 'video', 'e.mp4', 'from English'],
      ['f', 'video', 'f.webm', 'from info'],
      ['g', 'image', 'g.png', ''],
    ],
  );
  assert.deepEqual(samples[0]!.cues, [{ startSeconds: 1, endSeconds: 2, text: 'from vtt' }]);
});

test('transcripts beside a video are timed words, and faulty times are counted', async () => {
  const segments = [
    {
      start: 0,
      end: 1,
      text: ' Hello there.',
      words: [
        { word: ' Hello', start: 0.1, end: 0.4 },
        { word: ' there.', start: 0.9, end: 0.5 },
      ],
    },
  ];
  const root = await makeFolder({
    'a.mp4': '',
    'a.json': JSON.stringify({ text: 'Hello there.', segments, language: 'en' }),
    'b.mp4': '',
    'b.vtt':
      'WEBVTT\n\n00:02.000 --> 00:01.000\nback\n\n-00:01.000 --> 00:01.000\nnegative\n\n00:01.000 --> 00:02.000\ngood\n',
  });
  const { samples } = await readSource(folder, root);
  assert.deepEqual(samples[0]!.cues, [{ startSeconds: 0.1, endSeconds: 0.4, text: 'Hello' }]);
  assert.deepEqual(
    samples.map(({ text, numCaptionWarnings }) => [text, numCaptionWarnings]),
    [
      ['Hello', 1],
      ['good', 2],
    ],
  );
});

test('captions of all videos in one file in the root, as HowTo100M has them', async () => {
  const captions = {
    other: { start: [0], end: [1], text: ['no video'] },
    v1: { start: [1, 0, -3], end: [2, 1, 1], text: ['second', 'first', 'never'] },
    own: { start: [0], end: [1], text: ['not this'] },
    v2: 'nothing',
  };
  const root = await makeFolder({
    'caption.json': JSON.stringify(captions),
    'videos/v1.mp4': '',
    'videos/v2.mp4': '',
    'videos/own.mp4': '',
    'videos/own.txt': 'its own',
  });
  const { samples } = await readSource(folder, root);
  assert.deepEqual(
    samples.map(({ id, text, numCaptionWarnings }) => [id, text, numCaptionWarnings]),
    [
      ['videos/own', 'its own', 0],
      ['videos/v1', 'first second', 1],
      ['videos/v2', '', 0],
    ],
  );
});

test('words in UTF-16 are read by their mark, and those in no such encoding are told', async () => {
  const little = (text: string): Buffer => Buffer.from(`\ufeff${text}`, 'utf16le');
  const big = (text: string): Buffer => little(text).swap16();
  const root = await makeFolder({
    'a.mp4': '',
    'a.txt': little('Größe 🎞'),
    'b.mp4': '',
    'b.vtt': big(VTT.replace('vtt', '東京')),
    'c.mp4': '',
    'c.srt': little(SRT),
    'd.mp4': '',
    'd.txt': '\ufeffGröße',
    'e.mp4': '',
    'e.txt': Buffer.from('Größe', 'latin1'),
    'f.mp4': '',
    'f.txt': little('half').subarray(0, 5),
  });
  const { samples, skipped } = await readSource(folder, root);
  assert.deepEqual(
    samples.map(({ id, text }) => [id, text]),
    [
      ['a', 'Größe 🎞'],
      ['b', 'from 東京'],
      ['c', 'from srt'],
      ['d', 'Größe'],
    ],
  );
  assert.deepEqual(samples[1]!.cues, [{ startSeconds: 1, endSeconds: 2, text: 'from 東京' }]);
  const refusal = (path: string, encoding: string) => ({
    path: path.replace('.txt', '.mp4'),
    code: 'CAPTION_UNREADABLE',
    message: `the captions ${path} cannot be read: it is not ${encoding}; save it as UTF-8`,
  });
  assert.deepEqual(skipped, [refusal('e.txt', 'UTF-8'), refusal('f.txt', 'UTF-16LE')]);
});

test('captions that cannot be read and names taken twice cost their medium', async () => {
  const root = await makeFolder({
    'a.mp4': '',
    'a.vtt': VTT,
    'b.mp4': '',
    'b.json': '{',
    'c.mkv': '',
    'c.mp4': '',
    'd.mp4': '',
  });
  await truncate(join(root, 'a.vtt'), 16 * 2 ** 20 + 1);
  const { samples, faults } = await readSource(folder, root);
  assert.deepEqual(
    samples.map(({ id }) => id),
    ['c', 'd'],
  );
  assert.deepEqual(faults, [
    'a.mp4 CAPTION_UNREADABLE',
    'b.mp4 CAPTION_UNREADABLE',
    'c.mp4 DUPLICATE_ID',
  ]);
  await assert.rejects(readSource(folder, await makeFolder({ 'x.txt': '' })), {
    code: 'DATA_EMPTY',
  });
});
