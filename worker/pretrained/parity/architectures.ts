/** The models that are compared with transformers': how each is opened, and what comes out of it under which names. */
import * as tf from '@tensorflow/tfjs-core';
import { causalBias, keyBias } from '../../layers/attention-mask.ts';
import { dense } from '../../layers/dense.ts';
import { addPositions, embed } from '../../layers/embedding.ts';
import { encoder, firstLayers, type EncoderSizes } from '../../layers/encoder.ts';
import { layerNorm } from '../../layers/norm.ts';
import type { BlockParams } from '../../layers/transformer-block.ts';
import { nextTokenSums } from '../../losses/next-token.ts';
import { bertLogits, bertWords, pooled, type BertInput } from '../../models/bert.ts';
import {
  blip2Contrast,
  blip2Joint,
  blip2Match,
  blip2Queries,
  type Blip2Params,
} from '../../models/blip2.ts';
import { clipImages, clipLogits, clipTexts, clipTextStates } from '../../models/clip.ts';
import type { Decoder, DecoderInputs } from '../../models/decoder.ts';
import { flavaImageStates, flavaJointStates, flavaTextStates } from '../../models/flava.ts';
import { llama } from '../../models/llama.ts';
import { opt } from '../../models/opt.ts';
import { siglipImages, siglipLogits, siglipTexts } from '../../models/siglip.ts';
import { textTower, type TextTowerParams } from '../../models/text-tower.ts';
import { videoLlavaClips, videoLlavaImages } from '../../models/video-llava.ts';
import {
  visualBertLogits,
  visualBertTokens,
  type VisualBertInput,
} from '../../models/visual-bert.ts';
import { vit, vitStates, vitTokens, type VitParams, type VitSizes } from '../../models/vit.ts';
import { mapTree, type Stacked, type TensorTree } from '../../tree.ts';
import {
  bertModel,
  blip2Model,
  clipModel,
  flavaModel,
  llamaModel,
  optModel,
  siglipModel,
  videoLlavaModel,
  visualBertModel,
  vitModel,
  type HuggingFaceConfig,
} from '../known-models.ts';
import type { WeightTable } from '../weight-table.ts';

type Named = Readonly<Record<string, tf.Tensor>>;

/** A model of an architecture with what belongs to it; the parameters' type is that of `form`. */
export interface Architecture<P extends TensorTree = TensorTree> {
  readonly form: P;
  readonly table: WeightTable;
  /** The `config.json` of an export. */
  readonly json: Readonly<Record<string, unknown>>;
  /** What goes in, [B, ...] each: `ids` and `segments` are int32, the rest float32. A pure function. */
  readonly outputs: (params: P, inputs: Named) => Named;
}

type Config = HuggingFaceConfig;

/** Opens a model from its `config.json`, by `model_type`. */
const OPENERS = {
  bert,
  visual_bert: visualBert,
  vit: visionTransformer,
  clip,
  siglip,
  'blip-2': blip2,
  flava,
  video_llava: videoLlava,
  llama: (config: Config) => {
    const { sizes, ...model } = llamaModel(config);
    return decoderArchitecture(llama(sizes), model);
  },
  opt: (config: Config) => {
    const { sizes, ...model } = optModel(config);
    return decoderArchitecture(opt(sizes), model);
  },
} as const;

/** @throws PretrainedError `PRETRAINED_CONFIG` for what a model does not have */
export function architectureOf(config: Config): Architecture {
  const open = OPENERS[config['model_type'] as keyof typeof OPENERS] as (given: Config) => unknown;
  return open(config) as Architecture;
}

/** What enters the first block, as `name.0`, and what leaves each but the last. */
function statesOf(
  name: string,
  blocks: Stacked<BlockParams>,
  first: tf.Tensor,
  { sizes, ...options }: { readonly sizes: EncoderSizes } & Parameters<typeof encoder>[3],
): Named {
  const states = [first];
  for (let i = 0; i < sizes.numLayers - 1; i++) {
    const one = { '*': mapTree(blocks['*'], (tensor) => tf.slice(tensor, i, 1)) };
    states.push(encoder(one, states[i]!, sizes, options));
  }
  return Object.fromEntries(states.map((state, i) => [`${name}.${i}`, state]));
}

function bert(config: Config) {
  const { sizes, form, table, json } = bertModel(config);
  return {
    ...{ form, table, json },
    outputs(params: typeof form, inputs: Named): Named {
      const input = inputs as BertInput & Named;
      const { words, pair } = bertLogits(params, input, sizes);
      const { embedding } = params.bert;
      const first = layerNorm(embedding.norm, bertWords(embedding, input), sizes.epsilon);
      return {
        ...{ logits: words, pair },
        ...statesOf('states', params.bert.blocks, first, {
          ...{ sizes, bias: keyBias(input.present), norm: 'post' },
        }),
      };
    },
  };
}

