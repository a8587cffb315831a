import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../../backend/engine.ts';
import { openInitializer, shapesOnly } from '../../initializer.ts';
import { initLora, withLora, type LoraParams } from '../../tuning/lora.ts';
import { nextTokenSums, numNextTokens } from '../../losses/next-token.ts';
import type { Decoder } from '../../models/decoder.ts';
import { initLlama, llama, type LlamaParams } from '../../models/llama.ts';
import { leavesOf, withLeaves } from '../../tree.ts';
import { llamaConfigOf, llamaWeights } from '../llama.ts';
import { merged as mergedKernels } from '../../tuning/merged.ts';
import { readAdapter, writeAdapter, type Adapter } from '../lora.ts';
import { openModelFolder } from '../model-folder.ts';
import type { WeightTable } from '../weight-table.ts';
import { loadTree } from '../weights.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';
import { largestDifference, readTensors } from '../parity/reference-tensors.ts';

/** Of float32, in logits of size 1. */
const TOLERANCE = 1e-4;

const missing = await whyNoPeer();

describe('LoRA is that of peft', { skip: missing ?? false }, () => {
  let engine: Engine;
  let folder: string;
  let decoder: Decoder<LlamaParams>;
  let params: LlamaParams;
  let table: WeightTable;
  let adapter: Adapter;

  before(async () => {
    folder = await temporaryFolder('lora');
    await runPeer('decoders.py', 'lora', folder);
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
    const { config, weights } = await openModelFolder(path.join(folder, 'base'));
    const sizes = llamaConfigOf(config);
    decoder = llama(sizes);
    table = llamaWeights(sizes);
    const upload = (data: Float32Array, shape: readonly number[]): tf.Tensor =>
      engine.upload(data, shape);
    params = await loadTree(initLlama(sizes, shapesOnly()), weights, table, { upload });
    adapter = await readAdapter(path.join(folder, 'adapter'), params, table, { upload });
  });
  after(() => {
    engine.close();
  });

  it(`logits, loss and the factors' gradients, through the frozen model (float32, ${TOLERANCE})`, async () => {
    const reference = await readTensors(path.join(folder, 'reference.safetensors'));
    const input = (key: string): tf.Tensor => tf.cast(reference.get(`input.${key}`)!, 'int32');
    const given = {
      ids: input('ids'),
      present: reference.get('input.present')!,
      softRows: input('softRows'),
      softIds: input('softIds'),
      labels: input('labels'),
      weight: reference.get('weight.logits')!,
      lossWeight: reference.get('weight.loss')!,
    };
    const labels = Int32Array.from(await given.labels.data());
    const numLabels = numNextTokens(labels, given.labels.shape[1]!);
    const run = engine.compile(
      (base: LlamaParams, lora: LoraParams, x: typeof given) => {
        const logitsOf = (own: LlamaParams): tf.Tensor => {
          const soft = tf.mul(decoder.embed(own, x.softIds), 2);
          const logits = decoder.logits(own, decoder.states(own, { ...x, soft }));
          return tf.mul(logits, tf.expandDims(x.present, -1));
        };
        let found: Record<string, tf.Tensor> = {};
        const total = (...leaves: tf.Tensor[]): tf.Scalar => {
          const logits = logitsOf(withLora(base, withLeaves(lora, leaves), adapter.config));
          const loss = tf.div(nextTokenSums(logits, x.labels).lossSum, numLabels);
          found = { logits: tf.keep(logits), loss: tf.keep(tf.reshape(loss, [1])) };
          const weighted = tf.sum(tf.mul(tf.reshape(loss, [1]), x.lossWeight));
          return tf.add(tf.sum(tf.mul(logits, x.weight)), weighted);
        };
        const gradients = tf.grads(total)(leavesOf(lora).map(([, leaf]) => leaf));
        const merged = logitsOf(mergedKernels(withLora(base, lora, adapter.config)) as LlamaParams);
        return { found, gradients, merged };
      },
      { name: 'lora' },
    );
    const { found, gradients, merged } = await run(params, adapter.lora, given);
    const wanted = reference.get('output.logits')!;
    for (const [key, tensor] of Object.entries<tf.Tensor>({ ...found })) {
      const off = await largestDifference(tensor, reference.get(`output.${key}`)!);
      assert.ok(off <= TOLERANCE, `${key} is off by ${off}`);
    }
    const offMerged = await largestDifference(merged, wanted);
    assert.ok(offMerged <= TOLERANCE, `merged, the logits are off by ${offMerged}`);

    const theirs = await readTensors(path.join(folder, 'gradients.safetensors'));
    const modules = { query: 'q_proj', value: 'v_proj' };
    for (const [part, module] of Object.entries(modules)) {
      for (const factor of ['a', 'b']) {
        const at = leavesOf(adapter.lora).findIndex(
          ([found]) => found === `blocks/*/attention/${part}/${factor}`,
        );
        for (const [layer, own] of tf.unstack(gradients[at]!).entries()) {
          const name = `base_model.model.model.layers.${layer}.self_attn.${module}.lora_${factor.toUpperCase()}.weight`;
          const off = await largestDifference(own, tf.transpose(theirs.get(name)!));
          assert.ok(off <= TOLERANCE, `the gradient of ${name} is off by ${off}`);
        }
      }
    }
    run.close();
  });

  it('an adapter that is written loads in peft and gives the same', async () => {
    const written = path.join(folder, 'written');
    await writeAdapter(written, adapter, table);
    const said = JSON.parse(await runPeer('decoders.py', 'check-lora', folder, written)) as {
      difference: number;
    };
    assert.ok(said.difference <= TOLERANCE, `off by ${said.difference}`);
    const again = await readAdapter(written, params, table);
    assert.equal(again.config.alpha, adapter.config.alpha);
  });

  it('a new adapter leaves the model as it is: one factor is drawn, the other is zero', async () => {
    const config = { rank: 2, alpha: 4, targets: ['query', 'mlp/up'] };
    const lora = initLora(openInitializer(3), params, config);
    assert.deepEqual(Object.keys(lora), ['blocks/*/attention/query', 'blocks/*/mlp/up']);
    const merged = mergedKernels(withLora(params, lora, config));
    for (const [i, [at, kernel]] of leavesOf(merged).entries()) {
      assert.equal(await largestDifference(kernel, leavesOf(params)[i]![1]), 0, at);
    }
    const { a } = lora['blocks/*/mlp/up']!;
    assert.deepEqual(a.shape, [6, 24, 2]);
    assert.ok(new Set(await a.data()).size > 250, 'the other factor is not drawn');
  });

  it('a target that the model lacks is refused, with what it has', () => {
    assert.throws(
      () => initLora(openInitializer(3), params, { rank: 2, alpha: 4, targets: ['q_proj'] }),
      { code: 'TUNING_NO_TARGET', message: /q_proj.*blocks\/\*\/attention\/query/ },
    );
  });

  it('a config that asks for another method is refused', async () => {
    const other = path.join(folder, 'other');
    await writeAdapter(other, adapter, table);
    const file = path.join(other, 'adapter_config.json');
    const json = JSON.parse(await readFile(file, 'utf8')) as object;
    await writeFile(file, JSON.stringify({ ...json, use_dora: true }));
    await assert.rejects(readAdapter(other, params, table), { code: 'PRETRAINED_CONFIG' });
  });

  it('a rank or a strength of some modules alone is refused; that of none is as peft writes it', async () => {
    const other = path.join(folder, 'patterns');
    await writeAdapter(other, adapter, table);
    const file = path.join(other, 'adapter_config.json');
    const json = JSON.parse(await readFile(file, 'utf8')) as object;
    const write = (more: object) => writeFile(file, JSON.stringify({ ...json, ...more }));
    for (const [field, value] of Object.entries({
      alpha_pattern: { q_proj: 32 },
      rank_pattern: { q_proj: 4 },
    })) {
      await write({ [field]: value });
      await assert.rejects(readAdapter(other, params, table), {
        code: 'PRETRAINED_CONFIG',
        message: new RegExp(
          `patterns/adapter_config\\.json .*q_proj.*one r and lora_alpha.*${field}`,
          's',
        ),
      });
    }
    await write({ alpha_pattern: {}, rank_pattern: {} });
    assert.equal((await readAdapter(other, params, table)).config.alpha, adapter.config.alpha);
  });
});
