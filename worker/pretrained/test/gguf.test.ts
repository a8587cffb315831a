import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { before, describe, it } from 'node:test';
import { messageOf } from '../../../proto/errors.ts';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { openPretrainedTokenizer } from '../../../video/text/pretrained-tokenizer.ts';
import { openEngine } from '../../backend/engine.ts';
import { openGenerator } from '../../generation/generator.ts';
import { padPrompts } from '../../generation/prompts.ts';
import { shapesOnly } from '../../initializer.ts';
import { initLlama, llama } from '../../models/llama.ts';
import { numElements } from '../../tree.ts';
import { dequantize, GGML_TYPES, type GgmlType } from '../gguf-blocks.ts';
import { ggufLlamaConfig, ggufLlamaWeights, ggufTokenizer } from '../gguf-llama.ts';
import { openGguf, type GgufValue } from '../gguf.ts';
import { loadTree } from '../weights.ts';
import { runPeer } from '../parity/peer.ts';
import { ensureSmolLm } from './smollm.ts';

const CACHE = userCacheDir(process.env);

describe('GGUF', () => {
  let folder: string;

  before(async () => {
    folder = await temporaryFolder('gguf');
  });

  it('quantised blocks of every kind give the bits of gguf-py', async () => {
    await runPeer('decoders.py', 'blocks', folder);
    for (const type of Object.keys(GGML_TYPES) as GgmlType[]) {
      const bytes = new Uint8Array(await readFile(path.join(folder, `${type}.bin`)));
      const wanted = await readFile(path.join(folder, `${type}.f32`));
      const found = dequantize(bytes, type);
      assert.equal(found.length, 50 * GGML_TYPES[type].blockSize);
      assert.deepEqual(found, new Float32Array(new Uint8Array(wanted).buffer), type);
    }
  });

  it('a file that is cut off, or no GGUF, is refused', async () => {
    const file = path.join(folder, 'bad.gguf');
    for (const bytes of [
      Buffer.from('safetensors'),
      Buffer.from('GGUF'),
      Buffer.from('GGUF\x03\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0', 'latin1'),
      Buffer.from('GGUF\x07\0\0\0', 'latin1'),
    ]) {
      await writeFile(file, bytes);
      await assert.rejects(openGguf(file), { code: 'PRETRAINED_UNREADABLE' });
    }
    await assert.rejects(openGguf(path.join(folder, 'none')), { code: 'PRETRAINED_UNREADABLE' });
  });

  it('texts begin with the first token where llama.cpp has it so: told, or LLaMA 3 that tells nothing', () => {
    const tokens = ['a', 'b', '<|begin_of_text|>'];
    const encoded = (pre: string, told?: boolean): number[] => {
      const metadata = new Map<string, GgufValue>([
        ['tokenizer.ggml.model', 'gpt2'],
        ['tokenizer.ggml.pre', pre],
        ['tokenizer.ggml.tokens', tokens],
        ['tokenizer.ggml.token_type', [1, 1, 3]],
        ['tokenizer.ggml.merges', []],
        ['tokenizer.ggml.bos_token_id', 2],
        ...(told === undefined ? [] : [['tokenizer.ggml.add_bos_token', told] as const]),
      ]);
      const weights = {
        place: 'a file',
        shapes: new Map(),
        read: () => Promise.reject(new Error()),
      };
      return openPretrainedTokenizer(ggufTokenizer({ metadata, weights })).encode('ab');
    };
    assert.deepEqual(encoded('llama-bpe'), [2, 0, 1]);
    assert.deepEqual(encoded('llama-bpe', false), [0, 1]);
    assert.deepEqual(encoded('smollm'), [0, 1]);
    assert.deepEqual(encoded('smollm', true), [2, 0, 1]);
  });

  // `decoders.py gguf FILE` made the fixture: transformers, on the weights as gguf-py dequantises them.
  it('SmolLM2 135M: tokenizer, chat and 50 tokens of greedy text are those of transformers', async (t) => {
    let file: string;
    try {
      file = await ensureSmolLm(CACHE);
    } catch (error) {
      t.skip(`the model cannot be had: ${messageOf(error)}`);
      return;
    }
    const { cases, chat } = JSON.parse(
      await readFile(path.join(import.meta.dirname, 'fixtures', 'smollm2.json'), 'utf8'),
    ) as {
      cases: { text: string; ids: number[]; made: number[]; continuation: string }[];
      chat: string;
    };
    const gguf = await openGguf(file);
    const tokenizer = openPretrainedTokenizer(ggufTokenizer(gguf));
    for (const { text, ids } of cases) assert.deepEqual(tokenizer.encode(text), ids);
    assert.equal(
      tokenizer.chat([{ role: 'user', content: 'Name a colour.' }], { addGenerationPrompt: true }),
      chat,
    );

    const config = ggufLlamaConfig(gguf);
    const form = initLlama(config, shapesOnly());
    assert.equal(numElements(form), 134_515_008);
    const engine = await openEngine({ engine: 'xla', cacheDir: CACHE });
    const params = await loadTree(form, gguf.weights, ggufLlamaWeights(config), {
      upload: (data, shape) => engine.upload(data, shape),
    });
    const generator = openGenerator(engine, llama(config), { maxNewTokens: 50 });
    const padded = padPrompts(
      cases.map(({ ids }) => ids),
      { padId: 0 },
    );
    const prompt = {
      ids: engine.upload(padded.ids, padded.shape),
      present: engine.upload(padded.present, padded.shape),
    };
    const texts = await generator.generate(params, prompt, {
      strategy: { kind: 'greedy' },
      eosIds: [],
    });
    for (const [i, { made, continuation }] of cases.entries()) {
      assert.deepEqual(texts[i]!.ids, made);
      const found = tokenizer.decode(texts[i]!.ids, { skipSpecialTokens: false });
      assert.equal(found, continuation);
    }
    generator.close();
    engine.close();
  });
});
