/** What holds of every way to adapt a language model, on decoders of both kinds. */
import assert from 'node:assert/strict';
import { after, before, describe, it, test } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { openCpuEngine } from '../backend/cpu-engine.ts';
import type { Engine } from '../backend/engine.ts';
import { openInitializer, shapesOnly } from '../initializer.ts';
import { dense } from '../layers/dense.ts';
import { largestDifference } from '../pretrained/parity/reference-tensors.ts';
import { languageOf, type LanguageConfig } from '../systems/language-part.ts';
import { openTuning, tuningFields } from '../systems/tuning-part.ts';
import { formulaTensor, formulaWeights } from '../test/formula-weights.ts';
import { leavesOf, numElements, type TensorTree } from '../tree.ts';
import { withAdapters } from './adapters.ts';
import { withDora } from './dora.ts';
import { merged } from './merged.ts';
import type { PromptedParams } from './prompt.ts';

const VOCABULARY = 19;
const TINY = {
  ...{ width: 8, layers: 2, heads: 2, keyValueHeads: 1, mlpWidth: 12, maxPositions: 20 },
  ...{ epsilon: 1e-5, ropeTheta: 10_000, tied: true },
};
const KINDS: readonly LanguageConfig[] = [
  { kind: 'llama', ...TINY },
  { kind: 'opt', ...TINY, keyValueHeads: 2 },
];
const TARGETS = ['attention/query', 'attention/value', 'attention/output'];
const METHODS = {
  lora: { method: 'lora', rank: 2, alpha: 3, targets: TARGETS },
  dora: { method: 'dora', rank: 2, alpha: 3, targets: TARGETS },
  vera: { method: 'vera', rank: 3, targets: TARGETS },
  adapters: { method: 'adapters', width: 3 },
  prompt: { method: 'prompt', tokens: 3 },
  prefix: { method: 'prefix', tokens: 3 },
} as const;

type Method = keyof typeof METHODS;

/** @param own what is trained: as it begins, or values of its own */
function open(config: LanguageConfig, method: Method, own: 'drawn' | 'trained') {
  const language = languageOf(config, VOCABULARY);
  const base = formulaWeights(language.init(shapesOnly()));
  const parsed = tuningFields.parse(METHODS[method]);
  const places = { path: 'tuning', languagePath: 'language' };
  const { tuning } = openTuning(parsed, language, places);
  const fixed = Object.fromEntries(
    Object.entries(tuning.fixed).map(([name, { data, shape }]) => [
      name,
      tf.tensor(data, [...shape]),
    ]),
  );
  const drawn = tuning.init(openInitializer(1));
  const params = tuning.adapted(base, own === 'drawn' ? drawn : formulaWeights(drawn), fixed);
  return { language, base, tuning, params };
}

const inputs = () => ({
  ids: tf.tensor2d([3, 7, 1, 12, 5, 2, 9, 9, 4, 18], [2, 5], 'int32'),
  present: tf.tensor2d([1, 1, 1, 1, 1, 0, 1, 1, 1, 1], [2, 5]),
});

test('of Llama-2-7B as many parameters are trained as the papers have formulas for', () => {
  const sizes = { width: 4096, layers: 32, heads: 32, keyValueHeads: 32, mlpWidth: 11_008 };
  const language = languageOf({ kind: 'llama', ...TINY, ...sizes, tied: false }, 32_000);
  const places = { path: 'tuning', languagePath: 'language' };
  const trained = (method: object): number =>
    numElements(openTuning(tuningFields.parse(method), language, places).tuning.init(shapesOnly()));
  const all = ['query', 'key', 'value', 'output', 'gate', 'up', 'down'];
  const inAndOut = 4 * (4096 + 4096) + 3 * (4096 + 11_008);
  const out = 5 * 4096 + 2 * 11_008;
  const lowRank = { rank: 16, alpha: 32, targets: all };
  assert.equal(trained({ method: 'lora', ...lowRank }), 32 * 16 * inAndOut);
  assert.equal(trained({ method: 'dora', ...lowRank }), 32 * (16 * inAndOut + out));
  assert.equal(trained({ method: 'vera', rank: 4, targets: all }), 32 * (7 * 4 + out));
  assert.equal(trained({ method: 'adapters', width: 64 }), 32 * 2 * (2 * 4096 * 64 + 64 + 4096));
  assert.equal(trained({ method: 'prompt', tokens: 20 }), 20 * 4096);
  assert.equal(trained({ method: 'prefix', tokens: 20 }), 32 * 2 * 20 * 4096);
});

