import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import { openInitializer } from '../initializer.ts';
import { NO_LABEL, nextTokenLogProbabilities, nextTokenSums } from '../losses/next-token.ts';
import { leavesOf, mapTree, type TensorTree } from '../tree.ts';
import { cm3leonDecoder, initCm3leon, type Cm3leonParams } from './cm3leon.ts';
import { guidedModel, limitedModel } from './steered-model.ts';

const SIZES = { vocabulary: 11, positions: 9, width: 4, mlpWidth: 6, numLayers: 2, numHeads: 2 };
const IDS = [
  [3, 7, 1, 10, 4, 4, 2],
  [3, 2, 9, 9, 5, 0, 0],
];
const PRESENT: number[][] = IDS.map((row) => row.map((id) => (id === 0 ? 0 : 1)));

type Matrix = number[][];

/** Weights that all have a say, in place of those that a run begins with. */
function loudParams(): Cm3leonParams {
  let seed = 0;
  return mapTree<TensorTree>(initCm3leon(SIZES, openInitializer(1)), ({ shape }) =>
    tf.randomNormal([...shape], 0, 0.7, 'float32', ++seed),
  ) as Cm3leonParams;
}

const dot = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((sum, value, i) => sum + value * b[i]!, 0);
const times = (x: readonly number[], matrix: Matrix): number[] =>
  matrix[0]!.map((_, column) =>
    dot(
      x,
      matrix.map((row) => row[column]!),
    ),
  );
const plus = (a: readonly number[], b: readonly number[]): number[] => a.map((v, i) => v + b[i]!);
function normed(x: readonly number[]): number[] {
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length;
  return x.map((v) => (v - mean) / Math.sqrt(variance + 1e-5));
}
function softmax(scores: readonly number[]): number[] {
  const top = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - top));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

/** Logits of a row in plain numbers: arXiv:2309.02591, sec. 2.3, written out. */
function scalarLogits(params: Cm3leonParams, ids: readonly number[]): Matrix {
  const read = (tensor: tf.Tensor): unknown => tensor.arraySync();
  const [embedding, position] = [read(params.embedding), read(params.position)] as Matrix[];
  const { attention, mlpIn, mlpOut } = params.blocks['*'];
  const layers = (tensor: tf.Tensor): Matrix[] => read(tensor) as Matrix[];
  let states = ids.map((id, at) => plus(embedding![id]!, position![at]!));
  for (let layer = 0; layer < SIZES.numLayers; layer++) {
    const own = (tensor: tf.Tensor): Matrix => layers(tensor)[layer]!;
    const heads = (tensor: tf.Tensor): number[][][] =>
      states.map((state) => {
        const all = times(normed(state), own(tensor));
        return [all.slice(0, 2), all.slice(2)];
      });
    const [query, key, value] = [attention.query, attention.key, attention.value].map(
      ({ kernel }) => heads(kernel),
    ) as [number[][][], number[][][], number[][][]];
    const attended = states.map((state, at) => {
      const mixed = [0, 1].flatMap((head) => {
        const scores = key
          .slice(0, at + 1)
          .map((other) => dot(query[at]![head]!, other[head]!) / Math.sqrt(2));
        const weights = softmax(scores);
        return [0, 1].map((d) => dot(weights, value.slice(0, at + 1).map((v) => v[head]![d]!))); // prettier-ignore
      });
      return plus(state, times(mixed, own(attention.output.kernel)));
    });
    states = attended.map((state) => {
      const hidden = times(normed(state), own(mlpIn.kernel)).map((v) => Math.max(0, v));
      return plus(state, times(hidden, own(mlpOut.kernel)));
    });
  }
  return states.map((state) => embedding!.map((row) => dot(normed(state), row)));
}

