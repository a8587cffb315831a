import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import type * as tf from '@tensorflow/tfjs-core';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { openEngine, type Engine } from '../../backend/engine.ts';
import { openGenerator } from '../../generation/generator.ts';
import { padPrompts } from '../../generation/prompts.ts';
import type { Decoder, DecoderInputs } from '../../models/decoder.ts';
import { llama } from '../../models/llama.ts';
import { opt } from '../../models/opt.ts';
import type { TensorTree } from '../../tree.ts';
import { llamaConfigOf } from '../llama.ts';
import { openModelFolder } from '../model-folder.ts';
import { optConfigOf } from '../opt.ts';
import type { WeightTable } from '../weight-table.ts';
import { loadTree } from '../weights.ts';
import { architectureOf } from '../parity/architectures.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';

/** Of float32, in logits of size 1. */
const TOLERANCE = 1e-4;
const NAMES = ['llama-grouped', 'llama-tied', 'llama-linear', 'opt-pre', 'opt-post'];

interface LanguageModelOfFolder {
  readonly decoder: Decoder<TensorTree>;
  readonly form: TensorTree;
  readonly table: WeightTable;
}

function languageModelOf(config: Readonly<Record<string, unknown>>): LanguageModelOfFolder {
  const { form, table } = architectureOf(config);
  const decoder =
    config['model_type'] === 'opt' ? opt(optConfigOf(config)) : llama(llamaConfigOf(config));
  return { decoder: decoder, form, table };
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

const missing = await whyNoPeer();

describe('decoders write what those of transformers write', { skip: missing ?? false }, () => {
  let engine: Engine;
  let folder: string;
  const upload = (data: Float32Array, shape: readonly number[]): tf.Tensor =>
    engine.upload(data, shape);

  before(async () => {
    folder = await temporaryFolder('decoders');
    await runPeer('decoders.py', 'make', folder, ...NAMES);
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    engine.close();
  });

  for (const name of NAMES) {
    it(`${name}: greedy and beam search write the same texts for prompts of different lengths`, async () => {
      const { config, weights } = await openModelFolder(path.join(folder, name));
      const { decoder, form, table } = languageModelOf(config);
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
});