for (const config of KINDS) {
  void describe(`a language model of the kind ${config.kind}`, () => {
    let engine: Engine;
    before(async () => {
      engine = await openCpuEngine();
    });
    after(() => {
      engine.close();
    });

    const logitsOf = ({ tuning, params }: ReturnType<typeof open>): tf.Tensor =>
      tuning.decoder.logits(params, tuning.decoder.states(params, inputs()));

    for (const method of Object.keys(METHODS) as Method[]) {
      const isNew = method === 'prompt' || method === 'prefix';
      void it(`${method}: a model ${isNew ? 'does not begin' : 'begins, bit by bit,'} as it was`, async () => {
        const opened = open(config, method, 'drawn');
        const { language, base } = opened;
        const before = language.decoder.logits(base, language.decoder.states(base, inputs()));
        const off = await largestDifference(logitsOf(opened), before);
        assert.ok(isNew ? off > 1e-4 : off === 0, `off by ${off}`);
      });

      void it(`${method}: what is trained changes it, token by token as all at once`, async () => {
        const opened = open(config, method, 'trained');
        const whole = logitsOf(opened); // [2, 5, V]
        const { decoder } = opened.tuning;
        const begin = logitsOf(open(config, method, 'drawn'));
        assert.ok((await largestDifference(whole, begin)) > 1e-3);
        const { ids, present } = inputs();
        const first = {
          ids: tf.slice(ids, [0, 0], [-1, 3]),
          present: tf.slice(present, [0, 0], [-1, 3]),
        };
        let { logits, state } = decoder.prefill(opened.params, first, 2);
        for (const at of [2, 3, 4]) {
          const wanted = tf.squeeze(tf.slice(whole, [0, at, 0], [-1, 1, -1]), [1]);
          const off = await largestDifference(logits, wanted);
          assert.ok(off < 1e-5, `token ${at} is off by ${off}`);
          if (at === 4) break;
          const next = tf.squeeze(tf.slice(ids, [0, at + 1], [-1, 1]), [1]);
          ({ logits, state } = decoder.step(opened.params, state, next));
        }
      });
    }

    for (const method of ['lora', 'dora', 'vera'] as const) {
      void it(`${method}: merged, the model has the form and gives what it gave`, async () => {
        const opened = open(config, method, 'trained');
        const params = merged(opened.params);
        const paths = (tree: TensorTree): string[] => leavesOf(tree).map(([path]) => path);
        assert.deepEqual(paths(params), paths(opened.base));
        const { decoder } = opened.language;
        const off = await largestDifference(
          decoder.logits(params, decoder.states(params, inputs())),
          logitsOf(opened),
        );
        assert.ok(off < 1e-5, `off by ${off}`);
      });
    }

    void it('prefix: the places of keys and values hold nothing else', async () => {
      const opened = open(config, 'prefix', 'trained');
      const params = opened.params as PromptedParams;
      const other = { ...params, prompt: tf.fill(params.prompt.shape, 0.7) };
      const off = await largestDifference(logitsOf(opened), logitsOf({ ...opened, params: other }));
      assert.equal(off, 0);
    });
  });
}

test('the matrices that VeRA shares come from its key alone, and a layer takes what it needs', () => {
  const drawn = (key: number, targets: readonly string[]) => {
    const language = languageOf(KINDS[0]!, VOCABULARY);
    const config = tuningFields.parse({ method: 'vera', rank: 3, key, targets });
    return openTuning(config, language, { path: 'tuning', languagePath: '' }).tuning.fixed;
  };
  const [first, again, other] = [drawn(1, TARGETS), drawn(1, TARGETS), drawn(2, TARGETS)];
  assert.deepEqual(first, again);
  assert.notDeepEqual(first['vera/a']!.data, other['vera/a']!.data);
  assert.deepEqual(first['vera/a']!.shape, [8, 3]);
  // Of the widest that is adapted.
  assert.deepEqual(drawn(1, ['query', 'down'])['vera/a']!.shape, [12, 3]);
  assert.deepEqual(drawn(1, ['query', 'up'])['vera/b']!.shape, [3, 12]);
});

