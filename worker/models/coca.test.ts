/** The model against open_clip; `test/fixtures/coca_reference.py` made the figures. Who sees what, to the bit. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openTestEngines, type TestEngines } from '../backend/test/engines.ts';
import { openInitializer } from '../initializer.ts';
import { formulaTensor, formulaWeights } from '../test/formula-weights.ts';
import { leavesOf, withLeaves } from '../tree.ts';
import {
  cocaContext,
  cocaImages,
  cocaLogits,
  cocaStates,
  cocaTexts,
  initCoca,
  type CocaParams,
  type CocaSizes,
} from './coca.ts';
import { cocaWriter, type CocaWriterState } from './coca-writer.ts';

interface Values {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}
const OUTPUTS = ['images', 'texts', 'context', 'logits'] as const;
const REFERENCE = JSON.parse(
  readFileSync(new URL('../test/fixtures/coca-reference.json', import.meta.url), 'utf8'),
) as {
  readonly sizes: Record<
    | 'width'
    | 'visionHeads'
    | 'visionMlp'
    | 'visionLayers'
    | 'heads'
    | 'mlp'
    | 'textLayers'
    | 'decoderLayers'
    | 'vocabulary'
    | 'length'
    | 'captionQueries'
    | 'embedding'
    | 'pictures'
    | 'imageSize'
    | 'patchSize',
    number
  >;
  readonly ids: number[][];
  readonly outputs: Record<(typeof OUTPUTS)[number], Values>;
  /** Of each weight: the product with a formula of its name, and the length. */
  readonly gradients: Record<string, [projection: number, length: number]>;
};

const PAD = 0;
const { width, pictures: perClip, imageSize, patchSize, ...sizes } = REFERENCE.sizes;
const kind = { width, activation: 'gelu', epsilon: 1e-5 } as const;
const half = (numLayers: number) => ({
  ...{ ...kind, numLayers, numHeads: sizes.heads, mlpWidth: sizes.mlp },
});
const SIZES: CocaSizes = {
  vision: {
    ...{ ...kind, imageSize, patchSize, channels: 3 },
    ...{ numLayers: sizes.visionLayers, numHeads: sizes.visionHeads, mlpWidth: sizes.visionMlp },
  },
  text: half(sizes.textLayers),
  decoder: half(sizes.decoderLayers),
  ...{ vocabulary: sizes.vocabulary, length: sizes.length },
  ...{ captionQueries: sizes.captionQueries, embedding: sizes.embedding },
};

type Input = {
  readonly params: CocaParams;
  readonly pixels: tf.Tensor;
  readonly ids: tf.Tensor;
};

function makeInput(ids = REFERENCE.ids, pixels = 'pixels'): Input {
  const shape = [ids.length * perClip, imageSize, imageSize, 3];
  return {
    params: formulaWeights(initCoca(SIZES, openInitializer(1))),
    pixels: formulaTensor(pixels, shape, { scale: 1 }),
    ids: tf.tensor2d(ids, undefined, 'int32'),
  };
}

function presentOf(ids: tf.Tensor): tf.Tensor {
  return tf.cast(tf.greater(ids, PAD), 'float32');
}

/** All that the reference has; nothing at padding. */
function outputsOf({ params, pixels, ids }: Input): Record<(typeof OUTPUTS)[number], tf.Tensor> {
  const states = cocaStates(params, pixels, perClip, SIZES);
  const present = presentOf(ids);
  const { words, texts } = cocaTexts(params, { ids, present }, SIZES);
  const context = cocaContext(params, states, SIZES);
  const logits = cocaLogits(params, words, context, SIZES);
  return {
    ...{ images: cocaImages(params, states, SIZES), texts, context },
    logits: tf.mul(logits, tf.expandDims(present, -1)),
  };
}

function differentiate(input: Input): { grads: tf.Tensor[] } {
  const loss = (...given: tf.Tensor[]): tf.Scalar => {
    const made = outputsOf({ ...input, params: withLeaves(input.params, given) });
    return tf.addN(
      OUTPUTS.map((name) => {
        const factor = formulaTensor(name, made[name].shape, { scale: 1 });
        return tf.sum<tf.Scalar>(tf.mul(made[name], factor));
      }),
    );
  };
  const leaves = leavesOf(input.params).filter(([path]) => path !== 'logitScale');
  const all = (given: readonly tf.Tensor[]): tf.Tensor[] => [...given, input.params.logitScale];
  return {
    grads: tf.grads((...given: tf.Tensor[]) => loss(...all(given)))(
      leaves.map(([, tensor]) => tensor),
    ),
  };
}

function assertClose(actual: ArrayLike<number>, expected: readonly number[], what: string): void {
  assert.equal(actual.length, expected.length, what);
  const worst = Math.max(...expected.map((value, i) => Math.abs(actual[i]! - value)));
  assert.ok(worst < 1e-4, `${what}: off by ${worst} (float32, 1e-4)`);
}

