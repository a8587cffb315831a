/** What a language model is adapted by, written as peft has it, is loaded by peft and gives the same there. */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../../backend/engine.ts';
import { encodeSafetensors, type TensorData } from '../../checkpoint/format.ts';
import { publishedTensors } from '../../export/export-published.ts';
import { shapesOnly } from '../../initializer.ts';
import { languageOf } from '../../systems/language-part.ts';
import { openTuning, tuningFields } from '../../systems/tuning-part.ts';
import { formulaTensor } from '../../test/formula-weights.ts';
import { valuesOf } from '../../test/run-folder.ts';
import { leavesOf, mapTree, withLeaves, type TensorTree } from '../../tree.ts';
import { merged } from '../../tuning/merged.ts';
import { writeAdapterFolder } from '../lora.ts';
import { writeModelFolder } from '../model-folder.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';
import { largestDifference, readHostTensors } from '../parity/reference-tensors.ts';
import type { HostTensor } from '../tensor-source.ts';

/** Of float32, in outputs of size 1. */
const TOLERANCE = 1e-4;
const MERGED_TOLERANCE = 1e-5;
const VOCABULARY = 37;

const METHODS = {
  dora: { method: 'dora', rank: 3, alpha: 5, targets: ['query', 'down'] },
  vera: { method: 'vera', rank: 6, targets: ['value', 'down'] },
  prompt: { method: 'prompt', tokens: 3 },
  prefix: { method: 'prefix', tokens: 3 },
} as const;

const missing = await whyNoPeer();

describe('tunings are those of peft', { skip: missing ?? false }, () => {
  const language = languageOf(
    {
      ...{ kind: 'llama', width: 24, layers: 5, heads: 4, keyValueHeads: 2, mlpWidth: 40 },
      ...{ maxPositions: 32, epsilon: 1e-5, ropeTheta: 10_000, tied: false },
    },
    VOCABULARY,
  );
  const places = { path: 'tuning', languagePath: 'language' };
  let engine: Engine;
  let folder: string;
  let base: TensorTree;
  const all = new Map<string, ReturnType<typeof opened>>();
  const inputs = () => {
    const present = tf.tensor2d([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0], [2, 7]);
    const ids = Array.from({ length: 14 }, (_, i) => (5 + 11 * i) % VOCABULARY);
    const weight = formulaTensor('weight', [2, 7, VOCABULARY], { scale: 0.1 });
    return {
      ids: tf.tensor2d(ids, [2, 7], 'int32'),
      present,
      weight: tf.mul(weight, tf.expandDims(present, -1)),
    };
  };
  const opened = (method: object) => {
    const { tuning, published } = openTuning(tuningFields.parse(method), language, places);
    const form = tuning.init(shapesOnly());
    const own = mapTree(form, ({ shape }, path) => formulaTensor(path, shape, { scale: 0.3 }));
    return { tuning, published, own, form: { tuning: form, language: base } };
  };

  before(async () => {
    folder = await temporaryFolder('tunings');
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
    base = mapTree(language.init(shapesOnly()), ({ shape }, path) =>
      formulaTensor(path, shape, { scale: 0.3, mean: path.endsWith('/scale') ? 1 : 0 }),
    );
    const reading = async (tree: TensorTree): Promise<(name: string) => Float32Array> => {
      const values = await valuesOf(tree);
      return (name) => new Float32Array(values.get(name)!.data.slice().buffer);
    };
    const { table, json } = language.published;
    const part = { path: '', table, json, hasWords: true };
    await writeModelFolder(join(folder, 'base'), {
      config: { ...json, torch_dtype: 'float32' },
      tensors: publishedTensors(part, base, await reading(base)),
    });
    for (const [name, method] of Object.entries(METHODS)) {
      const given = opened(method);
      const { published, form, own } = given;
      all.set(name, given);
      const read = await reading({ language: base, tuning: own });
      await mkdir(join(folder, 'adapters'), { recursive: true });
      await writeAdapterFolder(join(folder, 'adapters', name), {
        config: published.json,
        tensors: publishedTensors(published, form, read),
      });
    }
    const data = new Map<string, TensorData>();
    for (const [name, tensor] of Object.entries(inputs())) {
      const values = Float32Array.from(await tensor.data());
      data.set(name, { dtype: 'F32', shape: tensor.shape, data: new Uint8Array(values.buffer) });
    }
    await writeFile(join(folder, 'inputs.safetensors'), encodeSafetensors(data));
    await runPeer('tunings.py', folder);
  });
  after(() => {
    engine.close();
  });

  for (const name of Object.keys(METHODS)) {
    it(`${name}: logits and gradients (float32, ${TOLERANCE})`, async () => {
      const { tuning, published, own, form } = all.get(name)!;
      const fixed = Object.fromEntries(
        Object.entries(tuning.fixed).map(([key, { data, shape }]) => [
          key,
          tf.tensor(data, [...shape]),
        ]),
      );
      const isMerging = name === 'dora' || name === 'vera';
      const run = engine.compile(
        (
          model: TensorTree,
          trained: TensorTree,
          arrays: TensorTree,
          given: ReturnType<typeof inputs>,
        ) => {
          const logitsOf = (params: TensorTree): tf.Tensor =>
            tuning.decoder.logits(params, tuning.decoder.states(params, given));
          let logits: tf.Tensor | undefined;
          const total = (...leaves: tf.Tensor[]): tf.Scalar => {
            const params = tuning.adapted(model, withLeaves(trained, leaves), arrays);
            logits = tf.keep(logitsOf(params));
            return tf.sum(tf.mul(logits, given.weight));
          };
          const gradients = tf.grads(total)(leavesOf(trained).map(([, leaf]) => leaf));
          const whole = isMerging
            ? { whole: logitsOf(merged(tuning.adapted(model, trained, arrays))) }
            : {};
          return { logits: logits!, gradients, ...whole };
        },
        { name },
      );
      const { logits, gradients, whole } = await run(base, own, fixed, inputs());
      const theirs = await readHostTensors(join(folder, `${name}.safetensors`));
      const there = theirs.get('logits')!;
      const isShown = tf.expandDims(inputs().present, -1);
      const off = await largestDifference(
        tf.mul(logits, isShown),
        tf.mul(tf.tensor(there.data, [...there.shape]), isShown),
      );
      assert.ok(off <= TOLERANCE, `logits are off by ${off}`);
      if (whole !== undefined) {
        const difference = await largestDifference(whole, logits);
        assert.ok(difference <= MERGED_TOLERANCE, `merged, they are off by ${difference}`);
      }
      // As gradients are laid out as the parameters; kernels have none.
      const values = await valuesOf({ tuning: withLeaves(own, gradients) });
      const ours = publishedTensors(published, form, (key) => {
        const found = values.get(key);
        return found === undefined
          ? new Float32Array(24 * 40)
          : new Float32Array(found.data.slice().buffer);
      });
      const names = [...theirs.keys()].filter((key) => key.startsWith('gradient.'));
      assert.ok(names.length > 0);
      for (const key of names) {
        const difference = worst(ours.get(key.slice('gradient.'.length))!, theirs.get(key)!);
        assert.ok(difference <= TOLERANCE, `${key} is off by ${difference}`);
      }
      run.close();
    });
  }
});

function worst(found: HostTensor, wanted: HostTensor): number {
  assert.deepEqual(found.shape, wanted.shape);
  return Math.max(...found.data.map((value, i) => Math.abs(value - wanted.data[i]!)));
}
