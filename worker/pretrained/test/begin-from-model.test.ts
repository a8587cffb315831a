/** Runs that begin from folders of transformers: the weights they get compute what the models there compute. */
import assert from 'node:assert/strict';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import * as tf from '@tensorflow/tfjs-core';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { readPretrainedTokenizer } from '../../../video/text/pretrained-tokenizer.ts';
import { trainTokenizer } from '../../../video/text/tokenizer.ts';
import type { Engine } from '../../backend/engine.ts';
import { openCpuEngine } from '../../backend/cpu-engine.ts';
import { decodeSafetensors, encodeSafetensors, type TensorData } from '../../checkpoint/format.ts';
import { readSafetensorsStream } from '../../checkpoint/stream.ts';
import { initialWords, openInitialSource } from '../../initial-source.ts';
import {
  videoBertLogits,
  type VideoBertBatch,
  type VideoBertParams,
} from '../../models/videobert.ts';
import { INITIAL_FILE } from '../../run-weights.ts';
import type { FitContext } from '../../systems/system.ts';
import { fitTokenizer, readTokenizer } from '../../systems/text-assets.ts';
import { TEST_SAMPLES } from '../../test/open-system.ts';
import { makeRunFolder } from '../../test/run-folder.ts';
import { leavesOf, partsOf, withLeaves, type TensorTree } from '../../tree.ts';
import { architectureOf } from '../parity/architectures.ts';
import { TOLERANCE } from '../parity/compare.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';
import { largestDifference, readTensors } from '../parity/reference-tensors.ts';

const MODELS = [
  'clip',
  'siglip',
  'siglip-border',
  'llama-plain',
  'opt-pre',
  'llama-linear',
  'vit',
  'blip-2',
  'bert-double',
];
const missing = await whyNoPeer();

/** The sizes of the small models of `peers/reference.py`, as recipes name them. */
const SMALL = { layers: 5, mlpWidth: 40 };
const VISION = { ...SMALL, width: 32, heads: 4, patchSize: 4 };
const TEXT = { ...SMALL, width: 24, heads: 3, vocabulary: 37 };
const PICTURES = ['data.frameSize=16', 'data.windows=1', 'data.framesPerWindow=1'];