describe('CoCa', () => {
  let engines: TestEngines;
  before(async () => {
    engines = await openTestEngines();
  });
  after(() => {
    engines.close();
  });

  for (const name of ['cpu', 'xla'] as const) {
    it(`makes what open_clip makes, on the ${name} engine`, async () => {
      const made = await engines[name].compile(outputsOf, { name: 'coca' })(makeInput());
      for (const output of OUTPUTS) {
        const { shape, data } = REFERENCE.outputs[output];
        assert.deepEqual(made[output].shape, shape, output);
        assertClose(await made[output].data(), data, output);
      }
    });

    it(`has open_clip's gradients, of every weight, on the ${name} engine`, async () => {
      const input = makeInput();
      const leaves = leavesOf(input.params);
      assert.equal(leaves.at(-1)![0], 'logitScale', 'the one that no output depends on');
      assert.deepEqual(
        leaves.map(([path]) => path).sort(),
        [...Object.keys(REFERENCE.gradients), 'logitScale'].sort(),
      );
      const { grads } = await engines[name].compile(differentiate, { name: 'coca' })(input);
      for (const [k, [path, { shape }]] of leaves.slice(0, -1).entries()) {
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

    it(`writes token by token what it says of the whole text, on the ${name} engine`, async () => {
      const { params, pixels } = makeInput();
      const [first] = REFERENCE.ids as [number[]];
      const writer = cocaWriter(SIZES, first[0]!);
      const prefill = engines[name].compile(
        (own: CocaParams, shown: tf.Tensor) => {
          const context = cocaContext(own, cocaStates(own, shown, perClip, SIZES), SIZES);
          return writer.prefill(own, { context }, first.length);
        },
        { name: 'prefill' },
      );
      const step = engines[name].compile(
        (own: CocaParams, state: CocaWriterState, tokens: tf.Tensor) =>
          writer.step(own, state, tokens),
        { name: 'step' },
      );
      let { logits, state } = await prefill(params, pixels);
      for (const [at, id] of first.entries()) {
        if (at > 0) {
          const tokens = tf.tensor1d(
            REFERENCE.ids.map((row) => row[at]!),
            'int32',
          );
          ({ logits, state } = await step(params, state, tokens));
        }
        const wanted = REFERENCE.outputs.logits.data.slice(
          at * sizes.vocabulary,
          (at + 1) * sizes.vocabulary,
        );
        const own = (await logits.data()).slice(0, sizes.vocabulary);
        assertClose(own, wanted, `word ${at} behind ${id}`);
      }
    });
  }

  it('says the same of a text whatever is shown, to the bit, and writes something else', async () => {
    const program = engines.xla.compile(outputsOf, { name: 'coca' });
    const [one, other] = [await program(makeInput()), await program(makeInput(undefined, 'else'))];
    assert.deepEqual(await one.texts.data(), await other.texts.data());
    assert.notDeepEqual(await one.images.data(), await other.images.data());
    assert.notDeepEqual(await one.logits.data(), await other.logits.data());
  });

  it('says the same of a picture whatever is read, to the bit', async () => {
    const program = engines.xla.compile(outputsOf, { name: 'coca' });
    const [one, other] = [await program(makeInput()), await program(makeInput(swapped(1, 6)))];
    for (const output of ['images', 'context'] as const)
      assert.deepEqual(await one[output].data(), await other[output].data());
    assert.notDeepEqual(await one.texts.data(), await other.texts.data());
  });

  it('sees no later word, to the bit, and with the token at the end all words', async () => {
    const program = engines.xla.compile(outputsOf, { name: 'coca' });
    for (const at of [1, 3, 5]) {
      const [one, other] = [await program(makeInput()), await program(makeInput(swapped(at, 6)))];
      const rows = await Promise.all(
        [one, other].map(async ({ logits }) => (await logits.data()).slice(0, 6 * 11)),
      );
      const until = at * sizes.vocabulary;
      assert.deepEqual(rows[0]!.slice(0, until), rows[1]!.slice(0, until), `before ${at}`);
      assert.notDeepEqual(rows[0]!.slice(until), rows[1]!.slice(until), `from ${at}`);
      const ends = await Promise.all(
        [one, other].map(async ({ texts }) => (await texts.data()).slice(0, sizes.embedding)),
      );
      assert.notDeepEqual(ends[0], ends[1]);
    }
  });

  it('has no padding in the token at the end, to the bit', async () => {
    const program = engines.xla.compile(
      (params: CocaParams, ids: tf.Tensor, present: tf.Tensor) =>
        cocaTexts(params, { ids, present }, SIZES).texts,
      { name: 'texts' },
    );
    const { params, ids } = makeInput();
    const present = presentOf(ids);
    // Other ids where padding is, which is still said to be padding.
    const filled = tf.add(ids, tf.cast(tf.mul(tf.sub(1, present), 7), 'int32'));
    const [one, other] = [
      await program(params, ids, present),
      await program(params, filled, present),
    ];
    assert.deepEqual(await one.data(), await other.data());
    const seen = await program(params, filled, tf.onesLike(present));
    assert.notDeepEqual(await one.data(), await seen.data());
  });

  it('a caption has no loss by the token at the end', async () => {
    // Through the token at the end alone goes what depends on it: captions do not.
    const { params, pixels, ids } = makeInput();
    const captions = (token: tf.Tensor): tf.Scalar =>
      tf.sum(
        outputsOf({
          params: { ...params, text: { ...params.text, classToken: token } },
          ...{ pixels, ids },
        }).logits,
      );
    const program = engines.xla.compile((token: tf.Tensor) => captions(token), {
      name: 'captions',
    });
    const [one, other] = [
      await program(params.text.classToken),
      await program(tf.add(params.text.classToken, 1)),
    ];
    assert.deepEqual(await one.data(), await other.data());
  });
});

/** The ids with another one in the first text. */
function swapped(at: number, id: number): number[][] {
  return REFERENCE.ids.map((row, i) => (i === 0 ? row.with(at, id) : row));
}
