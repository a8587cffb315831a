/** Llip: the picture that is compared with a text is mixed as the text asks for. Source: Lavoie et al. 2024, arXiv:2405.00740. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { count, type RunConfig } from '../config-fields.ts';
import type { MixtureTokens } from '../layers/contextual-mix.ts';
import { contextualSigmoidSums } from '../losses/contextual-contrast.ts';
import { crossEntropySums } from '../losses/cross-entropy.ts';
import {
  initLlip,
  LLIP_COMPARISON,
  llipImages,
  llipSimilarities,
  llipTexts,
  type LlipParams,
  type LlipSizes,
} from '../models/llip.ts';
import { encoderKind } from '../part-kind.ts';
import { CLIP_PIXELS } from '../tokens/pixels.ts';
import { captionKinds, captionKindsFault, type CaptionKinds } from './caption-kinds.ts';
import { captionRecall, type CaptionRecall } from './caption-recall.ts';
import { captionedBatches } from './captioned-batch.ts';
import { decaysMatrices } from './dialogue-system.ts';
import { intArray } from './host-arrays.ts';
import {
  channelsOf,
  clipPictures,
  momentsOf,
  picturesPerClip,
  retrievalFields,
  type ClipShape,
} from './retrieval.ts';
import {
  defineSystem,
  isOneMediumWithWords,
  type HeldOutTask,
  type HostBatch,
  type Row,
  type VideoLanguageSystem,
} from './system.ts';
import { fitTokenizer, readTokenizer } from './text-assets.ts';
import { TEXT_NUMBERS, textNumbers } from './text-number.ts';
import {
  checkBlocks,
  checkVision,
  textFields,
  textSizes,
  visionFields,
  visionSizes,
} from './tower-fields.ts';

const fields = z.strictObject({
  name: z.literal('llip').describe('Lavoie et al. 2024, arXiv:2405.00740'),
  vision: visionFields.describe('The tower that sees'),
  text: textFields.describe('The tower that reads; each word sees those before it'),
  mixture: z
    .strictObject({
      tokens: count('Learned tokens beside the patches; a text mixes what became of them'),
      width: count('Width of queries, keys and values'),
      heads: count('Heads, each with weights of its own; divides the width'),
      temperature: z
        .number()
        .positive()
        .describe('What products of queries and keys are divided by before the softmax'),
    })
    .describe('How a picture becomes another one for each text'),
  embedding: count('Width of the space in which mixtures and texts are compared'),
  initialBias: z
    .number()
    .describe(
      'What is added to similarities at first; it is learned. About minus the logarithm of the rows of a global batch',
    ),
  captions: z
    .array(z.string())
    .describe(
      'Regular expressions, each a kind of caption: what it matches of a text is a caption by itself. One of a clip is ' +
        'drawn each time it comes, and no other of its own is wrong for it. Empty: texts as they are',
    ),
  ...retrievalFields,
  frames: retrievalFields.frames.describe(
    'tubelets: all frames in one sequence, those of a window in one token; bag: each frame by itself, and the tokens of all ' +
      'of them are mixed, which cannot tell their order',
  ),
  contrastChunk: count(
    'Clips that are mixed at a time for all texts of the global batch; what is mixed for a pair has the mixture width',
  ).nullable(),
});

type LlipConfig = z.infer<typeof fields>;

export const llip = defineSystem<LlipConfig, LlipParams>({
  schema: fields,
  sampleKind: 'a picture or a clip of one video, with words',
  takes: isOneMediumWithWords,
  check: ({ model: { vision, text, mixture, captions }, data }) =>
    checkVision('model.vision', vision, data) ??
    checkBlocks('model.text', text) ??
    checkBlocks('model.mixture', mixture) ??
    captionKindsFault('model.captions', captions),
  async fit(context) {
    const { vocabularySize } = await fitTokenizer(context, context.config.model.text.vocabulary);
    return `${vocabularySize} word pieces`;
  },
  async open({ config: { model, data, train }, folder, index }) {
    const tokenizer = await readTokenizer(folder);
    return llipSystem(model, { data, seed: train.seed, tokenizer, splits: index });
  },
});

export function llipSizes(
  { vision, text, mixture, embedding, frames }: LlipConfig,
  data: RunConfig['data'],
  endId: number,
): LlipSizes {
  const kind = { activation: 'quick-gelu', epsilon: 1e-5 } as const;
  const [channels, moments] = [channelsOf(frames, data), momentsOf(frames, data)];
  return {
    vision: visionSizes(vision, { imageSize: data.frameSize, channels, moments }, kind),
    text: textSizes(text, kind),
    mixtureTokens: mixture.tokens,
    mixture: { numHeads: mixture.heads, temperature: mixture.temperature },
    mixtureWidth: mixture.width,
    ...{ embedding, endId },
  };
}

type LlipBatch = {
  readonly pixels: tf.Tensor; // [B, bytes / 4] int32
  readonly ids: tf.Tensor; // [B, L] int32
  readonly captions: tf.Tensor; // [B, 2] float32, equal for captions that are read alike
  /** Those of all captions of each clip, in training alone, [B, C, 2]. */
  readonly known?: tf.Tensor;
  /** In a held-out question alone: see `captionRecall`. */
  readonly candidates?: tf.Tensor;
  readonly labels?: tf.Tensor; // [B] int32
  readonly answerWeights?: tf.Tensor; // [B]
  readonly alsoTrue?: tf.Tensor; // [B, candidates]
  /** By which candidate's query each is mixed, [B, K] int32; its own unless given. */
  readonly askedBy?: tf.Tensor;
};

