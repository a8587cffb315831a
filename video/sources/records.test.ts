import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { SamplePart } from '../index/sample.ts';
import { documents } from './documents.ts';
import { imageText } from './image-text.ts';
import { instructions } from './instructions.ts';
import { preferences } from './preferences.ts';
import type { SourceMedia, SourceSample } from './source.ts';
import { FIXTURES, makeFolder, readSource } from './test/read-source.ts';
import { webvid } from './webvid.ts';

/** Where media are, as messages would call it. */
function placesOf({ media }: SourceSample): string[] {
  return media.map(({ kind, path, startSeconds, endSeconds }: SourceMedia) => {
    const span = `${startSeconds ?? ''}-${endSeconds ?? ''}`;
    return `${kind} ${path}${span === '-' ? '' : ` ${span}`}`;
  });
}

/** A conversation or document in one line. */
function lineOf(parts: readonly SamplePart[] | undefined): string {
  return (parts ?? [])
    .map(({ role, text, media }) => `${role ? `${role}:` : ''}${text ?? `<${media!}>`}`)
    .join('|');
}

test('WebVid rows that Python’s csv module wrote: quotes, line ends, file places, URLs and splits', async () => {
  const { samples, faults } = await readSource(webvid, join(FIXTURES, 'webvid'));
  assert.deepEqual(
    samples.map((sample) => [sample.id, ...placesOf(sample), sample.text, sample.split]),
    [
      ['101', 'video videos/000001_000050/101.mp4', 'A red, plain clip', 'train'],
      ['102', 'video videos/moved/102.mp4', 'says "blue"\nover two lines', 'train'],
      ['103', 'video https://example.org/103.mp4', 'only a URL', 'train'],
      ['203', 'video somewhere/203.mp4', 'grün', 'heldOut'],
      ['spans/2', 'video videos/moved/102.mp4 0.25-0.75', 'a "quoted word', undefined],
      ['spans/3', 'video videos/moved/102.mp4 -0.5', 'from the start', undefined],
    ],
  );
  assert.deepEqual(faults, [
    'results_2M_train.csv:6 DUPLICATE_ID',
    'results_2M_train.csv:7 MEDIA_NOT_FOUND',
    'results_2M_train.csv:8 PATH_OUTSIDE',
    'spans.tsv:4 SPAN_INVALID',
    'spans.tsv:5 PATH_OUTSIDE',
  ]);
});

test('rows with too many or too few fields and stray quotes cost themselves alone', async () => {
  const root = await makeFolder({
    'a.jpg': '',
    'x.csv':
      'image,caption\na.jpg,one\na.jpg\na.jpg,two,three\na.jpg,st"ray\na.jpg,four\n\na.jpg,\n,none\n',
    'y.csv': 'width,height\n1,2\n',
    'z.csv': `image,caption\na.jpg,first\na.jpg,"never closed\na.jpg,lost\n`,
  });
  const { samples, faults } = await readSource(webvid, root);
  assert.deepEqual(
    samples.map(({ id, text }) => `${id} ${text}`),
    ['x/2 one', 'x/6 four', 'x/8 ', 'z/2 first'],
  );
  assert.deepEqual(faults, [
    'x.csv:3 ROW_UNREADABLE',
    'x.csv:4 ROW_UNREADABLE',
    'x.csv:5 ROW_UNREADABLE',
    'x.csv:9 RECORD_INCOMPLETE',
    'y.csv TABLE_COLUMNS',
    'z.csv:4 ROW_UNREADABLE',
  ]);
});

