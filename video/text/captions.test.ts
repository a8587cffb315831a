import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseSrt, parseTxt, parseVtt } from './captions.ts';

test('WebVTT: header, notes, styles, identifiers, settings and short times', () => {
  const { cues, warnings } = parseVtt(
    'WEBVTT - made by hand\nKind: captions\n\nNOTE\n00:01.000 --> 00:02.000 not a cue\n\nSTYLE\n::cue { color: red }\n\n' +
      'intro\n00:01.500 --> 00:03.000 align:start position:10%\n<v Ann>Hello <b>there</b>\nsecond &amp; last\n\n' +
      '01:00:00.000 --> 01:00:02.250\nan hour in\n',
  );
  assert.deepEqual(cues, [
    { startSeconds: 1.5, endSeconds: 3, text: 'Hello there second & last' },
    { startSeconds: 3600, endSeconds: 3602.25, text: 'an hour in' },
  ]);
  assert.deepEqual(warnings, []);
});

test('SubRip: byte order mark, CRLF, comma, overrides and entities', () => {
  const { cues, warnings } = parseSrt(
    '\uFEFF1\r\n00:00:01,000 --> 00:00:02,5\r\n{\\an8}<font color="red">up</font> &#233;\r\n\r\n2\r\n00:00:03,000 --> 00:00:03,000\r\n1 < 2\r\n',
  );
  assert.deepEqual(cues, [
    { startSeconds: 1, endSeconds: 2.5, text: 'up é' },
    { startSeconds: 3, endSeconds: 3, text: '1 < 2' },
  ]);
  assert.deepEqual(warnings, []);
});

test('character references by number and by name are decoded, once; what is none stays', () => {
  const texts = {
    'it&#x27;s caf&eacute; &#39;ok&#39;': "it's café 'ok'",
    '&Eacute;t&eacute; &ndash; 5&nbsp;&euro; &frac12; &yuml;&hellip;': 'Été – 5 € ½ ÿ…',
    '&#X1F600; &#xE9;&#233;': '😀 éé',
    '&amp;eacute; &amp;#x27; R&D AT&T; &unknown;': '&eacute; &#x27; R&D AT&T; &unknown;',
    'a&#xD800;b&#x110000;c &lrm;d': 'abc d',
  };
  for (const [written, read] of Object.entries(texts)) {
    const { cues } = parseVtt(`WEBVTT\n\n00:01.000 --> 00:02.000\n${written}\n`);
    assert.equal(cues[0]!.text, read);
  }
});

test('cues that overlap are kept, in the order they begin', () => {
  const { cues } = parseVtt(
    'WEBVTT\n\n00:02.000 --> 00:09.000\nlate\n\n00:01.000 --> 00:05.000\nearly\n',
  );
  assert.deepEqual(
    cues.map(({ text }) => text),
    ['early', 'late'],
  );
});

test('faulty times cost their cue and are told by line', () => {
  const { cues, warnings } = parseVtt(
    'WEBVTT\n\n00:05.000 --> 00:01.000\nbackwards\n\nxx --> 00:01.000\ngarbled\n\n00:99.000 --> 01:00.000\nno such second\n\n-00:01.000 --> 00:02.000\nnegative\n\n00:01.000 --> 00:02.000\ngood\n',
  );
  assert.deepEqual(
    cues.map(({ text }) => text),
    ['good'],
  );
  assert.deepEqual(
    warnings.map(({ code, line }) => [code, line]),
    [
      ['CAPTION_NEGATIVE_LENGTH', 3],
      ['CAPTION_BAD_TIME', 6],
      ['CAPTION_BAD_TIME', 9],
      ['CAPTION_BAD_TIME', 12],
    ],
  );
});

test('a missing header is a warning, an empty file has no cues, cues without words are left out', () => {
  const { cues, warnings } = parseVtt(
    '00:01.000 --> 00:02.000\nwords\n00:02.000 --> 00:03.000\n\n',
  );
  assert.deepEqual(cues, [{ startSeconds: 1, endSeconds: 2, text: 'words' }]);
  assert.deepEqual(
    warnings.map(({ code }) => code),
    ['CAPTION_NO_HEADER'],
  );
  assert.deepEqual(parseSrt(''), { cues: [], warnings: [] });
});

test('a text file is one caption', () => {
  assert.equal(parseTxt('\uFEFFA red ball\r\n  rolls.\n'), 'A red ball rolls.');
  assert.equal(parseTxt(''), '');
});

test('rolling captions tell each word once, at its own time', () => {
  // As YouTube writes them: a line with times, the same line for 10 ms, then above the next line.
  const words = 'so today we are going to make a very very good sauce and I mean good'.split(' ');
  const lines = [4, 8, 9, 13, 16].map((end, i, ends) => words.slice(ends[i - 1] ?? 0, end));
  const time = (ms: number): string => `00:00:${(ms / 1000).toFixed(3).padStart(6, '0')}`;
  let [vtt, shown] = ['WEBVTT\nKind: captions\nLanguage: en\n\n', ' '];
  const expected: { startSeconds: number; endSeconds: number; text: string }[] = [];
  for (const [i, line] of lines.entries()) {
    const [start, end] = [i * 3000, i * 3000 + 2500];
    const starts = line.map((_, k) => start + k * 300);
    const timed = line
      .map((word, k) => (k === 0 ? word : `<${time(starts[k]!)}><c> ${word}</c>`))
      .join('');
    vtt += `${time(start)} --> ${time(end)} align:start position:0%\n${shown}\n${timed}\n\n`;
    vtt += `${time(end)} --> ${time(end + 10)} align:start position:0%\n${line.join(' ')}\n \n\n`;
    shown = line.join(' ');
    for (const [k, text] of line.entries()) {
      expected.push({
        startSeconds: starts[k]! / 1000,
        endSeconds: (starts[k + 1] ?? end) / 1000,
        text,
      });
    }
  }
  vtt += `${time(20_000)} --> ${time(21_000)} align:start position:0%\n \n[Music]\n`;
  assert.deepEqual(parseVtt(vtt), { cues: expected, warnings: [] });
});

test('rolling captions without word times lose what they repeat, and a line said again after a pause stays', () => {
  const rolling = [
    ['00:00:01,000', '00:00:02,000', 'first line'],
    ['00:00:02,000', '00:00:02,010', 'first line'],
    ['00:00:02,010', '00:00:03,000', 'first line\nyes'],
    ['00:00:03,000', '00:00:03,010', 'yes'],
    ['00:00:03,010', '00:00:04,000', 'yes\nyes'],
    ['00:00:04,000', '00:00:04,010', 'yes'],
  ];
  const srt = rolling
    .map(([from, to, text], i) => `${i + 1}\n${from} --> ${to}\n${text}\n`)
    .join('\n');
  assert.deepEqual(
    parseSrt(srt).cues.map(({ startSeconds, text }) => [startSeconds, text]),
    [
      [1, 'first line'],
      [2.01, 'yes'],
      [3.01, 'yes'],
    ],
  );
  const karaoke = 'WEBVTT\n\n00:01.000 --> 00:02.000\nsame\n\n00:03.000 --> 00:04.000\nsame\n';
  assert.equal(parseVtt(karaoke).cues.length, 2);
});
