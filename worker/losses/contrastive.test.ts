import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openRng } from '../../proto/random.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../backend/engine.ts';
import { l2Normalize } from '../layers/normalize.ts';
import { infoNceSums, sigmoidSums, type Pairs } from './contrastive.ts';

const SEED = 5;
const [ROWS, WIDTH, SCALE, BIAS] = [7, 5, 4, -2];
/** Rows 1 and 4 have one caption. */
const IDS = [0, 1, 2, 3, 1, 5, 6];

describe('contrastive losses', () => {
  let engine: Engine;
  before(async () => {
    console.log(`seed ${SEED}`);
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    engine.close();
  });

  const vectors = (name: string): number[][] => {
    const rng = openRng(SEED, name);
    return Array.from({ length: ROWS }, () => {
      const own = Array.from({ length: WIDTH }, () => rng.normal());
      const length = Math.hypot(...own);
      return own.map((value) => value / length);
    });
  };
  const dot = (a: readonly number[], b: readonly number[]): number =>
    a.reduce((sum, value, i) => sum + value * b[i]!, 0);
  const pairs = (groupIds: tf.Tensor = tf.tensor1d(IDS)): Pairs => ({
    left: tf.tensor2d(vectors('left')),
    right: tf.tensor2d(vectors('right')),
    groupIds,
  });
  /** The same groups by two numbers, neither of which tells them apart. */
  const twoNumbers = (): tf.Tensor2D => tf.tensor2d(IDS.map((id) => [id % 3, Math.floor(id / 3)]));
  const valueOf = async (tensor: tf.Tensor): Promise<number> => (await tensor.data())[0]!;

  test('InfoNCE is its formula in scalars, with several positives, whole and in chunks', async () => {
    const [left, right] = [vectors('left'), vectors('right')];
    const oneWay = (from: number[][], to: number[][]): number =>
      from.reduce((sum, own, i) => {
        const logits = to.map((other) => SCALE * dot(own, other));
        const total = logits.reduce((a, b) => a + Math.exp(b), 0);
        const positives = IDS.flatMap((id, j) => (id === IDS[i] ? [j] : []));
        const log = positives.map((j) => logits[j]! - Math.log(total));
        return sum - log.reduce((a, b) => a + b) / positives.length;
      }, 0);
    const wanted = (oneWay(left, right) + oneWay(right, left)) / 2;
    const right_ = left.filter((own, i) => {
      const scores = right.map((other) => dot(own, other));
      return IDS[scores.indexOf(Math.max(...scores))] === IDS[i];
    }).length;
    for (const chunk of [undefined, 3, 1]) {
      for (const ids of [undefined, twoNumbers()]) {
        const { lossSum, correct } = infoNceSums(pairs(ids), tf.scalar(SCALE), chunk);
        assert.ok(Math.abs((await valueOf(lossSum)) - wanted) < 1e-4, `chunk ${chunk}`);
        assert.equal(await valueOf(correct), right_);
      }
    }
  });

  test('the sigmoid loss is its formula in scalars, whole and in chunks', async () => {
    const [left, right] = [vectors('left'), vectors('right')];
    let wanted = 0;
    for (const [i, own] of left.entries()) {
      for (const [j, other] of right.entries()) {
        const sign = IDS[i] === IDS[j] ? 1 : -1;
        wanted += Math.log(1 + Math.exp(-sign * (SCALE * dot(own, other) + BIAS)));
      }
    }
    for (const chunk of [undefined, 3]) {
      const { lossSum } = sigmoidSums(pairs(), tf.scalar(SCALE), tf.scalar(BIAS), chunk);
      assert.ok(Math.abs((await valueOf(lossSum)) - wanted) < 1e-4, `chunk ${chunk}`);
    }
  });

  test('rows of one side alone have no part: loss, answers and gradients are those of the others by themselves', async () => {
    const kept = [0, 1, 4, 6];
    const of = <T>(all: readonly T[]): T[] => kept.map((row) => all[row]!);
    const paired = tf.tensor1d(IDS.map((_, row) => (kept.includes(row) ? 1 : 0)));
    const alone = infoNceSums(
      {
        left: tf.tensor2d(of(vectors('left'))),
        right: tf.tensor2d(of(vectors('right'))),
        groupIds: tf.tensor1d(of(IDS)),
      },
      tf.scalar(SCALE),
    );
    // In a row without the other side anything may stand.
    const strange = vectors('left').map((own, row) => (kept.includes(row) ? own : [9, 9, 9, 9, 9]));
    const lossOf = (left: tf.Tensor, right: tf.Tensor, chunk?: number): tf.Scalar =>
      infoNceSums({ left, right, groupIds: tf.tensor1d(IDS), paired }, tf.scalar(SCALE), chunk)
        .lossSum as tf.Scalar;
    for (const chunk of [undefined, 3]) {
      for (const left of [vectors('left'), strange]) {
        const given = { ...pairs(), left: tf.tensor2d(left), paired };
        const { lossSum, correct } = infoNceSums(given, tf.scalar(SCALE), chunk);
        assert.ok(Math.abs((await valueOf(lossSum)) - (await valueOf(alone.lossSum))) < 1e-4);
        assert.equal(await valueOf(correct), await valueOf(alone.correct));
      }
      const gradients = engine.compile(
        (left: tf.Tensor, right: tf.Tensor) =>
          tf.grads((...sides) => lossOf(sides[0]!, sides[1]!, chunk))([left, right]),
        { name: 'partial gradients' },
      );
      for (const tensor of await gradients(pairs().left, pairs().right)) {
        const rows = (await tensor.array()) as number[][];
        for (const [row, own] of rows.entries())
          assert.equal(
            own.every((value) => value === 0),
            !kept.includes(row),
            `row ${row}`,
          );
      }
    }
  });

  test('gradients in chunks are those of the whole, compiled too', async () => {
    const gradients = (chunk?: number) => {
      const loss = (left: tf.Tensor, right: tf.Tensor, scale: tf.Tensor): tf.Scalar =>
        infoNceSums(
          { left: l2Normalize(left), right: l2Normalize(right), groupIds: twoNumbers() },
          scale,
          chunk,
        ).lossSum as tf.Scalar;
      return engine.compile(
        (left: tf.Tensor, right: tf.Tensor, scale: tf.Tensor) =>
          tf.grads(loss)([left, right, scale]),
        { name: 'gradients' },
      );
    };
    const { left, right } = pairs();
    const [whole, parts] = await Promise.all([
      gradients()(left, right, tf.scalar(SCALE)),
      gradients(2)(left, right, tf.scalar(SCALE)),
    ]);
    for (const [k, tensor] of whole.entries()) {
      const [a, b] = [await tensor.data(), await parts[k]!.data()];
      for (const [i, value] of a.entries()) assert.ok(Math.abs(value - b[i]!) < 1e-5);
    }
  });
});