test('preferences of LLaVA-RLHF, TRL and LLaVA-Hound: the sample has the preferred answer, its part the other', async () => {
  const asked = [
    { from: 'human', value: 'Hello' },
    { from: 'gpt', value: 'Hi' },
    { from: 'human', value: '<image>\nWhat is it?' },
    { from: 'gpt', value: '' },
  ];
  const outputs = (preference: unknown) => ({
    ...{ image: 'a.jpg', output_1: { from: 'llava', value: 'A cat. ' } },
    ...{ output_2: { from: 'llava', value: 'A dog.' }, preference },
  });
  const said = (role: string, content: unknown) => ({ role, content });
  const user = said('user', [{ type: 'image' }, { type: 'text', text: 'What?' }]);
  const bare = { image: 'a.jpg', prompt: 'What?' };
  const root = await makeFolder({
    'a.jpg': '',
    'b.mp4': '',
    'rlhf.json': JSON.stringify([
      { id: 'x', conversations: asked, ...outputs(1) },
      { id: 'x', conversations: [asked], ...outputs(2) },
      { conversations: asked, ...outputs(0) },
    ]),
    'trl.jsonl': [
      { id: 'v', video: 'b.mp4', prompt: '<video>\nWhat?', chosen: 'Yes.', rejected: 'No.' },
      { image: 'a.jpg', question: 'What?', chosen: 'Yes.', rejected: 'No.' },
      {
        images: ['a.jpg'],
        prompt: [user],
        chosen: [said('assistant', 'Yes.')],
        rejected: [said('assistant', 'No.')],
      },
      {
        chosen: [said('user', 'Q'), said('assistant', 'Yes.')],
        rejected: [said('user', 'Q'), said('assistant', 'No.')],
      },
      { ...bare, chosen: 'Yes.', rejected: 'Yes. ' },
      { ...bare, chosen: 'Yes.', rejected: '' },
      { ...bare, prompt: '<video>', chosen: 'Yes.', rejected: 'No.' },
      { ...bare, prompt: [], chosen: 'Yes.', rejected: 'No.' },
    ]
      .map((record) => JSON.stringify(record))
      .join('\n'),
  });
  const { samples, faults } = await readSource(preferences, root);
  assert.deepEqual(
    samples.map(({ id, parts }) => [id, lineOf(parts), parts!.at(-1)!.rejected]),
    [
      ['rlhf/x#0', 'user:Hello|assistant:Hi|user:<0>|user:What is it?|assistant:A cat.', 'A dog.'],
      ['rlhf/x#1', 'user:Hello|assistant:Hi|user:<0>|user:What is it?|assistant:A dog.', 'A cat.'],
      ['trl/v#0', 'user:<0>|user:What?|assistant:Yes.', 'No.'],
      ['trl/1', 'user:<0>|user:What?|assistant:Yes.', 'No.'],
      ['trl/2', 'user:<0>|user:What?|assistant:Yes.', 'No.'],
      ['trl/3', 'user:Q|assistant:Yes.', 'No.'],
    ],
  );
  assert.deepEqual(placesOf(samples[2]!), ['video b.mp4']);
  assert.deepEqual(faults, [
    'rlhf.json:1#2 RECORD_INCOMPLETE',
    'trl.jsonl:5 RECORD_INCOMPLETE',
    'trl.jsonl:6 RECORD_INCOMPLETE',
    'trl.jsonl:7 MEDIA_MARKS',
    'trl.jsonl:8 RECORD_INCOMPLETE',
  ]);
});

test('LLaVA and Video-ChatGPT conversations, as an array and as JSON Lines', async () => {
  const { samples, faults } = await readSource(instructions, join(FIXTURES, 'instructions'));
  const llava = [
    [
      'llava/000#0',
      ['image pictures/coco/0.jpg'],
      'user:<0>|user:What is it?|assistant:A colour.|user:Which?|assistant:Blue, "\\u00fc" {[.',
    ],
    [
      'llava/000#1',
      ['image pictures/coco/1.jpg', 'image pictures/coco/2.jpg', 'video videos/v_abc.mp4'],
      'system:Be short.|user:Compare|user:<0>|user:and|user:<1>|user:with|user:<2>|user:.|assistant:No.',
    ],
    ['llava/7#2', [], 'user:Hello|assistant:Hi'],
    ['llava/unmarked#8', ['image pictures/coco/0.jpg'], 'user:<0>|user:What?|assistant:That.'],
    ['llava/url#9', ['image https://example.org/a%20b.jpg'], 'user:<0>|assistant:This.'],
  ];
  assert.deepEqual(
    samples.map((sample) => [sample.id, placesOf(sample), lineOf(sample.parts)]),
    [
      ['chatgpt/0', ['video videos/v_abc.mp4'], 'user:<0>|user:What colour?|assistant:Yellow.'],
      ...llava,
      ...llava,
    ],
  );
  assert.equal(samples[1]!.text, 'What is it?\nA colour.\nWhich?\nBlue, "\\u00fc" {[.');
  const codes = [
    'MEDIA_MARKS',
    'MEDIA_NOT_FOUND',
    'PATH_OUTSIDE',
    'PATH_OUTSIDE',
    'PATH_OUTSIDE',
    ...['RECORD_INCOMPLETE', 'RECORD_INCOMPLETE', 'RECORD_INCOMPLETE'],
  ];
  assert.deepEqual(faults, [
    // The lines on which the records begin.
    ...[56, 66, 76, 86, 96, 134, 143, 164].map(
      (line, i) => `llava.json:${line}#${[3, 4, 5, 6, 7, 10, 11, 12][i]!} ${codes[i]!}`,
    ),
    ...[4, 5, 6, 7, 8, 11, 12, 13].map((line, i) => `llava.jsonl:${line} ${codes[i]!}`),
  ]);
});