describe('a run that begins from a model of transformers', { skip: missing ?? false }, () => {
  let root: string;
  let engine: Engine;
  let runs = 0;
  const folderOf = (name: string): string => path.join(root, name);
  const set = (field: string, value: unknown): string => `${field}=${JSON.stringify(value)}`;

  before(async () => {
    engine = await openCpuEngine();
    root = await temporaryFolder('begin');
    await runPeer('parity.py', 'make', root, ...MODELS);
    await runPeer('parity.py', 'shard', root, 'clip', 'llama-plain');
    await runPeer('texts.py', root);
    // Tokens for all rows of the small tables but one.
    const words = trainTokenizer(
      TEST_SAMPLES.map(({ text }) => text),
      { vocabularySize: 36 },
    );
    const roles = {
      cls_token: '[CLS]',
      sep_token: '[SEP]',
      pad_token: '[PAD]',
      mask_token: '[MASK]',
    };
    for (const name of [...MODELS, 'clip-sharded', 'llama-plain-sharded']) {
      await writeFile(path.join(root, name, 'tokenizer.json'), JSON.stringify(words));
      await writeFile(path.join(root, name, 'tokenizer_config.json'), JSON.stringify(roles));
    }
    // As SigLIP's, whose texts begin with nothing.
    const startless = JSON.stringify(words)
      .replaceAll('"[CLS]"', '"<cls>"')
      .replaceAll('"[SEP]"', '"</s>"');
    const ends = { eos_token: '</s>', pad_token: '</s>', unk_token: '[UNK]' };
    for (const name of ['siglip', 'siglip-border']) {
      await writeFile(path.join(root, name, 'tokenizer.json'), startless);
      await writeFile(path.join(root, name, 'tokenizer_config.json'), JSON.stringify(ends));
    }
  });
  after(() => {
    engine.close();
  });

  const begin = async (
    recipe: string,
    overrides: readonly string[],
    { stage, init }: { readonly stage?: string; readonly init: readonly object[] },
  ) => {
    const folder = folderOf(`run-${runs++}`);
    await mkdir(folder);
    const given = stage === undefined ? {} : { stage };
    const made = await makeRunFolder(folder, {
      ...{ recipe, ...given },
      overrides: [...overrides, set('init', init)],
    });
    return { folder, ...made };
  };

  /** What a whole model computes with these parameters, and what it is to. */
  const compare = async (name: string, params: TensorTree): Promise<void> => {
    const config = JSON.parse(
      await readFile(path.join(folderOf(name), 'config.json'), 'utf8'),
    ) as object;
    const { form, outputs } = architectureOf(config as Record<string, unknown>);
    const own = new Map(leavesOf(params));
    const ordered = leavesOf(form).map(([leaf]) => own.get(leaf)!);
    const reference = await readTensors(path.join(folderOf(name), 'reference.safetensors'));
    const inputs: Record<string, tf.Tensor> = {};
    for (const [key, tensor] of reference) {
      const input = /^input\.(.*)$/.exec(key)?.[1];
      const isInteger = /^(ids|segments|softIds|softRows|labels)$/.test(input ?? '');
      if (input !== undefined) inputs[input] = isInteger ? tf.cast(tensor, 'int32') : tensor;
    }
    for (const [output, tensor] of Object.entries(outputs(withLeaves(form, ordered), inputs))) {
      const difference = await largestDifference(tensor, reference.get(`output.${output}`)!);
      assert.ok(difference <= TOLERANCE, `${name}: ${output} is off by ${difference}`);
    }
  };

  const clip = [
    ...PICTURES,
    set('model.vision', VISION),
    set('model.text', { ...TEXT, maxTokens: 11 }),
    'model.embedding=20',
  ];
  for (const folder of ['clip', 'clip-sharded']) {
    it(`CLIP from ${folder}: the same embeddings, to the bit the same from one file or several`, async () => {
      const { params, folder: run } = await begin('clip', clip, {
        init: [{ from: folderOf(folder) }],
      });
      await compare('clip', params);
      if (folder === 'clip') return;
      assert.ok(
        (await readdir(folderOf(folder))).filter((file) => file.endsWith('.safetensors')).length >
          2,
      );
      const again = await begin('clip', clip, { init: [{ from: folderOf('clip') }] });
      const bytes = (from: string): Promise<Buffer> => readFile(path.join(from, INITIAL_FILE));
      assert.ok((await bytes(run)).equals(await bytes(again.folder)));
    });
  }

  for (const [name, frameSize] of [
    ['siglip', 16],
    ['siglip-border', 18],
  ] as const) {
    it(`${name}, whose texts begin with no special token: the same embeddings`, async () => {
      const siglip = [
        ...PICTURES,
        `data.frameSize=${frameSize}`,
        set('model.vision', { ...VISION, width: 24, heads: 3 }),
        set('model.text', { ...TEXT, maxTokens: 7 }),
      ];
      const { params } = await begin('siglip', siglip, { init: [{ from: folderOf(name) }] });
      await compare(name, params);
    });
  }

  const language = (kind: string, more: object) =>
    set('model.language', { kind, width: 24, mlpWidth: 40, heads: 3, ...more });
  const llama = language('llama', { layers: 2, keyValueHeads: 1, maxPositions: 64, tied: false });
  const opt = language('opt', { layers: 6, keyValueHeads: 3, maxPositions: 40, tied: true });
  // OPT has a place for each token of a conversation and its answer.
  const short = ['model.length=30', 'model.maxAnswerTokens=8'];
  for (const [name, own] of [
    ['llama-plain', [llama]],
    ['llama-plain-sharded', [llama]],
    ['opt-pre', [opt, ...short]],
  ] as const) {
    it(`a language model from ${name}: the same logits`, async () => {
      const { params } = await begin('blip2', own, {
        stage: 'language',
        init: [{ from: folderOf(name) }],
      });
      await compare(name.replace('-sharded', ''), params);
    });
  }

  it("BLIP-2's frozen parts from a ViT and an OPT, each where it belongs", async () => {
    const { folder, system } = await begin(
      'blip2',
      [
        ...PICTURES,
        set('model.vision', { ...VISION, width: 24, heads: 3, kind: 'vit', epsilon: 1e-12 }),
        ...[opt, ...short],
      ],
      {
        stage: 'generate',
        init: [
          { from: folderOf('opt-pre'), as: 'language' },
          { from: folderOf('vit'), take: 'vit', as: 'vision' },
        ],
      },
    );
    const written = await readSafetensorsStream(
      (async function* () {
        yield await readFile(path.join(folder, INITIAL_FILE));
      })(),
    );
    for (const [name, prefix] of [
      ['opt-pre', 'language'],
      ['vit', 'vision'],
    ] as const) {
      const { tensors } = await openInitialSource(folderOf(name));
      for (const [own, tensor] of tensors) {
        if (own.startsWith('pooler')) continue;
        const target = `${prefix}/${own.replace(/^vit\//, '')}`;
        const found = Buffer.from(written.get(target)!.data);
        assert.ok(found.equals(await tensor.read()), target);
      }
    }
    assert.ok(Object.keys(system.frozen).some((key) => key.includes('vision')));
  });

  it("BLIP-2's first stage with vision and Q-Former of BLIP-2", async () => {
    const { params } = await begin(
      'blip2',
      [
        ...PICTURES,
        set('model.vision', { ...VISION, kind: 'vit', epsilon: 1e-6 }),
        set('model.qFormer', {
          queries: 4,
          width: 24,
          layers: 10,
          heads: 3,
          mlpWidth: 40,
          crossEvery: 2,
        }),
        ...['model.embedding=20', 'model.textLength=11'],
        'train.frozen=[]',
      ],
      { stage: 'represent', init: [{ from: folderOf('blip-2') }] },
    );
    await compare('blip-2', params);
  });

  /** As the first releases are: norms with other names, and a tokenizer whose special tokens are not told. */
  const asFirstReleased = async (name: string): Promise<string> => {
    const folder = folderOf(`${name}-first`);
    await cp(folderOf(name), folder, { recursive: true });
    const file = path.join(folder, 'model.safetensors');
    const { tensors } = decodeSafetensors(await readFile(file));
    const old = [...tensors].map(([key, tensor]): [string, TensorData] => [
      key
        .replace(/LayerNorm\.weight$/, 'LayerNorm.gamma')
        .replace(/LayerNorm\.bias$/, 'LayerNorm.beta'),
      tensor,
    ]);
    await writeFile(file, encodeSafetensors(new Map(old)));
    const said = { do_lower_case: true, model_max_length: 512 };
    await writeFile(path.join(folder, 'tokenizer_config.json'), JSON.stringify(said));
    return folder;
  };
  const videoBert = async (bert: string): Promise<void> => {
    const take = (from: string, as: string, more: object = {}) => ({
      ...{ from: bert, take: from, as, ...more },
    });
    const { params } = await begin(
      'videobert',
      [
        ...[
          'model.width=24',
          'model.layers=5',
          'model.heads=3',
          'model.mlpRatio=2',
          'model.blocks=bert',
        ],
        ...['model.maxTextTokens=4', 'data.windows=2', 'model.visualBranching=2'],
      ],
      {
        init: [
          take('bert/embedding/words', 'text'),
          take('bert/embedding/position', 'position', { firstRows: [''] }),
          take('bert/embedding/segment', 'segment'),
          take('bert/embedding/norm', 'embeddingNorm'),
          take('bert/blocks', 'blocks'),
          take('wordHead', 'textHead'),
        ],
      },
    );
    const reference = await readTensors(
      path.join(folderOf('bert-double'), 'reference.safetensors'),
    );
    const padded = (name: string): tf.Tensor2D => {
      const given = reference.get(`input.${name}`) as tf.Tensor2D;
      return tf.pad(given, [
        [0, 0],
        [0, 9 - given.shape[1]],
      ]);
    };
    const places = tf.tile(tf.reshape(tf.range(0, 7, 1, 'int32'), [1, 7]), [3, 1]);
    const batch = {
      ids: tf.cast(padded('ids'), 'int32'),
      ...{ segments: padded('segments'), present: padded('present') },
      ...{ textPositions: places, visualPositions: places },
    };
    const { text } = videoBertLogits(
      params as VideoBertParams,
      tf.zeros([4, 3]),
      batch as unknown as VideoBertBatch,
      { numHeads: 3, blocks: 'bert' },
    );
    const wanted = reference.get('output.logits')!;
    const difference = await largestDifference(tf.reshape(text, wanted.shape), wanted);
    assert.ok(difference <= TOLERANCE, `off by ${difference}`);
  };
  it('VideoBERT with the words and blocks of a BERT: the same logits of hidden words', async () => {
    await videoBert(folderOf('bert-double'));
  });
  it('and of a BERT whose files are as those of the first releases', async () => {
    await videoBert(await asFirstReleased('bert-double'));
  });

  void describe('is refused', () => {
    const refused = async (
      init: readonly object[],
      wanted: RegExp,
      overrides: readonly string[] = clip,
    ): Promise<void> => {
      await assert.rejects(
        begin('clip', overrides, { init }),
        (error: Error & { code?: string }) => {
          assert.match(`${error.code ?? ''}: ${error.message}`, wanted);
          return true;
        },
      );
    };
    const changed = async (name: string, change: (config: Record<string, unknown>) => object) => {
      const folder = folderOf(`changed-${runs++}`);
      await cp(folderOf(name), folder, { recursive: true });
      const file = path.join(folder, 'config.json');
      const config = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
      await writeFile(file, JSON.stringify(change(config)));
      return folder;
    };

    it('of an architecture that is not known', async () => {
      const from = await changed('clip', (config) => ({ ...config, model_type: 'gpt_neox' }));
      await refused(
        [{ from }],
        /PRETRAINED_CONFIG: .*changed-\d+ is of the architecture gpt_neox; .* bert, .*llama/,
      );
    });

    it('where there is nothing, or a file is missing', async () => {
      await refused(
        [{ from: folderOf('none') }],
        /INIT_INVALID: .*none, and there is no such folder/,
      );
      const from = folderOf(`cut-${runs++}`);
      await cp(folderOf('clip-sharded'), from, { recursive: true });
      const [first] = (await readdir(from)).filter((file) => file.endsWith('.safetensors'));
      await rm(path.join(from, first!));
      await refused([{ from }], /PRETRAINED_UNREADABLE: .*cut-\d+\/model-00001-of-.*ENOENT/);
    });

    it('whose index leads out of the folder', async () => {
      const from = folderOf(`out-${runs++}`);
      await cp(folderOf('clip-sharded'), from, { recursive: true });
      const file = path.join(from, 'model.safetensors.index.json');
      const index = JSON.parse(await readFile(file, 'utf8')) as {
        weight_map: Record<string, string>;
      };
      index.weight_map['logit_scale'] = '../clip/model.safetensors';
      await writeFile(file, JSON.stringify(index));
      await refused([{ from }], /PRETRAINED_UNREADABLE: .*names files outside of the folder/);
    });

    it('with tensors that do not fit, by both paths and shapes', async () => {
      await refused(
        [{ from: folderOf('clip') }],
        /INIT_INVALID: init\[0\] \(.*clip\): text\/words \(text_model\.embeddings\.token_embedding\.weight\) is \[37, 24\], and text\/words of this model is \[50, 24\]/,
        [...clip, 'model.text.vocabulary=50'],
      );
    });

    it('that computes something else with weights that fit', async () => {
      await refused(
        [{ from: folderOf('clip') }],
        /INIT_INVALID: .*vision\/.*heads is 4 there and 8 in this model/,
        [...clip, 'model.vision.heads=8'],
      );
      const own = [
        language('llama', { layers: 2, keyValueHeads: 3, maxPositions: 64, tied: false }),
      ];
      await assert.rejects(
        begin('blip2', own, { stage: 'language', init: [{ from: folderOf('llama-linear') }] }),
        /ropeScaling is .*linear.* there and none in this model/,
      );
    });

    it('for names that it has not, or that the model has not', async () => {
      const from = folderOf('clip');
      await refused([{ from, skip: ['audio'] }], /skip names audio, which it does not have/);
      await refused(
        [{ from, take: 'vision', as: 'visoin' }],
        /visoin\/.*, which the model does not have/,
      );
      await refused([{ from, take: 'sound' }], /it has no weights below sound/);
    });
  });

  it("the words' own tokenizer comes along, with its special tokens and all rows of the table", async () => {
    const from = folderOf('llama-plain');
    await cp(path.join(folderOf('llama2'), 'tokenizer.json'), path.join(from, 'tokenizer.json'));
    const special = { bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>' };
    await writeFile(path.join(from, 'tokenizer_config.json'), JSON.stringify(special));
    const entry = { from, take: '', as: '', skip: [], firstRows: [] };
    assert.deepEqual(await initialWords([{ ...entry, take: 'blocks' }], [from]), []);
    const words = await initialWords([entry], [from]);
    assert.deepEqual(words, [{ folder: from, rows: 37 }]);
    const folder = folderOf('words');
    await mkdir(folder);
    const context = { folder, initialWords: [{ folder: from, rows: 5000 }] };
    const own = await fitTokenizer(context as unknown as FitContext, 100);
    const theirs = await readPretrainedTokenizer(folderOf('llama2'));
    const text = 'a red circle moves <s> left';
    assert.deepEqual(own.encode(text), theirs.encode(text, { addSpecialTokens: false }));
    assert.equal(own.decode(own.encode('a red circle')), 'a red circle');
    assert.deepEqual([own.special.cls, own.special.sep], [theirs.idOf('<s>'), theirs.idOf('</s>')]);
    assert.equal(own.vocabularySize, 5000);
    assert.throws(() => own.special.mask, /has no mask_token/);
    assert.deepEqual((await readTokenizer(folder)).encode(text), own.encode(text));
  });

  it('the first rows of a longer table are taken where that is asked for', async () => {
    const shorter = [...clip, 'model.text.maxTokens=8'];
    const { params } = await begin('clip', shorter, {
      init: [{ from: folderOf('clip'), firstRows: ['text/position'] }],
    });
    const position = new Map(leavesOf(params)).get('text/position')!;
    const source = await openInitialSource(folderOf('clip'));
    const whole = await source.tensors.get('text/position')!.read();
    const values = (await position.data()) as Float32Array;
    assert.deepEqual(partsOf('text/position', position.shape)[0]!.shape, [8, 24]);
    assert.deepEqual([...values], [...new Float32Array(whole.slice().buffer)].slice(0, 8 * 24));
  });
});