/** What is added to the similarity of an answer that is not to be given. */
const NO_ANSWER = -1e9;

function llipSystem(
  config: LlipConfig,
  {
    data,
    seed,
    tokenizer,
    splits,
  }: {
    readonly data: RunConfig['data'];
    readonly seed: number;
    readonly tokenizer: Tokenizer;
    readonly splits: { readonly heldOut: readonly Sample[] };
  },
): VideoLanguageSystem<LlipParams> {
  const { vision, text, mixture, frames, contrastChunk } = config;
  const sizes = llipSizes(config, data, tokenizer.special.sep);
  const shape: ClipShape = { data, frames, pixels: CLIP_PIXELS };
  const see = (params: LlipParams, pixels: tf.Tensor): MixtureTokens =>
    llipImages(params, clipPictures(pixels, shape), picturesPerClip(shape), sizes);
  const { idsOf, textArray, assemble, similarity } = captionedBatches({
    ...{ tokenizer, maxTokens: text.maxTokens, hasStart: true },
    tokensOfClip:
      picturesPerClip(shape) * mixture.tokens +
      data.windows *
        (frames === 'bag' ? data.framesPerWindow : 1) *
        (data.frameSize / vision.patchSize) ** 2,
  });
  const kinds = captionKinds(config.captions);
  const captionsOf = ({ text: whole }: Sample): string[] =>
    kinds.of(whole).map(({ caption }) => caption);
  const training = (rows: readonly Row[]): HostBatch => {
    const own = rows.map(({ sample }) => captionsOf(sample));
    const drawn = own.map((captions, i) => {
      const { epoch, number } = rows[i]!;
      return captions[openRng(seed, 'llip/caption', epoch, number).integer(captions.length)]!;
    });
    // A clip with fewer captions has its first one several times.
    const most = Math.max(1, config.captions.length);
    const padded = own.flatMap((captions) =>
      Array.from({ length: most }, (_, k) => captions[k] ?? captions[0]!),
    );
    const known = { ...textNumbers(padded.map(idsOf)), shape: [rows.length, most, TEXT_NUMBERS] };
    const batch = assemble(rows, drawn);
    return { ...batch, arrays: { ...batch.arrays, known } };
  };
  // In turn: with as many draws as there are kinds, each clip is asked for each of its captions.
  const asked = ({ sample, number, epoch }: Row): string => {
    const captions = captionsOf(sample);
    return captions[(number + epoch) % captions.length]!;
  };
  const recall = captionRecall({
    ...{ seed, heldOut: splits.heldOut, idsOf, textArray },
    assemble: (rows) => assemble(rows, rows.map(asked)),
    ...(config.captions.length > 0 && { several: { of: captionsOf, asked } }),
  });
  const exchanged = exchangedRecall(recall, kinds, splits.heldOut);

  return {
    name: 'llip',
    objectives: { contrastive: 1 },
    heldOutTasks: [recall],
    ...(exchanged === undefined ? {} : { furtherTasks: [exchanged] }),
    init: (initializer) => initLlip(sizes, initializer, { bias: config.initialBias }),
    kinds: {
      vision: encoderKind(sizes.vision),
      text: encoderKind(sizes.text),
      query: { heads: mixture.heads, temperature: mixture.temperature },
      keyValue: { heads: mixture.heads, temperature: mixture.temperature },
    },
    frozen: {},
    decays: decaysMatrices,
    assemble: training,
    similarity: {
      ...similarity,
      clips(params, _frozen, batch) {
        const { keys, values } = see(params, (batch as LlipBatch).pixels);
        return tf.concat([keys, values], -1);
      },
      texts(params, _frozen, batch) {
        const { queries, texts } = llipTexts(params, { ids: (batch as LlipBatch).ids }, sizes);
        return tf.concat([queries, texts], -1);
      },
      captionsOf,
      compare({ output }, _frozen, clips, texts) {
        const width = mixture.width;
        const [keys, values] = tf.split(
          tf.reshape(clips, [clips.shape[0], -1, 2 * width]),
          2,
          -1,
        ) as [tf.Tensor, tf.Tensor];
        const [queries, own] = tf.split(texts, [width, config.embedding], -1) as [
          tf.Tensor,
          tf.Tensor,
        ];
        return llipSimilarities(output, { keys, values }, { queries, texts: own }, sizes.mixture);
      },
    },
    sums(params, _frozen, batch) {
      const given = batch as LlipBatch;
      if (given.candidates === undefined) return {};
      const ids = tf.reshape(given.candidates, [-1, text.maxTokens]);
      const texts = llipTexts(params, { ids }, sizes);
      const queries =
        given.askedBy === undefined
          ? texts.queries
          : tf.gather(texts.queries, tf.reshape(given.askedBy, [-1]));
      const tokens = see(params, given.pixels);
      const scores = llipSimilarities(params.output, tokens, { ...texts, queries }, sizes.mixture);
      const shown =
        given.alsoTrue === undefined ? scores : tf.add(scores, tf.mul(given.alsoTrue, NO_ANSWER));
      return { contrastive: crossEntropySums(shown, given.labels!, given.answerWeights!) };
    },
    contrast: {
      objectives: ['contrastive'],
      parameters: LLIP_COMPARISON,
      embed(params, _frozen, batch) {
        const { pixels, ids, captions, known } = batch as Required<LlipBatch>;
        return {
          ...see(params, pixels),
          ...llipTexts(params, { ids }, sizes),
          ...{ captionIds: captions, knownIds: known },
        };
      },
      sums: ({ output, logitScale, logitBias }, embeddings) => {
        const {
          keys,
          values,
          queries,
          texts,
          captionIds: textIds,
          knownIds,
        } = embeddings as Record<
          'keys' | 'values' | 'queries' | 'texts' | 'captionIds' | 'knownIds',
          tf.Tensor
        >;
        return {
          contrastive: contextualSigmoidSums(
            { keys, values, queries, texts, textIds, knownIds },
            { output: output.kernel, scale: tf.exp(logitScale), bias: logitBias },
            sizes.mixture,
            contrastChunk ?? undefined,
          ),
        };
      },
    },
  };
}