void describe('of one layer, by hand', () => {
  let engine: Engine;
  before(async () => {
    engine = await openCpuEngine();
  });
  after(() => {
    engine.close();
  });
  const [numIn, numOut, rank] = [4, 3, 2];
  const kernel = () => formulaTensor('kernel', [numIn, numOut], { scale: 1 });
  const bias = () => formulaTensor('bias', [numOut], { scale: 1 });
  const x = () => formulaTensor('x', [1, numIn], { scale: 1 });
  const rowsOf = (tensor: tf.Tensor): number[][] => tensor.arraySync() as number[][];
  const valuesOf = (tensor: tf.Tensor): number[] => [...tensor.dataSync()];

  void it('DoRA: m (W + alpha/R A B) / |W + alpha/R A B|', () => {
    const a = formulaTensor('a', [numIn, rank], { scale: 1 });
    const b = formulaTensor('b', [rank, numOut], { scale: 1 });
    const magnitude = formulaTensor('m', [numOut], { scale: 0.5 });
    const model = { layer: { kernel: kernel(), bias: bias() } };
    const params = withDora(model, { layer: { a, b, magnitude } }, { rank, alpha: 5 });
    const found = valuesOf(dense(params.layer, x()));
    const [w, input] = [rowsOf(kernel()), valuesOf(x())];
    const [ar, br] = [rowsOf(a), rowsOf(b)];
    for (let out = 0; out < numOut; out++) {
      const before = w.map((row) => row[out]!);
      const change = ar.map((row) => row.reduce((sum, value, r) => sum + value * br[r]![out]!, 0));
      const column = before.map((value, i) => value + (5 / rank) * change[i]!);
      const length = valuesOf(magnitude)[out]! + Math.hypot(...before);
      const product = column.reduce((sum, value, i) => sum + value * input[i]!, 0);
      const wanted = (length * product) / Math.hypot(...column) + valuesOf(bias())[out]!;
      assert.ok(Math.abs(found[out]! - wanted) < 1e-5, `${found[out]} is not ${wanted}`);
    }
  });

  void it('DoRA: a column of zeros stays one, and what takes a column away leaves numbers', () => {
    const zero = tf.tensor2d([
      [1, 0],
      [2, 0],
    ]);
    const [a, b] = [tf.tensor2d([[1], [2]]), tf.tensor2d([[-1, 0]])];
    const dora = { a, b, magnitude: tf.zeros([2]) };
    const outputs = [1, 1 - 1e-7].map((alpha) => {
      const config = { rank: 1, alpha };
      const { layer } = withDora({ layer: { kernel: zero } }, { layer: dora }, config);
      return valuesOf(dense(layer, tf.tensor2d([[3, 5]])));
    });
    for (const output of outputs) {
      assert.ok(output.every(Number.isFinite), output.join());
      assert.equal(output[1], 0);
    }
  });

  void it('adapters: h + up relu(down h), of what the layer gives with its bias', () => {
    const adapter = {
      down: {
        kernel: formulaTensor('down', [numOut, rank], { scale: 1 }),
        bias: formulaTensor('down bias', [rank], { scale: 1 }),
      },
      up: {
        kernel: formulaTensor('up', [rank, numOut], { scale: 1 }),
        bias: formulaTensor('up bias', [numOut], { scale: 1 }),
      },
    };
    const model = { layer: { kernel: kernel(), bias: bias() } };
    const found = valuesOf(dense(withAdapters(model, { layer: adapter }).layer, x()));
    const affine = (input: number[], layer: { kernel: tf.Tensor; bias: tf.Tensor }): number[] =>
      valuesOf(layer.bias).map((value, out) =>
        input.reduce((sum, part, i) => sum + part * rowsOf(layer.kernel)[i]![out]!, value),
      );
    const h = affine(valuesOf(x()), model.layer);
    const hidden = affine(h, adapter.down).map((value) => Math.max(value, 0));
    const wanted = affine(hidden, adapter.up).map((value, out) => h[out]! + value);
    for (const [out, value] of found.entries())
      assert.ok(Math.abs(value - wanted[out]!) < 1e-5, `${value} is not ${wanted[out]}`);
  });

  void it('DoRA: a length that is doubled doubles what a layer without a bias gives', () => {
    const a = formulaTensor('a', [numIn, rank], { scale: 1 });
    const b = formulaTensor('b', [rank, numOut], { scale: 1 });
    const norms = tf.sqrt(tf.sum(tf.square(kernel()), 0));
    const given = (magnitude: tf.Tensor): number[] => {
      const params = withDora(
        { layer: { kernel: kernel() } },
        { layer: { a, b, magnitude } },
        { rank, alpha: 5 },
      );
      return valuesOf(dense(params.layer, x()));
    };
    // Trained is what comes to the length of the kernel itself.
    const [once, twice] = [given(tf.zeros([numOut])), given(norms)];
    for (const [out, value] of once.entries()) assert.ok(Math.abs(twice[out]! - 2 * value) < 1e-5);
  });
});