function visualBert(config: Config) {
  const { sizes, form, table, json } = visualBertModel(config);
  return {
    ...{ form, table, json },
    outputs(params: typeof form, inputs: Named): Named {
      const input = inputs as VisualBertInput & Named;
      const { words, pair } = visualBertLogits(params, input, sizes);
      const present = tf.concat([input.present, input.regionsPresent], 1);
      return {
        ...{ logits: words, pair },
        ...statesOf('states', params.bert.blocks, visualBertTokens(params, input, sizes), {
          ...{ sizes, bias: keyBias(present), norm: 'post' },
        }),
      };
    },
  };
}

function imageStates(name: string, params: VitParams, images: tf.Tensor, sizes: VitSizes): Named {
  return statesOf(name, params.blocks, vitTokens(params, images, sizes), { sizes });
}

function visionTransformer(config: Config) {
  const { sizes, form, table, json } = vitModel(config);
  return {
    ...{ form, table, json },
    outputs(params: typeof form, { pixels }: Named): Named {
      const last = vit(params.vit, pixels!, sizes);
      return {
        ...{ last, pooled: pooled(params.pooler, last) },
        ...imageStates('states', params.vit, pixels!, sizes),
      };
    },
  };
}

function textStates(
  params: TextTowerParams,
  ids: tf.Tensor,
  sizes: EncoderSizes,
  bias?: tf.Tensor,
): Named {
  const first = addPositions(embed(params.words, ids), params.position);
  return statesOf('text', params.blocks, first, { sizes, ...(bias && { bias }) });
}

function clip(config: Config) {
  const { sizes, form, table, json } = clipModel(config);
  return {
    ...{ form, table, json },
    outputs(params: typeof form, { pixels, ids, present }: Named): Named {
      const text = { ids: ids!, present: present! };
      const images = clipImages(params, pixels!, sizes);
      const texts = clipTexts(params, text, sizes);
      const bias = tf.add(causalBias(ids!.shape[1]!), keyBias(present!));
      return {
        logits: clipLogits(params, images, texts),
        imageEmbeddings: images,
        textEmbeddings: texts,
        imageStates: vitStates(params.vision, pixels!, sizes.vision),
        textStates: clipTextStates(params, text, sizes),
        ...imageStates('image', params.vision, pixels!, sizes.vision),
        ...textStates(params.text, ids!, sizes.text, bias),
      };
    },
  };
}

function siglip(config: Config) {
  const { sizes, form, table, json } = siglipModel(config);
  return {
    ...{ form, table, json },
    outputs(params: typeof form, { pixels, ids }: Named): Named {
      const images = siglipImages(params, pixels!, sizes);
      const texts = siglipTexts(params, { ids: ids! }, sizes);
      return {
        logits: siglipLogits(params, images, texts),
        imageEmbeddings: images,
        textEmbeddings: texts,
        imageStates: vit(params.vision, pixels!, sizes.vision),
        textStates: textTower(params.text, ids!, sizes.text),
        ...imageStates('image', params.vision, pixels!, sizes.vision),
        ...textStates(params.text, ids!, sizes.text),
      };
    },
  };
}

function blip2(config: Config) {
  const { sizes, form, table, json } = blip2Model(config);
  const { numQueries } = sizes;
  return {
    ...{ form, table, json },
    outputs(params: typeof form, { pixels, ids, present }: Named): Named {
      const text = { ids: ids!, present: present! };
      const seen = vit(params.vision, pixels!, sizes.vision);
      const { images, texts } = blip2Contrast(params, seen, text, sizes);
      const [batch, , width] = images.shape as [number, number, number];
      const pairs = tf.matMul(tf.reshape<tf.Rank.R2>(images, [-1, width]), texts, false, true);
      return {
        contrast: tf.max(tf.reshape(pairs, [batch, numQueries, batch]), 1),
        imageEmbeddings: images,
        textEmbeddings: texts,
        match: blip2Match(params, seen, text, sizes),
        imageStates: seen,
        written: blip2Joint(params, seen, text, sizes, 'write'),
        'queries.2': blip2Queries(withGroups(params, 2), seen, sizes),
        queries: blip2Queries(params, seen, sizes),
        ...imageStates('image', params.vision, pixels!, sizes.vision),
      };
    },
  };
}

function withGroups(params: Blip2Params, count: number): Blip2Params {
  const { qFormer } = params;
  return { ...params, qFormer: { ...qFormer, groups: firstLayers(qFormer.groups, count) } };
}

