/** The model against PyTorch; `test/fixtures/ofa_reference.py` made the figures. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openTestEngines, type TestEngines } from '../backend/test/engines.ts';
import { openInitializer, shapesOnly } from '../initializer.ts';
import { wordDistanceRow } from '../layers/position-attention.ts';
import { formulaTensor, formulaWeights } from '../test/formula-weights.ts';
import { leavesOf, withLeaves } from '../tree.ts';
import {
  initEncoderDecoder,
  readAll,
  writerOf,
  writtenLogits,
  type EncoderDecoderParams,
  type EncoderDecoderSizes,
  type ReaderInput,
} from './encoder-decoder.ts';

interface Values {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}
const REFERENCE = JSON.parse(
  readFileSync(new URL('../test/fixtures/ofa-reference.json', import.meta.url), 'utf8'),
) as {
  readonly sizes: Record<
    | 'width'
    | 'numHeads'
    | 'mlpWidth'
    | 'numLayers'
    | 'vocabulary'
    | 'wordPositions'
    | 'gridSize'
    | 'gridPositions'
    | 'numFrames'
    | 'patchSize',
    number
  >;
  readonly ids: number[][];
  readonly present: number[][];
  readonly answers: number[][];
  readonly states: Values;
  readonly logits: Values;
  /** Of each weight: the product with a formula of its name, and the length. */
  readonly gradients: Record<string, [projection: number, length: number]>;
  readonly wordRows: Record<string, number>;
};

const { width, numHeads, mlpWidth, numLayers, gridSize, patchSize, ...counts } = REFERENCE.sizes;
const blocks = { width, numHeads, mlpWidth, numLayers, activation: 'gelu', epsilon: 1e-5 } as const;
const SIZES: EncoderDecoderSizes = {
  picture: { width, patchSize, gridSize, stem: undefined },
  ...{ encoder: blocks, decoder: blocks },
  ...counts,
};

type Input = ReaderInput & {
  readonly params: EncoderDecoderParams;
  readonly answers: tf.Tensor;
  readonly weights: tf.Tensor;
};

function makeInput(): Input {
  const side = gridSize * patchSize;
  const numPictures = REFERENCE.ids.length * counts.numFrames;
  return {
    params: formulaWeights(initEncoderDecoder(SIZES, openInitializer(1))),
    pictures: formulaTensor('pixels', [numPictures, side, side, 3], { scale: 1 }),
    ids: tf.tensor2d(REFERENCE.ids, undefined, 'int32'),
    present: tf.tensor2d(REFERENCE.present),
    answers: tf.tensor2d(REFERENCE.answers, undefined, 'int32'),
    weights: formulaTensor('logits', REFERENCE.logits.shape, { scale: 1 }),
  };
}

function both({ params, answers, ...input }: Input): { states: tf.Tensor; logits: tf.Tensor } {
  const read = readAll(params, input, SIZES);
  return {
    states: tf.mul(read.states, tf.expandDims(read.present, 2)),
    logits: writtenLogits(params, answers, read, SIZES),
  };
}

function differentiate(input: Input): { grads: tf.Tensor[] } {
  const loss = (...given: tf.Tensor[]): tf.Scalar => {
    const { logits } = both({ ...input, params: withLeaves(input.params, given) });
    return tf.sum(tf.mul(logits, input.weights));
  };
  return { grads: tf.grads(loss)(leavesOf(input.params).map(([, tensor]) => tensor)) };
}

function assertClose(actual: ArrayLike<number>, expected: readonly number[], what: string): void {
  assert.equal(actual.length, expected.length, what);
  const worst = Math.max(...expected.map((value, i) => Math.abs(actual[i]! - value)));
  assert.ok(worst < 1e-4, `${what}: off by ${worst} (float32, 1e-4)`);
}

