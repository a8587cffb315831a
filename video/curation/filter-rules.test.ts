import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MediaFile, Sample } from '../index/sample.ts';
import { brokenRule, parseRule, RULE_SETS } from './filter-rules.ts';

const common = { path: 'a', sizeBytes: 1, sha256: '', hasAudio: false, keyFrameSeconds: [] };
const files: MediaFile[] = [
  {
    ...common,
    kind: 'video',
    durationSeconds: 9,
    framesPerSecond: 25,
    width: 640,
    height: 360,
    codec: 'h264',
  },
  {
    ...common,
    kind: 'image',
    durationSeconds: 0,
    framesPerSecond: 0,
    width: 300,
    height: 600,
    codec: 'png',
  },
];
const sample = (text: string, media = [{ file: 0, startSeconds: 2, endSeconds: 5 }]): Sample => ({
  ...{ id: 'a', media, text, cues: [], decodeMegapixels: 0 },
});

test('each field holds on one side of its bound and breaks on the other', () => {
  const table: [held: string, broken: string][] = [
    ['duration >= 3', 'duration > 3'],
    ['duration in 3..4', 'duration in 3.5..9'],
    ['fps = 25', 'fps < 25'],
    ['width <= 640', 'width <= 639'],
    ['height >= 360', 'height >= 361'],
    ['short-side = 360', 'short-side = 640'],
    ['aspect <= 1.78', 'aspect <= 1.77'],
    ['words in 4..4', 'words > 4'],
    ['characters = 17', 'characters < 17'],
    ['stop-words = 0.5', 'stop-words > 0.5'],
    ['images = 0', 'images >= 1'],
    ['media = 1', 'media = 0'],
  ];
  const words = sample('the dog in garden');
  for (const [held, broken] of table) {
    assert.equal(brokenRule(words, files, [parseRule(held)]), undefined, held);
    assert.equal(brokenRule(words, files, [parseRule(broken)])?.text, broken);
  }
});

test('a rule about media holds for each, and a picture has no length', () => {
  const both = sample('', [
    { file: 0, startSeconds: 2, endSeconds: 5 },
    { file: 1, startSeconds: 0, endSeconds: 0 },
  ]);
  assert.equal(brokenRule(both, files, [parseRule('duration >= 3')]), undefined);
  assert.equal(brokenRule(both, files, [parseRule('short-side >= 360')])?.field, 'short-side');
  assert.equal(brokenRule(sample('', []), files, [parseRule('width >= 9')]), undefined);
});

test('the rules that come with the product can be read, and others are explained', () => {
  for (const rule of Object.values(RULE_SETS).flat()) assert.equal(parseRule(rule).text, rule);
  for (const text of ['words', 'wordz > 3', 'words >= many', 'words in 3-4', '']) {
    assert.throws(() => parseRule(text), { code: 'USAGE', message: /is no rule; write a field/ });
  }
});

test('paragraphs of the web are kept as OBELICS keeps them, on both sides of each threshold', () => {
  const rules = RULE_SETS['paragraph']!.map(parseRule);
  const reason = (text: string): string | undefined => brokenRule(sample(text), files, rules)?.text;
  const prose =
    'The old man walks over the bridge with his dog, and then he sits down by the river to rest.';
  assert.equal(reason(prose), undefined);
  assert.equal(reason('of the river'), 'words in 4..1000');
  assert.equal(reason(`${prose} ${prose}`), 'character-repetition <= 0.1');
  assert.equal(
    reason('the a of 11 in 22 to 33 it 44 is 55 the 66 of 77 on 88'),
    'special-characters <= 0.3',
  );
  assert.equal(
    reason('cheap watches online store discount luxury brands shipping'),
    'stop-words >= 0.3',
  );
  assert.equal(
    reason('the man and the dog go to the river where they sit in the sun'),
    'punctuation >= 0.001',
  );
});
