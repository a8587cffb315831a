import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  openTokenizer,
  SPECIAL_TOKENS,
  TokenizerError,
  trainTokenizer,
  type TokenizerFile,
} from './tokenizer.ts';

const read = (name: string): unknown =>
  JSON.parse(readFileSync(new URL(`../test/fixtures/${name}`, import.meta.url), 'utf8'));
const fixture = read('tokenizer-ids.json') as {
  sentences: string[];
  ids: number[][];
  decoded: string[];
};
const trained = read('tokenizer.json') as TokenizerFile;

test('ids are those of the Python library', () => {
  const tokenizer = openTokenizer(trained);
  for (const [i, sentence] of fixture.sentences.entries()) {
    assert.deepEqual(tokenizer.encode(sentence), fixture.ids[i], JSON.stringify(sentence));
  }
});

test('training is a function of the texts, not of their order', () => {
  const texts = fixture.sentences.slice(0, 200);
  assert.deepEqual(trainTokenizer(texts, { vocabularySize: 300 }), trained);
  assert.deepEqual(trainTokenizer([...texts].reverse(), { vocabularySize: 300 }), trained);
});

test('each join takes the pair that is most frequent, recounted from scratch', () => {
  const texts = ['low lower lowest', 'new newer newest newest', 'wide wider widest', 'slow slower'];
  const words = texts
    .join(' ')
    .split(' ')
    .map((word) => Array.from(word, (c, i) => (i === 0 ? c : `##${c}`)));
  const expected: string[] = [];
  while (expected.length < 12) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        const pair = `${word[i]!} ${word[i + 1]!}`;
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    }
    const [best] = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1))[0]!;
    const [left, right] = best.split(' ') as [string, string];
    expected.push(left + right.slice(2));
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === left && word[i + 1] === right) word.splice(i, 2, left + right.slice(2));
      }
    }
  }
  const all = Object.keys(trainTokenizer(texts, { vocabularySize: 1000 }).model.vocab);
  const numCharacters = new Set(
    texts
      .join(' ')
      .split(' ')
      .flatMap((w) => Array.from(w, (c, i) => (i ? '##' : '') + c)),
  ).size;
  const joined = all.slice(SPECIAL_TOKENS.length + numCharacters);
  assert.deepEqual(joined.slice(0, 12), [...new Set(expected)].slice(0, 12));
});

test('four captions are enough', () => {
  const captions = ['a red ball rolls', 'a blue cube spins', 'the ball stops', 'the cube falls'];
  const tokenizer = openTokenizer(trainTokenizer(captions, { vocabularySize: 1000 }));
  for (const caption of captions) {
    const ids = tokenizer.encode(caption);
    assert.equal(ids.length, caption.split(' ').length);
    assert.equal(tokenizer.decode(ids), caption);
    assert.equal(tokenizer.decode([]), '');
  }
  assert.ok(tokenizer.vocabularySize < 100);
  assert.deepEqual(tokenizer.encode('zzz'), [tokenizer.special.unk]);
});

test('no text at all gives the special tokens alone', () => {
  const tokenizer = openTokenizer(trainTokenizer([], { vocabularySize: 100 }));
  assert.equal(tokenizer.vocabularySize, SPECIAL_TOKENS.length);
  assert.equal(tokenizer.firstWordId, SPECIAL_TOKENS.length);
  assert.deepEqual(tokenizer.encode(''), []);
  assert.equal(tokenizer.pieceOf(tokenizer.special.join), '[>]');
});

test('the vocabulary is no larger than asked for', () => {
  for (const vocabularySize of [10, 50, 200]) {
    const { vocab } = trainTokenizer(fixture.sentences, { vocabularySize }).model;
    assert.equal(Object.keys(vocab).length, vocabularySize);
    assert.deepEqual(
      Object.values(vocab).sort((a, b) => a - b),
      Array.from({ length: vocabularySize }, (_, i) => i),
    );
  }
});

test('a file without the special tokens is refused', () => {
  const file = { ...trained, model: { ...trained.model, vocab: { '[PAD]': 0, a: 1 } } };
  assert.throws(
    () => openTokenizer(file),
    (error: TokenizerError) => error.code === 'TOKENIZER_INVALID' && error.message.includes('[>]'),
  );
});
