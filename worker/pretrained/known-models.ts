/**
 * The models of transformers that are known here by their own names: parameters, names and sizes of each, by the
 * `model_type` of its `config.json`.
 */
import { openInitializer, shapesOnly } from '../initializer.ts';
import { initDense, type DenseParams } from '../layers/dense.ts';
import { initBertPretraining } from '../models/bert.ts';
import { initBlip2 } from '../models/blip2.ts';
import { initClip } from '../models/clip.ts';
import { initFlava } from '../models/flava.ts';
import { initLlama } from '../models/llama.ts';
import { initOpt } from '../models/opt.ts';
import { initSiglip } from '../models/siglip.ts';
import { initVideoLlava } from '../models/video-llava.ts';
import { initVisualBert } from '../models/visual-bert.ts';
import { initVit, type VitParams } from '../models/vit.ts';
import { encoderKind, llamaKind, optKind, type PartKinds } from '../part-kind.ts';
import type { TensorTree } from '../tree.ts';
import { BERT_WEIGHTS, bertConfigJson, bertSizesOf } from './bert.ts';
import { blip2ConfigJson, blip2SizesOf, blip2Weights } from './blip2.ts';
import { clipConfigJson, clipSizesOf, clipWeights } from './clip.ts';
import { flavaConfigJson, flavaSizesOf, flavaWeights } from './flava.ts';
import { llamaConfigJson, llamaConfigOf, llamaWeights } from './llama.ts';
import { OPT_WEIGHTS, optConfigJson, optConfigOf } from './opt.ts';
import { PretrainedError } from './pretrained-error.ts';
import { siglipConfigJson, siglipSizesOf, siglipWeights } from './siglip.ts';
import type { TensorSource } from './tensor-source.ts';
import { videoLlavaConfigJson, videoLlavaConfigOf, videoLlavaWeights } from './video-llava.ts';
import { VISUAL_BERT_WEIGHTS, visualBertConfigJson, visualBertSizesOf } from './visual-bert.ts';
import { vitConfigJson, vitSizesOf, vitWeights } from './vit.ts';
import type { WeightTable } from './weight-table.ts';

export type HuggingFaceConfig = Readonly<Record<string, unknown>>;

/** A model whose parameters' type is that of `form`, which has no values. */
export interface KnownModel<P extends TensorTree = TensorTree> {
  readonly form: P;
  readonly table: WeightTable;
  /** The `config.json` of an export. */
  readonly json: HuggingFaceConfig;
  readonly kinds: PartKinds;
  /** Our path of its table of words, which goes with its tokenizer. */
  readonly words?: string;
  /** What its names begin with here and not in files of the model without its heads, or the other way round. */
  readonly prefix?: string;
}

export function bertModel(config: HuggingFaceConfig) {
  const sizes = bertSizesOf(config);
  return {
    ...{ sizes, form: initBertPretraining(sizes, shapesOnly()), table: BERT_WEIGHTS },
    json: bertConfigJson(sizes),
    kinds: { bert: encoderKind(sizes, 'behind') },
    ...{ words: 'bert/embedding/words', prefix: 'bert.' },
  };
}

export function visualBertModel(config: HuggingFaceConfig) {
  const sizes = visualBertSizesOf(config);
  return {
    // With values: some of its tables begin as copies of others.
    ...{ sizes, form: initVisualBert(sizes, openInitializer(0)), table: VISUAL_BERT_WEIGHTS },
    json: visualBertConfigJson(sizes),
    kinds: { bert: encoderKind(sizes, 'behind') },
    ...{ words: 'bert/embedding/words', prefix: 'visual_bert.' },
  };
}

export function vitModel(config: HuggingFaceConfig) {
  const sizes = vitSizesOf(config);
  const form: { vit: VitParams; pooler: DenseParams } = {
    vit: initVit(sizes, shapesOnly()),
    pooler: initDense(shapesOnly(), 'pooler', sizes.width, sizes.width),
  };
  return {
    ...{ sizes, form, table: vitWeights(sizes), json: vitConfigJson(sizes) },
    ...{ kinds: { vit: encoderKind(sizes) }, prefix: 'vit.' },
  };
}

export function clipModel(config: HuggingFaceConfig) {
  const sizes = clipSizesOf(config);
  return {
    ...{ sizes, form: initClip(sizes, shapesOnly()), table: clipWeights(sizes) },
    json: clipConfigJson(sizes),
    kinds: { vision: encoderKind(sizes.vision), text: encoderKind(sizes.text) },
    words: 'text/words',
  };
}

