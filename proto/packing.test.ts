import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { packedIds, packSequences } from './packing.ts';
import { openRng } from './random.ts';

/** The fewest rows, by trying everything. */
function fewestRows(lengths: readonly number[], capacity: number): number {
  const sorted = [...lengths].sort((a, b) => b - a);
  let best = sorted.length;
  const place = (next: number, used: number[]): void => {
    if (used.length >= best) return;
    if (next === sorted.length) {
      best = used.length;
      return;
    }
    const tried = new Set<number>();
    for (let row = 0; row <= used.length; row++) {
      const before = used[row] ?? 0;
      if (before + sorted[next]! > capacity || tried.has(before)) continue;
      tried.add(before);
      place(next + 1, Object.assign([...used], { [row]: before + sorted[next]! }));
    }
  };
  place(0, []);
  return best;
}

/** First-fit decreasing by looking at every row. */
function plainRows(lengths: readonly number[], capacity: number): number {
  const used: number[] = [];
  for (const length of [...lengths].sort((a, b) => b - a)) {
    const row = used.findIndex((tokens) => tokens + length <= capacity);
    if (row < 0) used.push(length);
    else used[row]! += length;
  }
  return used.length;
}

describe('packed sequences', () => {
  const rng = openRng(3, 'lengths');

  it('lie in rows once each, do not overlap, and need no more rows than the bound says', () => {
    for (let trial = 0; trial < 300; trial++) {
      const capacity = 8 + rng.integer(40);
      const lengths = Array.from({ length: 1 + rng.integer(9) }, () => 1 + rng.integer(capacity));
      const { rows, efficiency } = packSequences(lengths, capacity);
      const sequences = rows.flatMap((row) => row.map(({ sequence }) => sequence));
      assert.deepEqual(
        sequences.sort((a, b) => a - b),
        [...lengths.keys()],
      );
      for (const row of rows) {
        let end = 0;
        for (const { sequence, offset, length } of row) {
          assert.equal(length, lengths[sequence]);
          assert.equal(offset, end);
          end += length;
        }
        assert.ok(end <= capacity);
      }
      const fewest = fewestRows(lengths, capacity);
      assert.ok(rows.length <= (11 * fewest + 6) / 9, `${rows.length} rows, ${fewest} are enough`);
      assert.equal(rows.length, plainRows(lengths, capacity));
      const tokens = lengths.reduce((a, b) => a + b);
      assert.equal(efficiency, tokens / (rows.length * capacity));
    }
  });

  it('fill rows well where many are short', () => {
    const lengths = Array.from({ length: 2000 }, () =>
      Math.min(1024, Math.ceil(Math.exp(4.5 + rng.normal()))),
    );
    const { rows, efficiency } = packSequences(lengths, 1024);
    assert.equal(rows.length, plainRows(lengths, 1024));
    assert.ok(efficiency > 0.97, `${efficiency}`);
  });

  it('come with ids that tell them apart', () => {
    const { rows } = packSequences([3, 2, 5, 0, 1], 6);
    assert.deepEqual(rows, [
      [
        { sequence: 0, offset: 0, length: 3 },
        { sequence: 1, offset: 3, length: 2 },
      ],
      [
        { sequence: 2, offset: 0, length: 5 },
        { sequence: 4, offset: 5, length: 1 },
      ],
    ]);
    const { segmentIds, positionIds } = packedIds(rows, 6, 3);
    assert.deepEqual([...segmentIds], [1, 1, 1, 2, 2, 0, 1, 1, 1, 1, 1, 2, 0, 0, 0, 0, 0, 0]);
    assert.deepEqual([...positionIds], [0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0]);
  });

  it('give each sequence what it gets in a row of its own', () => {
    // Single-head causal attention over scalars, written out: token values are their own queries, keys and values.
    const attend = (values: readonly number[], mayAttend: (i: number, j: number) => boolean) =>
      values.map((query, i) => {
        const seen = [...values.keys()].filter((j) => mayAttend(i, j));
        const weights = seen.map((j) => Math.exp(query * values[j]!));
        const total = weights.reduce((a, b) => a + b, 0);
        return seen.reduce((sum, j, k) => sum + (weights[k]! / total) * values[j]!, 0);
      });
    const sequences = [4, 2, 7, 3, 1].map((length) =>
      Array.from({ length }, () => rng.uniform() - 0.5),
    );
    const { rows } = packSequences(
      sequences.map(({ length }) => length),
      9,
    );
    const { segmentIds, positionIds } = packedIds(rows, 9);
    for (const [r, row] of rows.entries()) {
      const values = row.flatMap(({ sequence }) => sequences[sequence]!);
      const at = (i: number): [number, number] => [segmentIds[r * 9 + i]!, positionIds[r * 9 + i]!];
      const packed = attend(values, (i, j) => {
        const [[segment, position], [other, before]] = [at(i), at(j)];
        return segment === other && segment !== 0 && before <= position;
      });
      for (const { sequence, offset, length } of row) {
        const alone = attend(sequences[sequence]!, (i, j) => j <= i);
        assert.deepEqual(packed.slice(offset, offset + length), alone);
      }
    }
  });

  it('refuse what fits no row, by name', () => {
    assert.throws(() => packSequences([3, 9], 8), {
      code: 'SEQUENCE_TOO_LONG',
      message: /^sequence 1 has 9 tokens/,
    });
    assert.deepEqual(packSequences([], 8), { rows: [], efficiency: 0 });
  });
});
