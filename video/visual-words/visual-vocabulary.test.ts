import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { openRng } from '../../proto/random.ts';
import { principalComponents, project } from './principal-components.ts';
import {
  assignVisualWords,
  FEATURE_WIDTH,
  fitVisualVocabulary,
  frameFeatures,
  packVisualVocabulary,
  unpackVisualVocabulary,
} from './visual-vocabulary.ts';

/** Points around well separated centres: [clusters * each, width]. */
function blobs(
  clusters: number,
  each: number,
  width: number,
): { features: Float32Array; labels: number[] } {
  const rng = openRng(5, 'blobs');
  const centers = Array.from({ length: clusters }, () =>
    Array.from({ length: width }, () => 20 * rng.normal()),
  );
  const labels = Array.from({ length: clusters * each }, (_, i) => i % clusters);
  return {
    features: Float32Array.from(
      labels.flatMap((c) => centers[c]!.map((x) => x + 0.1 * rng.normal())),
    ),
    labels,
  };
}

test('principal components are those of numpy', () => {
  const fixture = JSON.parse(
    readFileSync(new URL('../test/fixtures/pca.json', import.meta.url), 'utf8'),
  ) as {
    rows: number[][];
    mean: number[];
    components: number[][];
  };
  const rows = Float32Array.from(fixture.rows.flat());
  const { mean, components } = principalComponents(rows, 10, 6);
  const close = (actual: Float32Array, expected: number[]): void => {
    assert.equal(actual.length, expected.length);
    for (const [i, value] of expected.entries())
      assert.ok(Math.abs(actual[i]! - value) < 2e-6, `${i}: ${actual[i]!} ${value}`);
  };
  close(mean, fixture.mean);
  close(components, fixture.components.flat());
});

test('projections are uncorrelated and keep distances when no direction is left out', () => {
  const { features } = blobs(3, 20, 6);
  const found = principalComponents(features, 6, 6);
  const points = project(features, found);
  for (const [a, b] of [
    [0, 1],
    [7, 33],
  ] as const) {
    const distance = (rows: Float32Array | Float64Array): number =>
      Math.sqrt(
        Array.from({ length: 6 }, (_, d) => (rows[a * 6 + d]! - rows[b * 6 + d]!) ** 2).reduce(
          (x, y) => x + y,
        ),
      );
    assert.ok(Math.abs(distance(features) - distance(points)) < 1e-3);
  }
  let cross = 0;
  for (let row = 0; row < 60; row++) cross += points[row * 6]! * points[row * 6 + 1]!;
  assert.ok(Math.abs(cross / 60) < 1e-2);
});

test('clusters that lie apart become one word each', () => {
  const { features, labels } = blobs(8, 25, 12);
  const vocabulary = fitVisualVocabulary(features, {
    branching: 8,
    depth: 1,
    seed: 1,
    featureWidth: 12,
  });
  assert.equal(vocabulary.numWords, 8);
  const words = assignVisualWords(vocabulary, features);
  const wordOf = new Map(labels.map((label, i) => [label, words[i]]));
  assert.equal(new Set(wordOf.values()).size, 8);
  assert.ok(labels.every((label, i) => words[i] === wordOf.get(label)));
});

test('assignment follows the nearest centre at each level, and centres are the means of their points', () => {
  const rng = openRng(2, 'uniform');
  const features = Float32Array.from({ length: 300 * 4 }, () => rng.uniform());
  const vocabulary = fitVisualVocabulary(features, {
    branching: 3,
    depth: 2,
    seed: 4,
    featureWidth: 4,
    pcaDims: 4,
  });
  const { numWords, centroids, nodes, numComponents, childCounts } = vocabulary;
  assert.equal(numWords, 9);
  assert.deepEqual(childCounts, [3, 3, 3, 3, ...new Array<number>(9).fill(0)]);
  const words = assignVisualWords(vocabulary, features);
  const points = project(features, vocabulary);
  const distance = (row: number, rows: Float32Array, at: number): number =>
    Array.from(
      { length: numComponents },
      (_, d) => (points[row * numComponents + d]! - rows[at * numComponents + d]!) ** 2,
    ).reduce((a, b) => a + b);
  const argmin = (values: number[]): number => values.indexOf(Math.min(...values));
  const sums = new Float64Array(numWords * numComponents);
  const sizes = new Float64Array(numWords);
  for (const [row, word] of words.entries()) {
    const top = argmin([0, 1, 2].map((node) => distance(row, nodes, node)));
    const leaf = argmin([0, 1, 2].map((child) => distance(row, nodes, 3 + 3 * top + child)));
    assert.equal(word, 3 * top + leaf);
    sizes[word]!++;
    for (let d = 0; d < numComponents; d++)
      sums[word * numComponents + d]! += points[row * numComponents + d]!;
  }
  assert.ok(sizes.every((size) => size > 0));
  for (const [i, sum] of sums.entries()) {
    assert.ok(Math.abs(sum / sizes[Math.floor(i / numComponents)]! - centroids[i]!) < 1e-5);
  }
});