export function siglipModel(config: HuggingFaceConfig) {
  const sizes = siglipSizesOf(config);
  const [vision, text] = [encoderKind(sizes.vision), encoderKind(sizes.text)];
  return {
    ...{ sizes, form: initSiglip(sizes, shapesOnly()), table: siglipWeights(sizes) },
    json: siglipConfigJson(sizes),
    kinds: { vision, visionHead: vision, text },
    words: 'text/words',
  };
}

export function blip2Model(config: HuggingFaceConfig) {
  const sizes = blip2SizesOf(config);
  return {
    ...{ sizes, form: initBlip2(sizes, shapesOnly()), table: blip2Weights(sizes) },
    json: blip2ConfigJson(sizes),
    kinds: { vision: encoderKind(sizes.vision), qFormer: encoderKind(sizes.qFormer, 'behind') },
    words: 'text/words',
  };
}

export function flavaModel(config: HuggingFaceConfig) {
  const sizes = flavaSizesOf(config);
  const { image, text, joint } = sizes;
  return {
    ...{ sizes, form: initFlava(sizes, shapesOnly()), table: flavaWeights(sizes) },
    json: flavaConfigJson(sizes),
    kinds: { image: encoderKind(image), text: encoderKind(text), joint: encoderKind(joint) },
    ...{ words: 'text/embedding/words', prefix: 'flava.' },
  };
}

export function videoLlavaModel(config: HuggingFaceConfig, shapes?: TensorSource['shapes']) {
  const own = videoLlavaConfigOf(config);
  const { sizes } = own;
  const vision = encoderKind(sizes.vision);
  return {
    ...{ ...own, form: initVideoLlava(sizes, shapesOnly()) },
    table: videoLlavaWeights(sizes, shapes),
    json: videoLlavaConfigJson(own, 128),
    kinds: { imageTower: vision, videoTower: vision, language: llamaKind(sizes.language) },
    words: 'language/embedding',
  };
}

export function llamaModel(config: HuggingFaceConfig) {
  const sizes = llamaConfigOf(config);
  return {
    ...{ sizes, form: initLlama(sizes, shapesOnly()), table: llamaWeights(sizes) },
    json: llamaConfigJson(sizes, 2048),
    kinds: { '': llamaKind(sizes) },
    ...{ words: 'embedding', prefix: 'model.' },
  };
}

export function optModel(config: HuggingFaceConfig) {
  const sizes = optConfigOf(config);
  return {
    ...{ sizes, form: initOpt(sizes, shapesOnly()), table: OPT_WEIGHTS },
    json: optConfigJson(sizes),
    kinds: { '': optKind(sizes) },
    ...{ words: 'embedding', prefix: 'model.' },
  };
}

const MODELS: Readonly<
  Record<string, (config: HuggingFaceConfig, shapes: TensorSource['shapes']) => KnownModel>
> = {
  bert: bertModel,
  visual_bert: visualBertModel,
  vit: vitModel,
  clip: clipModel,
  siglip: siglipModel,
  'blip-2': blip2Model,
  flava: flavaModel,
  video_llava: videoLlavaModel,
  llama: llamaModel,
  opt: optModel,
};

/**
 * @param place for messages
 * @throws PretrainedError `PRETRAINED_CONFIG` for an architecture that is not known, or one that is configured in a way
 *   that it is not known in
 */
export function knownModelOf(
  config: HuggingFaceConfig,
  { place, shapes }: { readonly place: string; readonly shapes: TensorSource['shapes'] },
): KnownModel {
  const type = config['model_type'];
  const open = typeof type === 'string' && Object.hasOwn(MODELS, type) ? MODELS[type] : undefined;
  if (open === undefined) {
    throw new PretrainedError(
      'PRETRAINED_CONFIG',
      `${place} is of the architecture ${typeof type === 'string' ? type : '(none in its config.json)'}; ` +
        `those that can be loaded are ${Object.keys(MODELS).join(', ')}`,
    );
  }
  try {
    return open(config, shapes);
  } catch (error) {
    if (!(error instanceof PretrainedError)) throw error;
    throw new PretrainedError('PRETRAINED_CONFIG', `${place}: ${error.message}`, error);
  }
}
