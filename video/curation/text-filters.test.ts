import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  characterRepetition,
  numCharacters,
  punctuation,
  specialCharacters,
  stopWords,
  wordRepetition,
  wordsOf,
} from './text-filters.ts';

const { repetition } = JSON.parse(
  readFileSync(new URL('test/fixtures/curation.json', import.meta.url), 'utf8'),
) as { repetition: { text: string; characters: number; words: number }[] };

test('shares of repeated runs of characters and words are those that Python counts', () => {
  for (const { text, characters, words } of repetition) {
    assert.ok(Math.abs(characterRepetition(text) - characters) < 1e-12, text);
    assert.ok(Math.abs(wordRepetition(text) - words) < 1e-12, text);
  }
});

test('figures are those counted by hand', () => {
  assert.deepEqual(wordsOf(' "Two" DOGS, 2 of them -- l\'été! '), [
    'two',
    'dogs',
    'of',
    'them',
    "l'été",
  ]);
  assert.equal(numCharacters('naïve 🚲'), 7);
  // Five runs of two, `ab` three times and `ba` twice: of two distinct ones, floor(sqrt(2)) = 1 is taken.
  assert.equal(characterRepetition('ababab', 2), 3 / 5);
  assert.equal(characterRepetition('abc', 10), 0);
  // `a b` and `b c` of a b c a b: four runs of two words, `a b` twice.
  assert.equal(wordRepetition('a b c a b', 2), 2 / 4);
  assert.equal(specialCharacters('ab 1!'), 3 / 5);
  assert.equal(specialCharacters(''), 0);
  assert.equal(stopWords('The dog is in the garden'), 4 / 6);
  assert.equal(punctuation('too short, to tell.'), 1);
  assert.equal(punctuation('one two three four five six seven eight nine, ten eleven.'), 2 / 13);
});
