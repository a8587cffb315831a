import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  estimateJaccard,
  hammingDistance,
  HashIndex,
  jaccard,
  minHash,
  perceptualHash,
  shinglesOf,
  TextIndex,
} from './near-duplicates.ts';

/** What datasketch and imagehash say; test/make-fixtures.py made it. */
const fixtures = JSON.parse(
  readFileSync(new URL('test/fixtures/curation.json', import.meta.url), 'utf8'),
) as {
  texts: string[];
  near: [number, number][];
  lshFound: [number, number][];
  pairs: { a: number; b: number; jaccard: number; datasketch: number }[];
  pictures: { of: number; name: string; grey: string; hash: string }[];
};

test('Jaccard indices are those of Python, and their estimates as near to them as datasketch gets', () => {
  const { texts, pairs } = fixtures;
  let [ours, theirs] = [0, 0];
  for (const { a, b, jaccard: exact, datasketch } of pairs) {
    const [left, right] = [shinglesOf(texts[a]!), shinglesOf(texts[b]!)];
    assert.ok(Math.abs(jaccard(left, right) - exact) < 1e-12);
    const estimate = estimateJaccard(minHash(left), minHash(right));
    // Of 128 draws, 4.5 deviations; nothing is that far off by chance.
    const bound = 4.5 * Math.sqrt((exact * (1 - exact)) / 128) + 1e-12;
    assert.ok(Math.abs(estimate - exact) <= bound, `${estimate} for ${exact}`);
    ours += (estimate - exact) ** 2;
    theirs += (datasketch - exact) ** 2;
  }
  assert.ok(
    ours < 1.5 * theirs,
    `mean squares ${ours / pairs.length} and ${theirs / pairs.length}`,
  );
});

test('near texts are found: all that share 0.8, none that share less', () => {
  const { texts, near, lshFound } = fixtures;
  const index = new TextIndex(0.8);
  const found = texts.flatMap((text, at) => {
    const numbers = index.near(text);
    index.add(text);
    return numbers.map((n) => [n, at]);
  });
  assert.ok(near.length >= 30 && lshFound.length >= 30, 'the corpus has near copies');
  found.sort(([a, b], [c, d]) => a! - c! || b! - d!);
  assert.deepEqual(found, near);
});

test('perceptual hashes are those of imagehash', () => {
  for (const { grey, hash } of fixtures.pictures) {
    const ours = perceptualHash(Buffer.from(grey, 'base64'));
    assert.equal(ours!.toString(16).padStart(16, '0'), hash);
  }
});

test('the hash of one picture differs little when it is blurred or brighter, and much from another', () => {
  const hashOf = (of: number, name: string): bigint =>
    BigInt(`0x${fixtures.pictures.find((p) => p.of === of && p.name === name)!.hash}`);
  for (const of of [0, 1, 2, 3]) {
    for (const name of ['blurred', 'brighter']) {
      assert.ok(hammingDistance(hashOf(of, 'as it is'), hashOf(of, name)) <= 8);
    }
    assert.ok(hammingDistance(hashOf(of, 'as it is'), hashOf((of + 1) % 4, 'as it is')) > 16);
  }
});

test('a picture of one colour has no hash', () => {
  assert.equal(perceptualHash(new Uint8Array(1024).fill(77)), undefined);
});

test('the index of hashes finds the same as a look at every pair', () => {
  // Bits drawn by a fixed recurrence, each hash a few bits away from the one before.
  let state = 12345n;
  const next = (): bigint =>
    (state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n));
  const hashes: bigint[] = [next()];
  while (hashes.length < 300) {
    const flips = Number(next() >> 60n);
    let hash = flips > 12 ? next() : hashes.at(-1)!;
    for (let i = 0; i < flips; i++) hash ^= 1n << (next() >> 58n);
    hashes.push(hash);
  }
  const index = new HashIndex(8);
  let numFound = 0;
  for (const [at, hash] of hashes.entries()) {
    const all = hashes
      .slice(0, at)
      .flatMap((other, n) => (hammingDistance(hash, other) <= 8 ? [n] : []));
    assert.deepEqual(index.near(hash), all);
    numFound += all.length;
    index.add(hash);
  }
  assert.ok(numFound > 50);
});
