import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { userCacheDir } from '../../../proto/user-cache.ts';
import { openEngine, type Engine } from '../../backend/engine.ts';
import { openGenerator } from '../../generation/generator.ts';
import { padPrompts } from '../../generation/prompts.ts';
import { openInitializer } from '../../initializer.ts';
import { nextTokenSums, numNextTokens } from '../../losses/next-token.ts';
import type { Decoder, DecoderInputs } from '../../models/decoder.ts';
import { initLlama, llama } from '../../models/llama.ts';
import { initOpt, opt } from '../../models/opt.ts';
import { leavesOf, withLeaves, type TensorTree } from '../../tree.ts';
import { llamaConfigJson, llamaConfigOf, llamaWeights } from '../llama.ts';
import { openModelFolder, openWeights, writeModelFolder } from '../model-folder.ts';
import { OPT_WEIGHTS, optConfigJson, optConfigOf } from '../opt.ts';
import type { WeightTable } from '../weight-table.ts';
import { exportTree, loadTree } from '../weights.ts';
import { runPeer } from './decoder-peer.ts';
import { largestDifference, readTensors } from './reference-tensors.ts';

/** Of float32, in logits of size 1. */
const TOLERANCE = 1e-4;
const NAMES = ['llama-grouped', 'llama-tied', 'llama-linear', 'opt-pre', 'opt-post'];

/** A model of either architecture with what belongs to it. */
interface Architecture {
  readonly decoder: Decoder<TensorTree>;
  readonly form: TensorTree;
  readonly table: WeightTable;
  readonly json: Readonly<Record<string, unknown>>;
}

function architectureOf(config: Readonly<Record<string, unknown>>): Architecture {
  if (config['model_type'] === 'opt') {
    const sizes = optConfigOf(config);
    return {
      decoder: opt(sizes),
      form: initOpt(sizes, openInitializer(0)),
      table: OPT_WEIGHTS,
      json: optConfigJson(sizes),
    };
  }
  const sizes = llamaConfigOf(config);
  return {
    decoder: llama(sizes),
    form: initLlama(sizes, openInitializer(0)),
    table: llamaWeights(sizes),
    json: llamaConfigJson(sizes, 2048),
  };
}

interface Generated {
  readonly prompts: number[][];
  readonly cases: {
    readonly options: {
      readonly max_new_tokens: number;
      readonly eos_token_id: readonly number[] | null;
      readonly num_beams?: number;
      readonly length_penalty?: number;
      readonly early_stopping?: boolean | 'never';
    };
    readonly rows: number[][];
    readonly scores: number[] | null;
  }[];
}