function flava(config: Config) {
  const { sizes, form, table, json } = flavaModel(config);
  return {
    ...{ form, table, json },
    outputs(params: typeof form, inputs: Named): Named {
      const { pixels, present, maskedPatches } = inputs;
      const input = inputs as BertInput & Named;
      const { image, text, joint } = params;
      const seen = flavaImageStates(params, pixels!, sizes);
      const hidden = flavaImageStates(params, pixels!, sizes, { hidden: maskedPatches! });
      const read = flavaTextStates(params, input, sizes);
      const imageLast = layerNorm(image.finalNorm, seen, sizes.image.epsilon);
      const textLast = layerNorm(text.finalNorm, read, sizes.text.epsilon);
      const jointLast = flavaJointStates(params, seen, read, present!, sizes);
      const { embedding } = text;
      const first = layerNorm(embedding.norm, bertWords(embedding, input), sizes.text.epsilon);
      return {
        imageStates: imageLast,
        textStates: textLast,
        jointStates: jointLast,
        imagePooled: pooled(image.pooler, imageLast),
        textPooled: pooled(text.pooler, textLast),
        jointPooled: pooled(joint.pooler, jointLast),
        imageProjected: dense(params.imageProjection, imageLast),
        textProjected: dense(params.textProjection, textLast),
        maskedJointStates: flavaJointStates(params, hidden, read, present!, sizes),
        scale: tf.reshape(params.logitScale, [1]),
        ...imageStates('image', image, pixels!, sizes.image),
        ...statesOf('text', text.blocks, first, { sizes: sizes.text, bias: keyBias(present!) }),
      };
    },
  };
}

function videoLlava(config: Config) {
  const { sizes, imageId, videoId, form, table, json } = videoLlavaModel(config);
  const decoder = llama(sizes.language);
  return {
    ...{ form, table, json },
    outputs(params: typeof form, { ids, present, pixels, clips }: Named): Named {
      const images = videoLlavaImages(params, pixels!, sizes);
      const films = videoLlavaClips(params, clips!, sizes);
      const [image, video] = [placesOf(ids!, imageId), placesOf(ids!, videoId)];
      const offset = tf.scalar(images.shape[1]!, 'int32');
      const softRows = tf.where(
        tf.greaterEqual(image, 0),
        image,
        tf.where(tf.greaterEqual(video, 0), tf.add(video, offset), video),
      );
      const soft = tf.concat([images, films], 1);
      const inputs = { ids: ids!, present: present!, soft, softRows };
      const logits = decoder.logits(params.language, decoder.states(params.language, inputs));
      return { logits: shown(logits, present!), images, clips: films };
    },
  };
}

/** Of each row, which of the places of an id this is, from 0; -1 for other ids, [B, L] int32. */
function placesOf(ids: tf.Tensor, id: number): tf.Tensor {
  const isHere = tf.cast(tf.equal(ids, tf.scalar(id, 'int32')), 'float32');
  const number = tf.mul(tf.cumsum(isHere, 1), isHere);
  return tf.cast(tf.sub(number, 1), 'int32');
}

/** Nothing at padding. */
function shown(x: tf.Tensor, present: tf.Tensor): tf.Tensor {
  return tf.mul(x, tf.expandDims(present, -1));
}

/** A decoder on tokens of which some are soft: words, twice as large, whose gradient reaches the table of words. */
function decoderArchitecture<P extends TensorTree>(
  decoder: Decoder<P>,
  parts: Omit<Architecture<P>, 'outputs'>,
) {
  return {
    ...parts,
    outputs(params: P, { ids, present, softIds, softRows, labels }: Named): Named {
      const plain: DecoderInputs = { ids: ids!, present: present! };
      const soft = tf.mul(decoder.embed(params, softIds!), 2);
      const states = decoder.states(params, { ...plain, soft, softRows: softRows! });
      const logits = decoder.logits(params, states);
      const { lossSum } = nextTokenSums(logits, labels!);
      const counted = tf.greaterEqual(tf.slice(labels!, [0, 1]), tf.scalar(0, 'int32'));
      const within = decoder.hiddenStates(params, plain).slice(0, -1);
      return {
        logits: shown(logits, present!),
        loss: tf.reshape(tf.div(lossSum, tf.sum(tf.cast(counted, 'float32'))), [1]),
        plain: shown(decoder.logits(params, decoder.states(params, plain)), present!),
        ...(Object.fromEntries(
          within.map((state, i) => [`states.${i}`, shown(state, present!)]),
        ) as Named),
      };
    },
  };
}