describe("OFA's encoder and decoder", () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  for (const name of ['cpu', 'xla'] as const) {
    it(`make what PyTorch makes, on the ${name} engine`, async () => {
      const program = engines[name].compile(both, { name: 'ofa' });
      const { states, logits } = await program(makeInput());
      assert.deepEqual(logits.shape, REFERENCE.logits.shape);
      assertClose(await states.data(), REFERENCE.states.data, 'states');
      assertClose(await logits.data(), REFERENCE.logits.data, 'logits');
    });

    it(`have PyTorch's gradients, of every weight, on the ${name} engine`, async () => {
      const input = makeInput();
      const leaves = leavesOf(input.params);
      assert.deepEqual(
        leaves.map(([path]) => path).sort(),
        Object.keys(REFERENCE.gradients).sort(),
      );
      const { grads } = await engines[name].compile(differentiate, { name: 'ofa' })(input);
      for (const [k, [path, { shape }]] of leaves.entries()) {
        const [gradient, probe] = await Promise.all([
          grads[k]!.data(),
          formulaTensor(`probe ${path}`, shape, { scale: 1 }).data(),
        ]);
        const [projection, length] = REFERENCE.gradients[path]!;
        let [along, squares] = [0, 0];
        for (const [i, value] of gradient.entries()) {
          along += value * probe[i]!;
          squares += value ** 2;
        }
        const worst = Math.max(Math.abs(along - projection), Math.abs(Math.sqrt(squares) - length));
        assert.ok(worst < 1e-4 * Math.max(1, length), `${path}: off by ${worst} of ${length}`);
      }
    });

    it(`write token by token what they say of the whole text, on the ${name} engine`, async () => {
      const { params, answers, pictures, ids, present } = makeInput();
      const input = { pictures, ids, present };
      const writer = writerOf(SIZES, REFERENCE.answers[0]![0]!);
      const numSteps = answers.shape[1]!;
      const prefill = engines[name].compile(
        (given: { readonly params: EncoderDecoderParams; readonly input: ReaderInput }) =>
          writer.prefill(given.params, given.input, numSteps),
        { name: 'prefill' },
      );
      const step = engines[name].compile(
        (
          given: Pick<Input, 'params'> & { state: Parameters<typeof writer.step>[1] } & {
            readonly tokens: tf.Tensor;
          },
        ) => writer.step(given.params, given.state, given.tokens),
        { name: 'step' },
      );
      let { logits, state } = await prefill({ params, input });
      const [numRows, , numWords] = REFERENCE.logits.shape as [number, number, number];
      for (let at = 0; at < numSteps; at++) {
        const expected = Array.from({ length: numRows }, (_, row) =>
          REFERENCE.logits.data.slice(
            (row * numSteps + at) * numWords,
            (row * numSteps + at + 1) * numWords,
          ),
        );
        assertClose(await logits.data(), expected.flat(), `word ${at}`);
        if (at + 1 === numSteps) break;
        const tokens = tf.tensor1d(
          REFERENCE.answers.map((row) => row[at + 1]!),
          'int32',
        );
        ({ logits, state } = await step({ params, state, tokens }));
      }
    });
  }

  it('tell distances of words apart as the released code does', () => {
    for (const [distance, row] of Object.entries(REFERENCE.wordRows)) {
      assert.equal(wordDistanceRow(Number(distance)), row, distance);
    }
    assert.deepEqual([wordDistanceRow(5000), wordDistanceRow(-5000)], [510, 0]);
  });

  it('begin with no bias by distance, and have tables as large as is said', () => {
    const { reader, writer } = initEncoderDecoder(SIZES, openInitializer(1));
    for (const table of [
      reader.blocks['*'].wordDistances,
      reader.blocks['*'].patchDistances,
      writer.blocks['*'].wordDistances,
    ]) {
      assert.equal(tf.max(tf.abs(table)).dataSync()[0], 0);
    }
    const larger = { ...SIZES, wordPositions: 1026, gridPositions: 42 };
    const shapes = new Map(
      leavesOf(initEncoderDecoder(larger, shapesOnly())).map(([path, { shape }]) => [path, shape]),
    );
    assert.deepEqual(shapes.get('reader/patchPosition'), [42 * 42, width]);
    assert.deepEqual(shapes.get('writer/wordPosition'), [1026, width]);
    assert.deepEqual(shapes.get('reader/blocks/*/patchDistances'), [numLayers, 83 * 83, numHeads]);
  });
});
