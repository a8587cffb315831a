import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';

import { openRng } from '../../proto/random.ts';
import { chooseAttended } from './attended-tokens.ts';
import { maskRng } from './mask-rng.ts';
import { chooseSpans } from './masked-frames.ts';
import {
  applyMask,
  applyMaskToGroups,
  choosePositions,
  idsBetween,
  maskingBudget,
  wordPositions,
} from './masked-tokens.ts';
import { randomizeText } from './text-randomization.ts';
import { chooseTokenSpans, runsOf } from './token-spans.ts';
import { chooseWords, continuesWord, wordsOf } from './whole-words.ts';

const SEED = 20261124;
const FIRST_WORD = 6;
const MASK = 4;
const WORDS = { maskId: MASK, randomId: idsBetween(FIRST_WORD, 50), maskAll: false };

/** [CLS], words, [SEP], padding: some 25 tokens. */
function sentence(sample: number): Int32Array {
  const rng = openRng(SEED, 'sentence', sample);
  const words = Array.from({ length: 5 + rng.integer(20) }, () => FIRST_WORD + rng.integer(44));
  return Int32Array.from([2, ...words, 3, 0, 0]);
}

/** A share of n draws lies within five standard deviations of p. */
function assertShare(t: TestContext, what: string, hits: number, n: number, p: number): void {
  const deviation = Math.sqrt((p * (1 - p)) / n);
  t.diagnostic(`seed ${SEED}: ${what} ${(hits / n).toFixed(4)}, wanted ${p.toFixed(4)} of ${n}`);
  assert.ok(Math.abs(hits / n - p) < 5 * deviation + 1e-12, what);
}

test('of the chosen tokens 80 % are masked, 10 % replaced by words, 10 % kept, and no special one is chosen', (t) => {
  const counts = { masked: 0, replaced: 0, chosen: 0 };
  for (let sample = 0; sample < 4000; sample++) {
    const ids = sentence(sample);
    const rng = maskRng({ seed: SEED, epoch: 0, sample }, 'mlm');
    const candidates = wordPositions(ids, FIRST_WORD);
    const positions = choosePositions(candidates, { ratio: 0.15, limit: 99 }, rng);
    assert.equal(positions.length, Math.max(1, Math.round(0.15 * candidates.length)));
    const { ids: masked } = applyMask(ids, positions, rng, WORDS);
    for (const [i, id] of masked.entries()) {
      if (!positions.includes(i)) assert.equal(id, ids[i]);
      else {
        assert.ok(ids[i]! >= FIRST_WORD && (id === MASK || (id >= FIRST_WORD && id < 50)));
        counts.chosen++;
        if (id === MASK) counts.masked++;
        else if (id !== ids[i]) counts.replaced++;
      }
    }
  }
  assertShare(t, 'masked', counts.masked, counts.chosen, 0.8);
  // One random word of 44 is the word itself.
  assertShare(t, 'replaced', counts.replaced, counts.chosen, (0.1 * 43) / 44);
});

test('random ids stay in the range of their modality, and reach all of it', () => {
  const rng = openRng(SEED, 'range');
  const draw = idsBetween(10, 14);
  const seen = new Set(Array.from({ length: 200 }, () => draw(rng)));
  assert.deepEqual([...seen].sort(), [10, 11, 12, 13]);
});

test('pieces of a word are masked together or not at all, and never too many', (t) => {
  const pieces = ['[CLS]', 'un', '##believ', '##able', 'dog', 'run', '##s', '[SEP]', '##x', 'far'];
  const candidates = [1, 2, 3, 4, 5, 6, 8, 9];
  const words = wordsOf(candidates, (i) => continuesWord(pieces[i]!));
  assert.deepEqual(words, [[1, 2, 3], [4], [5, 6], [8], [9]]);
  const counts = new Map<string, number>();
  const n = 3000;
  for (let sample = 0; sample < n; sample++) {
    const rng = maskRng({ seed: SEED, epoch: 0, sample }, 'whole-word');
    const budget = 1 + (sample % 8);
    const chosen = chooseWords(words, budget, rng);
    assert.ok(chosen.length <= budget);
    for (const word of words) {
      const numIn = word.filter((position) => chosen.includes(position)).length;
      assert.ok(numIn === 0 || numIn === word.length);
    }
    if (budget === 1) counts.set(chosen.join(), (counts.get(chosen.join()) ?? 0) + 1);
    if (budget === 8) assert.deepEqual(chosen, candidates);
  }
  // With room for one token, each of the three words of one piece equally often.
  for (const word of ['4', '8', '9'])
    assertShare(t, `word ${word}`, counts.get(word)!, n / 8, 1 / 3);
});