describe('decoders are those of transformers', () => {
  let engine: Engine;
  let folder: string;
  const upload = (data: Float32Array, shape: readonly number[]): tf.Tensor =>
    engine.upload(data, shape);

  before(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'videoloom-decoders-'));
    await runPeer('decoders.py', 'make', folder, ...NAMES);
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
  });
  after(async () => {
    engine.close();
    await rm(folder, { recursive: true, force: true });
  });

  for (const name of NAMES) {
    it(`${name}: logits, hidden states, loss and gradients (float32, ${TOLERANCE})`, async (t) => {
      const { config, weights } = await openModelFolder(path.join(folder, name));
      const { decoder, form, table } = architectureOf(config);
      const params = await loadTree(form, weights, table, { upload });
      const reference = await readTensors(path.join(folder, name, 'reference.safetensors'));
      const input = (key: string): tf.Tensor => tf.cast(reference.get(`input.${key}`)!, 'int32');
      const given = {
        ids: input('ids'),
        present: reference.get('input.present')!,
        softRows: input('softRows'),
        softIds: input('softIds'),
        labels: input('labels'),
        weight: reference.get('weight.logits')!,
      };
      const length = given.labels.shape[1]!;
      const numLabels = numNextTokens(Int32Array.from(await given.labels.data()), length);
      const run = engine.compile(
        (own: TensorTree, x: typeof given) => {
          const shown = (y: tf.Tensor): tf.Tensor => tf.mul(y, tf.expandDims(x.present, -1));
          const plain: DecoderInputs = { ids: x.ids, present: x.present };
          let found: Record<string, tf.Tensor> = {};
          const total = (...leaves: tf.Tensor[]): tf.Scalar => {
            const tree = withLeaves(own, leaves);
            const soft = tf.mul(decoder.embed(tree, x.softIds), 2);
            const states = decoder.states(tree, { ...plain, soft, softRows: x.softRows });
            const logits = decoder.logits(tree, states);
            const { lossSum } = nextTokenSums(logits, x.labels);
            const loss = tf.reshape(tf.div(lossSum, numLabels), [1]);
            found = { logits: tf.keep(shown(logits)), loss: tf.keep(loss) };
            return tf.add(tf.sum(tf.mul(shown(logits), x.weight)), tf.sum(loss));
          };
          const gradients = tf.grads(total)(leavesOf(own).map(([, leaf]) => leaf));
          const all = decoder.hiddenStates(own, plain).map(shown);
          const states = all.slice(0, -1).map((state, i) => [`states.${i}`, state] as const);
          const last = decoder.logits(own, decoder.states(own, plain));
          return {
            gradients,
            found: { ...found, ...Object.fromEntries(states), plain: shown(last) },
          };
        },
        { name: 'parity' },
      );
      const { gradients, found } = await run(params, given);
      let worst = 0;
      for (const [key, tensor] of Object.entries<tf.Tensor>(found)) {
        const off = await largestDifference(tensor, reference.get(`output.${key}`)!);
        worst = Math.max(worst, off);
        assert.ok(off <= TOLERANCE, `${key} is off by ${off}`);
      }
      const theirs = await loadTree(
        form,
        await openWeights(path.join(folder, name, 'gradients')),
        table,
      );
      for (const [i, [at, wanted]] of leavesOf(theirs).entries()) {
        const off = await largestDifference(gradients[i]!, wanted);
        worst = Math.max(worst, off);
        assert.ok(off <= TOLERANCE, `the gradient of ${at} is off by ${off}`);
      }
      t.diagnostic(`largest difference ${worst}`);
      run.close();
    });

    it(`${name}: greedy and beam search write the same texts for prompts of different lengths`, async () => {
      const { config, weights } = await openModelFolder(path.join(folder, name));
      const { decoder, form, table } = architectureOf(config);
      const params = await loadTree(form, weights, table, { upload });
      const { prompts, cases } = JSON.parse(
        await readFile(path.join(folder, name, 'generated.json'), 'utf8'),
      ) as Generated;
      const padded = padPrompts(prompts, { padId: 0 });
      const prompt: DecoderInputs = {
        ids: engine.upload(padded.ids, padded.shape),
        present: engine.upload(padded.present, padded.shape),
      };
      const generator = openGenerator(engine, decoder, { maxNewTokens: 12 });
      for (const { options, rows, scores } of cases) {
        const eosIds = options.eos_token_id ?? [];
        const texts = await generator.generate(params, prompt, {
          strategy:
            options.num_beams === undefined
              ? { kind: 'greedy' }
              : {
                  kind: 'beam',
                  numBeams: options.num_beams,
                  lengthPenalty: options.length_penalty!,
                  earlyStopping: options.early_stopping!,
                },
          eosIds,
          maxNewTokens: options.max_new_tokens,
        });
        const label = `${name} ${JSON.stringify(options)}`;
        for (const [row, ids] of rows.entries()) {
          const end = ids.findIndex((id) => eosIds.includes(id));
          const wanted = end < 0 ? ids : ids.slice(0, end);
          assert.deepEqual([...texts[row]!.ids], wanted, `${label}, row ${row}`);
          assert.equal(texts[row]!.isFinished, end >= 0, `${label}, row ${row}`);
          if (scores !== null) {
            assert.ok(
              Math.abs(texts[row]!.score! - scores[row]!) <= TOLERANCE,
              `${label}, row ${row}`,
            );
          }
        }
      }
      generator.close();
    });
  }

  it('what is exported loads there and gives the same', async () => {
    for (const name of NAMES) {
      const { config, weights } = await openModelFolder(path.join(folder, name));
      const { form, table, json } = architectureOf(config);
      const tensors = await exportTree(await loadTree(form, weights, table), table);
      await writeModelFolder(path.join(folder, `${name}-exported`), { config: json, tensors });
    }
    const lines = (await runPeer('decoders.py', 'check', folder, ...NAMES)).trim().split('\n');
    for (const [i, line] of lines.entries()) {
      const { difference: off, ...names } = JSON.parse(line) as Record<string, unknown>;
      assert.deepEqual(
        names,
        { missing_keys: [], unexpected_keys: [], mismatched_keys: [] },
        NAMES[i],
      );
      assert.ok(Number(off) <= TOLERANCE, `${NAMES[i]!} is off by ${String(off)}`);
    }
    assert.equal(lines.length, NAMES.length);
  });
});
