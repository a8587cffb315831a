/** A Q-Former: its fields in recipes, and the sizes they make. */
import * as z from 'zod';
import { count } from '../config-fields.ts';
import type { QFormerSizes } from '../models/q-former.ts';

export const qFormerFields = z
  .strictObject({
    queries: count('Learned queries'),
    width: count('Width of the Q-Former'),
    layers: count('Its layers'),
    heads: count('Its attention heads'),
    mlpWidth: count('Width of its MLPs'),
    crossEvery: count('Every so many layers, from the first on, the queries look at what is seen'),
  })
  .describe('The transformer whose queries read what is seen');

export type QFormerConfig = z.infer<typeof qFormerFields>;

export function qFormerSizes(
  { width, layers: numLayers, heads: numHeads, mlpWidth, crossEvery }: QFormerConfig,
  { contextWidth, hasText }: { readonly contextWidth: number; readonly hasText: boolean },
): QFormerSizes {
  return {
    ...{ width, numLayers, numHeads, mlpWidth, crossEvery, contextWidth, hasText },
    ...{ activation: 'gelu', epsilon: 1e-12 },
  };
}

/** What is wrong with the fields taken together, if anything. */
export function qFormerFault({ width, heads }: QFormerConfig): string | undefined {
  return width % heads === 0
    ? undefined
    : `model.qFormer.width (${width}) is not a multiple of its heads (${heads})`;
}