describe('CM3leon', () => {
  const decoder = cm3leonDecoder(SIZES);
  let params: Cm3leonParams;
  before(async () => {
    await openCpuEngine();
    params = loudParams();
  });
  const inputs = (ids: readonly (readonly number[])[], present: number[][]) => ({
    ids: tf.tensor2d(ids.map((row) => [...row]), undefined, 'int32'), // prettier-ignore
    present: tf.tensor2d(present),
  });
  const logitsOf = (ids: readonly (readonly number[])[], present = PRESENT): number[][][] =>
    decoder
      .logits(params, decoder.states(params, inputs(ids, present)))
      .arraySync() as number[][][];

  it('its logits and its loss are those of the formulas in plain numbers', () => {
    const found = logitsOf(IDS);
    let [loss, right] = [0, 0];
    const labels = IDS.map((row) => row.map((id) => (id === 0 || id === 9 ? NO_LABEL : id)));
    for (const [row, ids] of IDS.entries()) {
      const wanted = scalarLogits(params, ids.filter((id) => id !== 0)); // prettier-ignore
      for (const [at, own] of wanted.entries()) {
        for (const [id, value] of own.entries())
          assert.ok(Math.abs(found[row]![at]![id]! - value) < 1e-4, `${row} ${at} ${id}`);
        const next = labels[row]![at + 1] ?? NO_LABEL;
        if (next === NO_LABEL) continue;
        loss -= Math.log(softmax(own)[next]!);
        right += own.indexOf(Math.max(...own)) === next ? 1 : 0;
      }
    }
    const sums = nextTokenSums(tf.tensor3d(found), tf.tensor2d(labels, undefined, 'int32'));
    assert.ok(Math.abs(sums.lossSum.dataSync()[0]! / loss - 1) < 1e-5);
    assert.equal(sums.correct.dataSync()[0], right);
    const told = nextTokenLogProbabilities(
      tf.tensor3d(found),
      tf.tensor2d(IDS, undefined, 'int32'),
    ).arraySync() as number[][];
    const [third] = [Math.log(softmax(found[0]![2]!)[10]!)];
    assert.ok(Math.abs(told[0]![2]! - third) < 1e-5);
  });

  it('what comes later changes no bit of the logits before it', () => {
    const [first] = IDS;
    const present = [first!.map(() => 1)];
    const whole = logitsOf([first!], present)[0]!;
    for (let at = 1; at < first!.length; at++) {
      const changed = logitsOf([first!.with(at, 8)], present)[0]!;
      assert.deepEqual(changed.slice(0, at), whole.slice(0, at));
      assert.notDeepEqual(changed[at], whole[at]);
    }
  });

  it('weights begin as published: normals of 0.006 up to three deviations, positions near zero, outputs zero', () => {
    const sizes = { vocabulary: 300, positions: 200, width: 48, mlpWidth: 96, numLayers: 3, numHeads: 2 }; // prettier-ignore
    const drawn = new Map(leavesOf(initCm3leon(sizes, openInitializer(2))));
    for (const [path, tensor] of drawn) {
      assert.doesNotMatch(path, /bias|scale|offset|norm/i);
      const values = [...tensor.dataSync()];
      const std = /output|mlpOut/.test(path) ? 0 : path === 'position' ? 0.0002 : 0.006;
      const found = Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);
      // Cut at three deviations a normal has 0.9866 of its own.
      assert.ok(Math.abs(found - 0.9866 * std) <= 0.02 * std, `${path} ${found}`);
      const most = Math.max(...values.map(Math.abs));
      assert.ok(std === 0 ? most === 0 : most > 2.5 * std && most <= 3 * std, `${path} ${most}`);
    }
  });

  it('guided, it says unasked + scale (asked - unasked), token by token', () => {
    const scale = 2.5;
    const [asked, unasked] = [[3, 7, 1, 10], [0, 3, 9, 10]]; // prettier-ignore
    const continued = [4, 6];
    const guided = guidedModel(decoder, scale);
    const plain = (row: readonly number[]): number[] => {
      const ids = row.filter((id) => id !== 0);
      return logitsOf([ids], [ids.map(() => 1)])[0]!.at(-1)!;
    };
    const prompt = {
      ...inputs([asked], [[1, 1, 1, 1]]),
      unaskedIds: tf.tensor2d([unasked], undefined, 'int32'),
      unaskedPresent: tf.tensor2d([[0, 1, 1, 1]]),
    };
    let next = guided.prefill(params, prompt, 3);
    for (let step = 0; step <= continued.length; step++) {
      const behind = continued.slice(0, step);
      const [c, u] = [plain([...asked, ...behind]), plain([...unasked, ...behind])];
      const found = next.logits.arraySync() as number[][];
      assert.equal(found.length, 1);
      for (const [id, value] of found[0]!.entries())
        assert.ok(Math.abs(value - (u[id]! + scale * (c[id]! - u[id]!))) < 1e-4, `${step} ${id}`);
      // Rows of beams are copied with both of their halves.
      const twice = guided.select(next.state, tf.tensor1d([0, 0], 'int32'));
      const both = guided.step(params, twice, tf.tensor1d([5, 4], 'int32')).logits;
      if (step === continued.length) break;
      next = guided.step(params, next.state, tf.tensor1d([continued[step]!], 'int32'));
      if (step === 0) {
        const [, second] = both.arraySync() as number[][];
        for (const [id, value] of (next.logits.arraySync() as number[][])[0]!.entries())
          assert.ok(Math.abs(value - second![id]!) < 1e-5);
      }
    }
  });

  it('limited, it says nothing else, and what is allowed as before', () => {
    const isAllowed = Array.from({ length: SIZES.vocabulary }, (_, id) => id > 6);
    const prompt = inputs([IDS[0]!], [PRESENT[0]!]);
    const [limited, own] = [limitedModel(decoder, isAllowed), decoder].map((model) => {
      const first = model.prefill(params, prompt, 1);
      const second = model.step(params, first.state, tf.tensor1d([4], 'int32'));
      return [first, second].map(({ logits }) => (logits.arraySync() as number[][])[0]!);
    }) as [Matrix, Matrix];
    for (const [step, logits] of limited.entries())
      for (const [id, value] of logits.entries())
        if (isAllowed[id]) assert.equal(value, own[step]![id]);
        else assert.ok(value < -1e8);
  });
});