test('spans fill their budget exactly, start at words and do not cross special tokens', () => {
  for (let sample = 0; sample < 500; sample++) {
    const rng = maskRng({ seed: SEED, epoch: 0, sample }, 'span');
    // Two sentences with a special token between them; every third token goes on with a word.
    const candidates = [
      ...Array.from({ length: 30 }, (_, i) => i + 1),
      ...Array.from({ length: 20 }, (_, i) => i + 32),
    ];
    const words = wordsOf(candidates, (i) => i % 3 === 2);
    const budget = 1 + (sample % 60);
    const chosen = chooseTokenSpans(words, { budget }, rng);
    assert.equal(chosen.length, Math.min(budget, 50));
    assert.equal(new Set(chosen).size, chosen.length);
    assert.ok(chosen.every((position) => candidates.includes(position)));
    assert.deepEqual(
      chosen,
      chosen.toSorted((a, b) => a - b),
    );
    // Only the budget's end may cut a word.
    const cut = words.filter((word) => {
      const numIn = word.filter((position) => chosen.includes(position)).length;
      return numIn !== 0 && numIn !== word.length;
    });
    assert.ok(cut.length <= 1, `${cut.length} words are cut`);
  }
});

test('lengths of spans are geometric with p = 0.2 up to 10, as in SpanBERT: 3.8 on average', (t) => {
  // A single span in a text so long that it is not cut: the budget ends it nowhere, the text does.
  const words = Array.from({ length: 10_000 }, (_, i) => [i]);
  const n = 400;
  const lengths: number[] = [];
  for (let sample = 0; sample < n / 20; sample++) {
    const rng = maskRng({ seed: SEED, epoch: 1, sample }, 'span');
    // Some 80 spans in 10000 words: few of them touch.
    lengths.push(...runsOf(chooseTokenSpans(words, { budget: 300 }, rng)).map((run) => run.length));
  }
  const mass = Array.from({ length: 10 }, (_, i) => 0.2 * 0.8 ** i);
  const total = mass.reduce((a, b) => a + b, 0);
  const mean = mass.reduce((sum, m, i) => sum + (m / total) * (i + 1), 0);
  assert.ok(Math.abs(mean - 3.8) < 0.05); // what the paper states
  const average = lengths.reduce((a, b) => a + b, 0) / lengths.length;
  t.diagnostic(
    `seed ${SEED}: average length ${average.toFixed(3)} of ${lengths.length}, wanted ${mean.toFixed(3)}`,
  );
  assert.ok(Math.abs(average - mean) < 5 * (2.7 / Math.sqrt(lengths.length)) + 0.05);
  // The last span of each draw is cut, and two may touch: an allowance of 5 %.
  const ones = lengths.filter((length) => length === 1).length / lengths.length;
  assert.ok(Math.abs(ones - mass[0]! / total) < 0.05, `${ones} have length 1`);
});

test('a span is masked, replaced or kept as a whole', (t) => {
  const ids = new Int32Array(3000).fill(7);
  const groups = Array.from({ length: 1000 }, (_, g) => [3 * g, 3 * g + 1, 3 * g + 2]);
  const masked = applyMaskToGroups(ids, groups, openRng(SEED, 'spans'), WORDS);
  let numMasked = 0;
  for (const group of groups) {
    const marks = group.filter((position) => masked.ids[position] === MASK).length;
    assert.ok(marks === 0 || marks === 3);
    if (marks === 3) numMasked++;
  }
  assertShare(t, 'spans masked', numMasked, groups.length, 0.8);
  assert.equal(masked.positions.length, 3000);
  assert.deepEqual(runsOf([1, 2, 5, 7, 8, 9]), [[1, 2], [5], [7, 8, 9]]);
});

