import assert from 'node:assert/strict';
import * as tf from '@tensorflow/tfjs-core';
import type { VideoLanguageSystem } from '../systems/system.ts';
import type { TensorTree } from '../tree.ts';

/**
 * Asserts that a batch of conversations has the loss that it has where `vectors`, as many for each row, stand in the
 * places of its soft tokens as words of the table. The language model's head is one of its own: more rows of the table
 * are no more words to choose from.
 */
export function assertReadAsWords(
  system: VideoLanguageSystem,
  params: Readonly<Record<string, TensorTree>> & {
    readonly language: { readonly [path: string]: TensorTree; readonly embedding: tf.Tensor };
  },
  packed: Readonly<Record<string, tf.Tensor>>,
  vectors: readonly (readonly number[])[],
): void {
  const sums = (own: TensorTree, batch: TensorTree): number =>
    system.sums(own, {}, batch)['next-token']!.lossSum.dataSync()[0]!;
  const [numWords, width] = params.language.embedding.shape as [number, number];
  const rows = tf.tensor2d(vectors.flat(), [vectors.length, width]);
  const embedding = tf.concat([params.language.embedding, rows]);
  const softRows = packed['softRows']!.arraySync() as number[][];
  const perRow = vectors.length / softRows.length;
  for (const row of softRows)
    assert.deepEqual(row.filter((at) => at >= 0), [...Array(perRow).keys()]); // prettier-ignore
  const ids = (packed['ids']!.arraySync() as number[][]).map((row, b) =>
    row.map((id, at) => (softRows[b]![at]! < 0 ? id : numWords + perRow * b + softRows[b]![at]!)),
  );
  const asWords = {
    ...packed,
    ids: tf.tensor2d(ids, undefined, 'int32'),
    softRows: tf.fill(packed['softRows']!.shape, -1, 'int32'),
  };
  const larger = { ...params, language: { ...params.language, embedding } };
  const [one, other] = [sums(params, packed), sums(larger, asWords)];
  assert.ok(Math.abs(one - other) < 1e-4 * one, `${one} and ${other}`);
}