test('image-text pairs: lists of captions, URLs, metadata.jsonl and COCO', async () => {
  const { samples, faults } = await readSource(imageText, join(FIXTURES, 'image-text'));
  assert.deepEqual(
    samples.map((sample) => [sample.id, ...placesOf(sample), sample.text]),
    [
      ['blip/0', 'image images/0.png', 'zero'],
      ['blip/1.0', 'image images/1.png', 'one'],
      ['blip/1.1', 'image images/1.png', 'eins'],
      ['blip/2', 'image https://example.org/pic?size=2', 'from afar'],
      ['captions_coco/40', 'image images/1.png', 'six'],
      ['captions_coco/41', 'image images/0.png', 'five'],
      ['captions_coco/43', 'image images/0.png', 'five again'],
      ['metadata/0', 'image images/2.png', 'two'],
    ],
  );
  assert.deepEqual(faults, [
    'blip.json:5#3 RECORD_INCOMPLETE',
    'captions_coco.json:11#6 RECORD_INCOMPLETE',
    'metadata.jsonl:2 MEDIA_NOT_FOUND',
  ]);
});

test('documents keep the order of text and pictures', async () => {
  const { samples, faults } = await readSource(documents, join(FIXTURES, 'documents'));
  assert.deepEqual(
    samples.map((sample) => [sample.id, placesOf(sample), lineOf(sample.parts), sample.text]),
    [
      [
        'mmc4/0',
        ['image images/mmc4-0.png', 'image https://example.org/1.png'],
        '<0>|A.|B.|<1>|C.',
        'A.\nB.\nC.',
      ],
      [
        'obelics/0',
        ['image images/b.jpg', 'image https://example.org/x/c.jpg'],
        'First.|<0>|Second.|<1>',
        'First.\nSecond.',
      ],
    ],
  );
  assert.deepEqual(faults, [
    'mmc4.jsonl:2 RECORD_INVALID',
    'obelics.jsonl:2 RECORD_INVALID',
    'obelics.jsonl:3 RECORD_INVALID',
  ]);
});

test('records of every other kind are told, wherever they stand', async () => {
  const odd = [
    'null',
    '7',
    '"text"',
    '[]',
    '[{}]',
    '{}',
    '{"__proto__":{"image":"a.jpg"}}',
    '{"image":5,"caption":[1]}',
  ];
  const own = {
    instructions: '{"conversations":{}}',
    'image-text': '{"image":"a.jpg","caption":"fine"}',
    documents: '{"images":[],"texts":[]}',
  };
  for (const source of [instructions, imageText, documents]) {
    const first = own[source.name as keyof typeof own];
    const root = await makeFolder({
      'a.jpg': '',
      'x.jsonl': [first, ...odd].join('\n'),
      'y.json': '{"a":1}',
      'world.json': '{"files":[]}', // a demo world's own
    });
    const { samples, faults } = await readSource(source, root);
    assert.equal(samples.length, source === imageText ? 1 : 0);
    assert.equal(faults.length, odd.length + 2 - samples.length);
    assert.equal(faults.at(-1), 'y.json RECORDS_OTHER_FORM');
  }
  assert.equal(Object.hasOwn(Object.prototype, 'image'), false);
});

test('a source without anything of its form says so', async () => {
  const root = await makeFolder({ 'notes.md': '' });
  for (const source of [webvid, instructions, imageText, documents]) {
    await assert.rejects(readSource(source, root), { code: 'DATA_EMPTY' });
  }
});