test('frames are hidden in runs, as many as asked', () => {
  for (let sample = 0; sample < 300; sample++) {
    const rng = maskRng({ seed: SEED, epoch: 0, sample }, 'frames');
    const count = sample % 14;
    const chosen = chooseSpans(12, { count, span: 3 }, rng);
    assert.equal(chosen.length, Math.min(count, 12));
    assert.ok(chosen.every((frame) => frame >= 0 && frame < 12));
    if (count > 0 && count <= 3) assert.equal(runsOf(chosen).length, 1);
  }
});

test('each word piece is randomized with its probability, and special ones never', (t) => {
  let [changed, candidates] = [0, 0];
  for (let sample = 0; sample < 2000; sample++) {
    const ids = sentence(sample);
    const settings = { probability: 0.3, firstWord: FIRST_WORD };
    const key = { seed: SEED, epoch: 2, sample };
    const masked = randomizeText(ids, { ...settings, maskId: MASK }, maskRng(key, 'text'));
    const dropped = randomizeText(ids, { ...settings, maskId: undefined }, maskRng(key, 'text'));
    assert.deepEqual(
      dropped,
      masked.filter((id) => id !== MASK),
    );
    assert.deepEqual(
      masked.filter((id) => id < MASK),
      ids.filter((id) => id < MASK),
    );
    changed += masked.filter((id) => id === MASK).length;
    candidates += wordPositions(ids, FIRST_WORD).length;
  }
  assertShare(t, 'randomized', changed, candidates, 0.3);
  const ids = sentence(1);
  const settings = { probability: 0, firstWord: FIRST_WORD, maskId: MASK };
  assert.deepEqual(randomizeText(ids, settings, openRng(1, 'text')), ids);
  assert.throws(() => randomizeText(ids, { ...settings, probability: 1.1 }, openRng(1, 'text')), {
    code: 'TOKENS_BAD_SETTING',
  });
});

test('half of the picks fall on the fifth of the tokens that is most attended to', (t) => {
  const length = 200;
  const candidates = Array.from({ length: length - 2 }, (_, i) => i + 1);
  const attention = Float32Array.from({ length }, (_, i) => (i * 37) % length);
  const top = new Set(candidates.toSorted((a, b) => attention[b]! - attention[a]!).slice(0, 40));
  let [numTop, n] = [0, 0];
  for (let sample = 0; sample < 4000; sample++) {
    const rng = maskRng({ seed: SEED, epoch: 0, sample }, 'attended');
    // Of a budget of one the pick is all there is.
    const [pick] = chooseAttended(candidates, attention, { budget: 1 }, rng);
    if (top.has(pick!)) numTop++;
    n++;
    const budget = 1 + (sample % 210);
    if (sample % 20 === 0) {
      const chosen = chooseAttended(candidates, attention, { budget }, rng);
      assert.equal(chosen.length, Math.min(budget, candidates.length));
      assert.ok(chosen.every((position) => position >= 1 && position < length - 1));
    }
  }
  // The other half falls on them by chance, too: 40 of 198.
  assertShare(t, 'most attended', numTop, n, 0.5 + 0.5 * (40 / 198));
});

test('a text without words gives nothing to mask', () => {
  const none = wordPositions(Int32Array.of(2, 3, 0), FIRST_WORD);
  assert.deepEqual(none, []);
  assert.equal(maskingBudget(0, 0.15), 0);
  const rng = openRng(1, 'none');
  assert.deepEqual(
    chooseWords(
      wordsOf(none, () => false),
      3,
      rng,
    ),
    [],
  );
  assert.deepEqual(chooseTokenSpans([], { budget: 3 }, rng), []);
  assert.deepEqual(chooseAttended(none, [], { budget: 3 }, rng), []);
});
