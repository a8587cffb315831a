import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../backend/engine.ts';
import { openInitializer } from '../initializer.ts';
import type { DecoderInputs } from '../models/decoder.ts';
import type { LanguageModel } from '../models/language-model.ts';
import { initLlama, llama, type LlamaConfig, type LlamaParams } from '../models/llama.ts';
import { mapTree } from '../tree.ts';
import { openGenerator, type GenerateOptions } from './generator.ts';
import { padPrompts, placeSoftTokens } from './prompts.ts';

const CONFIG: LlamaConfig = {
  vocabularySize: 29,
  width: 16,
  mlpWidth: 24,
  numLayers: 5, // a loop, in a compiled program
  numHeads: 4,
  numKeyValueHeads: 2,
  headWidth: 6,
  epsilon: 1e-5,
  ropeTheta: 10_000,
  isTied: false,
};
const PROMPTS = [[3, 7, 11, 2, 9], [5], [8, 8, 1]];
const MAX_NEW = 6;

describe('generation', () => {
  let engine: Engine;
  let params: LlamaParams;
  const model = llama(CONFIG);
  const greedy: GenerateOptions = { strategy: { kind: 'greedy' }, eosIds: [] };

  before(async () => {
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
    // Of a size at which texts differ from each other.
    params = mapTree(initLlama(CONFIG, openInitializer(6)), (x, path) =>
      path.endsWith('scale')
        ? x
        : tf.mul(x, path === 'embedding' || path === 'head/kernel' ? 40 : 1),
    );
  });
  after(() => {
    engine.close();
  });

  const promptOf = (rows: readonly (readonly number[])[], length?: number): DecoderInputs => {
    const padded = padPrompts(rows, { padId: 0, ...(length === undefined ? {} : { length }) });
    return {
      ids: engine.upload(padded.ids, padded.shape),
      present: engine.upload(padded.present, padded.shape),
    };
  };
  const write = async (
    prompt: DecoderInputs,
    options: GenerateOptions,
    lm: LanguageModel<LlamaParams, DecoderInputs> = model,
  ) => {
    const generator = openGenerator(engine, lm, { maxNewTokens: MAX_NEW });
    try {
      return await generator.generate(params, prompt, options);
    } finally {
      generator.close();
    }
  };

  it('with a cache, tokens are those that the whole text gives each time it is read again', async () => {
    const texts = await write(promptOf(PROMPTS), greedy);
    for (const [row, prompt] of PROMPTS.entries()) {
      const ids = [...prompt];
      for (let step = 0; step < MAX_NEW; step++) {
        const states = model.states(params, promptOf([ids]));
        const logits = tf.squeeze(
          tf.slice(model.logits(params, states), [0, ids.length - 1, 0], [1, 1, -1]),
        );
        ids.push((await tf.argMax(logits).data())[0]!);
      }
      assert.deepEqual([...texts[row]!.ids], ids.slice(prompt.length), `row ${row}`);
    }
  });

  it('padding in front, behind, or more of it changes no text', async () => {
    const wanted = await write(promptOf(PROMPTS), greedy);
    assert.deepEqual(await write(promptOf(PROMPTS, 9), greedy), wanted);
    const { ids, present, shape } = padPrompts(PROMPTS, { padId: 0 });
    const length = shape[1];
    const behind = <T extends Int32Array | Float32Array>(values: T): T => {
      const moved = values.slice().fill(0) as T;
      for (const [row, prompt] of PROMPTS.entries()) {
        moved.set(
          values.subarray((row + 1) * length - prompt.length, (row + 1) * length),
          row * length,
        );
      }
      return moved;
    };
    const prompt = {
      ids: engine.upload(behind(ids), shape),
      present: engine.upload(behind(present), shape),
    };
    assert.deepEqual(await write(prompt, greedy), wanted);
  });

  it('soft tokens that are the embeddings of words write what the words write', async () => {
    const words = padPrompts(PROMPTS.slice(0, 1), { padId: 0 });
    const placed = placeSoftTokens(Int32Array.from([3, 99, 99, 2, 9]), {
      length: 5,
      placeholder: 99,
      numSoft: 2,
      padId: 0,
    });
    assert.deepEqual([...placed.softRows], [-1, 0, 1, -1, -1]);
    const prompt = {
      ids: engine.upload(placed.ids, words.shape),
      present: engine.upload(words.present, words.shape),
      soft: model.embed(params, tf.tensor2d([[7, 11]], [1, 2], 'int32')),
      softRows: engine.upload(placed.softRows, words.shape),
    };
    const wanted = await write(promptOf(PROMPTS.slice(0, 1)), greedy);
    assert.deepEqual(await write(prompt, greedy), wanted);
    const other = { ...prompt, soft: model.embed(params, tf.tensor2d([[1, 20]], [1, 2], 'int32')) };
    assert.notDeepEqual(await write(other, greedy), wanted);
  });

  it('a place too many or too few for the soft tokens is refused', () => {
    const ids = Int32Array.from([99, 99, 3, 99, 1, 2]);
    const options = { length: 3, placeholder: 99, numSoft: 2, padId: 0 };
    assert.throws(() => placeSoftTokens(ids, options), {
      code: 'GENERATION_BAD_PROMPT',
      message: /Row 1 has 1 places for 2/,
    });
  });

  it('the same seed and key draw the same text, alone or in a batch; another seed another', async () => {
    const sample = (seed: number, rowKeys: number[]): GenerateOptions => ({
      strategy: { kind: 'sample', seed, rowKeys, temperature: 1.5, topP: 0.95 },
      eosIds: [],
    });
    const together = await write(promptOf(PROMPTS), sample(1, [10, 11, 12]));
    const alone = await write(promptOf([PROMPTS[2]!], 5), sample(1, [12]));
    assert.deepEqual(alone[0], together[2]);
    const again = await write(promptOf(PROMPTS), sample(1, [10, 11, 12]));
    assert.deepEqual(again, together);
    assert.notDeepEqual(await write(promptOf(PROMPTS), sample(2, [10, 11, 12])), together);
  });

  it('a text ends before its end token, and stops there', async () => {
    const free = await write(promptOf(PROMPTS), greedy);
    const end = free[0]!.ids[2]!;
    const texts = await write(promptOf(PROMPTS), { ...greedy, eosIds: [end] });
    for (const [row, { ids, isFinished }] of texts.entries()) {
      const at = free[row]!.ids.indexOf(end);
      assert.deepEqual([...ids], at < 0 ? [...free[row]!.ids] : free[row]!.ids.slice(0, at));
      assert.equal(isFinished, at >= 0);
    }
    assert.ok(texts[0]!.isFinished);
  });

  it('one beam writes what greedy does, and more beams nothing less likely', async () => {
    const beam = (numBeams: number): GenerateOptions => ({
      strategy: { kind: 'beam', numBeams, lengthPenalty: 0 },
      eosIds: [],
    });
    const one = await write(promptOf(PROMPTS), beam(1));
    assert.deepEqual(
      one.map(({ ids }) => [...ids]),
      (await write(promptOf(PROMPTS), greedy)).map(({ ids }) => [...ids]),
    );
    // All texts of two tokens fit into the beams: the best is found.
    const wide = await write(promptOf(PROMPTS), { ...beam(29), maxNewTokens: 2 });
    const narrow = await write(promptOf(PROMPTS), { ...beam(1), maxNewTokens: 2 });
    for (const [row, { score }] of wide.entries()) assert.ok(score! >= narrow[row]!.score! - 1e-5);
  });

  it('a model whose prompt is not a text generates too: the interface is that of any decoder', async () => {
    // What an encoder-decoder does: the prompt is read once, the text begins with a token of its own.
    const start = 4;
    const other: LanguageModel<LlamaParams, DecoderInputs> = {
      name: 'prompted',
      prefill(own, prompt, numSteps) {
        const [batch] = prompt.ids.shape as [number, number];
        const states = model.states(own, prompt);
        const mean = tf.mean(states, 1, true); // [B, 1, D], in place of an encoder
        const first = {
          ids: tf.fill([batch, 2], start, 'int32'),
          present: tf.ones([batch, 2]),
          soft: mean,
          softRows: tf.tile(tf.tensor2d([[0, -1]], [1, 2], 'int32'), [batch, 1]),
        };
        return model.prefill(own, first, numSteps);
      },
      step: (own, state, tokens) => model.step(own, state as never, tokens),
      select: (state, rows) => model.select(state as never, rows),
    };
    const texts = await write(promptOf(PROMPTS), { ...greedy }, other);
    assert.equal(texts.length, 3);
    assert.equal(new Set(texts.map(({ ids }) => ids.join())).size, 3);
    const beams = await write(
      promptOf(PROMPTS),
      { ...greedy, strategy: { kind: 'beam', numBeams: 2 } },
      other,
    );
    assert.ok(beams.every(({ ids }) => ids.length === MAX_NEW));
  });

  it('settings that make no sense are refused', async () => {
    const prompt = promptOf(PROMPTS);
    const bad: Partial<GenerateOptions>[] = [
      { maxNewTokens: MAX_NEW + 1 },
      { maxNewTokens: 0 },
      { strategy: { kind: 'sample', seed: 1, temperature: 0 } },
      { strategy: { kind: 'sample', seed: 1, topP: 1.5 } },
      { strategy: { kind: 'sample', seed: 1, topK: 0 } },
      { strategy: { kind: 'beam', numBeams: 0 } },
    ];
    for (const options of bad) {
      await assert.rejects(write(prompt, { ...greedy, ...options }), {
        code: 'GENERATION_BAD_SETTING',
      });
    }
    assert.throws(() => padPrompts([[1], []], { padId: 0 }), { code: 'GENERATION_BAD_PROMPT' });
    assert.throws(() => padPrompts([[1, 2, 3]], { padId: 0, length: 2 }), {
      code: 'GENERATION_BAD_PROMPT',
    });
  });

  it('an aborted generation ends with the reason, and leaves no tensors', async () => {
    const prompt = promptOf(PROMPTS);
    const before = tf.memory().numTensors;
    const signal = AbortSignal.abort(new Error('enough'));
    await assert.rejects(write(prompt, { ...greedy, signal }), /enough/);
    await write(prompt, greedy);
    await write(prompt, { ...greedy, strategy: { kind: 'beam', numBeams: 2 } });
    assert.equal(tf.memory().numTensors, before);
  });
});