/**
 * The same question, but each text is compared with what is mixed for one of the next kind: what is left without the own
 * mixture. Undefined where there is one kind alone.
 */
function exchangedRecall(
  recall: CaptionRecall,
  kinds: CaptionKinds,
  heldOut: readonly Sample[],
): HeldOutTask | undefined {
  const kindOf = new Map(
    heldOut.flatMap(({ text }) => kinds.of(text)).map(({ kind, caption }) => [caption, kind]),
  );
  const places = new Map<number, number[]>();
  for (const [place, caption] of recall.candidates.entries()) {
    const kind = kindOf.get(caption)!;
    places.set(kind, [...(places.get(kind) ?? []), place]);
  }
  const all = [...places.keys()].sort((a, b) => a - b);
  if (all.length < 2) return undefined;
  const askedBy = new Map<number, number>();
  for (const [i, kind] of all.entries()) {
    const next = places.get(all[(i + 1) % all.length]!)!;
    for (const [k, place] of places.get(kind)!.entries())
      askedBy.set(place, next[k % next.length]!);
  }
  return {
    ...recall,
    name: `${recall.name}, mixed for another kind`,
    assemble(rows) {
      const batch = recall.assemble(rows);
      const [numRows, perRow] = batch.arrays['candidates']!.shape as [number, number];
      const other = intArray(numRows, perRow);
      // Those that fill the last rows up are the first candidate again.
      for (const i of other.data.keys()) other.data[i] = askedBy.get(i) ?? askedBy.get(0)!;
      return { ...batch, arrays: { ...batch.arrays, askedBy: other } };
    },
  };
}
