import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runPeer } from '../pretrained/parity/peer.ts';
import { drawToken, filterLogits } from './sampling.ts';

interface FilterCase {
  readonly temperature: number;
  readonly topK: number | null;
  readonly topP: number;
  readonly logits: number[];
  /** Null for what was cut. */
  readonly kept: (number | null)[];
}

test("temperature, top-k and top-p keep what transformers' warpers keep (float32)", async () => {
  const cases = JSON.parse(await runPeer('decoders.py', 'filter')) as FilterCase[];
  for (const { temperature, topK, topP, logits, kept } of cases) {
    const found = filterLogits(Float32Array.from(logits), {
      temperature,
      topP,
      ...(topK === null ? {} : { topK }),
    });
    for (const [id, wanted] of kept.entries()) {
      const label = `temperature ${temperature}, top-k ${topK}, top-p ${topP}: id ${id}`;
      if (wanted === null) assert.equal(found[id], -Infinity, label);
      else assert.ok(Math.abs(found[id]! - wanted) <= 1e-6 * Math.abs(wanted), label);
    }
  }
});

test('draws follow the probabilities, and a key always draws the same', () => {
  const logits = Float32Array.from([0, Math.log(2), Math.log(5), -Infinity]);
  const counts = [0, 0, 0, 0];
  const numDraws = 8000;
  for (let row = 0; row < numDraws; row++) {
    counts[drawToken(logits, { seed: 4, row, step: 2 })]!++;
  }
  for (const [id, share] of [1 / 8, 2 / 8, 5 / 8, 0].entries()) {
    const deviation = Math.sqrt((share * (1 - share)) / numDraws);
    assert.ok(
      Math.abs(counts[id]! / numDraws - share) <= 4 * deviation,
      `id ${id}: ${counts[id]!}`,
    );
  }
  const key = { seed: 9, row: 1, step: 3 };
  assert.equal(drawToken(logits, key), drawToken(logits, key));
});
