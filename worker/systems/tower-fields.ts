/** Fields of recipes for parts that several systems have, and the sizes that they come to. */
import * as z from 'zod';
import type { Activation } from '../layers/activations.ts';
import type { EncoderSizes } from '../layers/encoder.ts';
import { count, type RunConfig } from '../config-fields.ts';
import type { TextTowerSizes } from '../models/text-tower.ts';
import type { VitSizes } from '../models/vit.ts';

const blocks = {
  width: count('Width of the states'),
  layers: count('Transformer blocks'),
  heads: count('Attention heads; divides the width'),
  mlpWidth: count('Width within the MLPs'),
};

/** A stack of transformer blocks. */
export const encoderFields = z.strictObject(blocks);

/** What sees. */
export const visionFields = z.strictObject({
  ...blocks,
  patchSize: count('Height and width of a patch, pixels; divides data.frameSize'),
});

/** What reads. */
export const textFields = z.strictObject({
  ...blocks,
  maxTokens: count('Word pieces of a text, special ones included; longer text is cut', 3),
  vocabulary: count(
    'Rows of the table of word pieces; the tokenizer is trained to at most so many',
    32,
  ),
});

export type EncoderFields = z.infer<typeof encoderFields>;
export type VisionFields = z.infer<typeof visionFields>;
export type TextFields = z.infer<typeof textFields>;

interface Kind {
  readonly activation: Activation;
  readonly epsilon: number;
}

export function encoderSizes(fields: EncoderFields, kind: Kind): EncoderSizes {
  const { width, layers, heads, mlpWidth } = fields;
  return { width, numLayers: layers, numHeads: heads, mlpWidth, ...kind };
}

export function visionSizes(
  fields: VisionFields,
  picture: Pick<VitSizes, 'imageSize' | 'channels' | 'moments'>,
  kind: Kind,
): VitSizes {
  return { ...encoderSizes(fields, kind), ...picture, patchSize: fields.patchSize };
}

export function textSizes(fields: TextFields, kind: Kind): TextTowerSizes {
  const { vocabulary, maxTokens } = fields;
  return { ...encoderSizes(fields, kind), vocabulary, length: maxTokens };
}

/** What is wrong with a part's fields, if anything. */
export function checkBlocks(
  path: string,
  { width, heads }: Pick<EncoderFields, 'width' | 'heads'>,
): string | undefined {
  return width % heads === 0
    ? undefined
    : `${path}.width (${width}) is not a multiple of ${path}.heads (${heads})`;
}

/** As {@link checkBlocks}. */
/** Why boxes in shares of a medium would be elsewhere in its frames; undefined where they are not. */
export function boxesFault({ fit, augment }: RunConfig['data']): string | undefined {
  if (fit === 'stretch' && augment.crop === false && !augment.flip) return undefined;
  return (
    'data.fit and data.augment frame pictures in another way than their boxes, which are shares of whole pictures: set ' +
    'data.fit to stretch, data.augment.crop and data.augment.flip to false'
  );
}

export function checkVision(
  path: string,
  fields: VisionFields,
  data: RunConfig['data'],
): string | undefined {
  const { patchSize } = fields;
  const { frameSize } = data;
  if (frameSize % patchSize === 0) return checkPixels(data) ?? checkBlocks(path, fields);
  return `data.frameSize (${frameSize}) is not a multiple of ${path}.patchSize (${patchSize})`;
}

/** What is wrong with a clip's pixels, if anything: they go to the device four bytes in an int32. */
export function checkPixels({
  windows,
  framesPerWindow,
  frameSize,
}: RunConfig['data']): string | undefined {
  const numFrames = windows * framesPerWindow;
  if ((numFrames * frameSize ** 2 * 3) % 4 === 0) return undefined;
  return (
    `data.frameSize (${frameSize}) is odd, and the pixels of the ${numFrames} frames of a clip come to no whole number of ` +
    'four bytes: make it even, or data.windows a multiple of 4'
  );
}