test('fitting again gives the same bits, another seed other words', () => {
  const rng = openRng(2, 'uniform');
  const features = Float32Array.from({ length: 200 * 4 }, () => rng.uniform());
  const fit = (seed: number) =>
    fitVisualVocabulary(features, { branching: 4, depth: 2, seed, featureWidth: 4 });
  assert.deepEqual(fit(1), fit(1));
  assert.notDeepEqual(fit(1).centroids, fit(2).centroids);
});

test('fewer windows than words give fewer words, and windows that are all alike one', () => {
  const few = Float32Array.from({ length: 5 * 3 }, (_, i) => i * i);
  const vocabulary = fitVisualVocabulary(few, { branching: 8, depth: 2, seed: 1, featureWidth: 3 });
  assert.equal(vocabulary.numWords, 5);
  assert.deepEqual([...assignVisualWords(vocabulary, few)].sort(), [0, 1, 2, 3, 4]);
  const alike = fitVisualVocabulary(new Float32Array(12).fill(1), { seed: 1, featureWidth: 3 });
  assert.equal(alike.numWords, 1);
  assert.deepEqual([...assignVisualWords(alike, new Float32Array(6))], [0, 0]);
  assert.throws(() => fitVisualVocabulary(new Float32Array(0), { seed: 1 }), {
    code: 'VOCABULARY_EMPTY',
  });
});

test('a vocabulary that was packed and unpacked assigns the same words', () => {
  const { features } = blobs(6, 10, 5);
  const vocabulary = fitVisualVocabulary(features, {
    branching: 3,
    depth: 2,
    seed: 1,
    featureWidth: 5,
  });
  const packed = packVisualVocabulary(vocabulary);
  assert.deepEqual(unpackVisualVocabulary(packed), vocabulary);
  const { mean, components } = packed.tensors;
  const tensors = { mean: mean!, components: components! };
  assert.throws(() => unpackVisualVocabulary({ ...packed, tensors }), {
    code: 'VOCABULARY_INVALID',
  });
});

test('features tell the scene, what moves over it, where to, and what shape it has', () => {
  const size = 16;
  // Three windows of two frames over a blue ground; `colour` gives what is painted on it, or nothing.
  const paint = (
    colour: (x: number, y: number, window: number, frame: number) => number[] | undefined,
  ): Float32Array[] => {
    const frames = new Uint8Array(6 * size * size * 3);
    for (let i = 0; i < frames.length / 3; i++) {
      const frame = Math.floor(i / size / size);
      const place = [i % size, Math.floor(i / size) % size, frame >> 1, frame % 2] as const;
      frames.set(colour(...place) ?? [0, 0, 255], i * 3);
    }
    const features = frameFeatures(frames, [3, 2, size, size, 3]);
    assert.equal(features.length, 3 * FEATURE_WIDTH);
    return [0, 1, 2].map((window) =>
      features.subarray(window * FEATURE_WIDTH, (window + 1) * FEATURE_WIDTH),
    );
  };
  // A red square that stands in another block in each window.
  const [first, second] = paint((x, y, window) =>
    Math.floor(x / 4) === window && y < 4 ? [255, 0, 0] : undefined,
  );
  // Scene: the colour of 2x2 blocks; colour: twice that of what moves; then its share of 4x4 blocks.
  assert.deepEqual([...first!.subarray(0, 6)], [0, 0, 1, 0, 0, 1]);
  assert.deepEqual([...first!.subarray(12, 15)], [2, 0, 0]);
  assert.deepEqual([...first!.subarray(15, 19)], [1, 0, 0, 0]);
  assert.deepEqual([...second!.subarray(15, 19)], [0, 1, 0, 0]);
  assert.ok(first!.subarray(31, 47).every((change) => change === 0));
  // A white square that goes from the first block to the second within the first window.
  const [moving, empty] = paint((x, y, window, frame) =>
    window === 0 && Math.floor(x / 4) === frame && y < 4 ? [255, 255, 255] : undefined,
  );
  assert.deepEqual([...moving!.subarray(31, 34)], [-0.5, 0.5, 0]);
  // Nothing moves: grey, nowhere, no edges.
  assert.deepEqual([...empty!.subarray(12, 15)], [1, 1, 1]);
  assert.ok(empty!.subarray(15).every((value) => value === 0));
  // Stripes over the ground: all edges run the same way; stripes of the ground itself are no foreground.
  for (const orientation of [0, 2]) {
    const stripes = (x: number, y: number): boolean => (orientation === 0 ? x : y) % 4 < 2;
    const [edges] = paint((x, y, window) =>
      window === 0 && stripes(x, y) ? [255, 255, 255] : undefined,
    );
    const expected = [0, 1, 2, 3].map((i) => (i === orientation ? 1 : 0));
    assert.deepEqual([...edges!.subarray(47, 51)], expected);
    const [still] = paint((x, y) => (stripes(x, y) ? [255, 255, 255] : undefined));
    assert.ok(still!.subarray(15).every((value) => value === 0));
  }
});
