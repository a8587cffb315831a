/**
 * BLIP-2, second stage: what the Q-Former's queries have read becomes a soft prompt of a frozen language model.
 * Source: Li et al. 2023, arXiv:2301.12597, sec. 3.3, for decoder-only language models.
 */
import * as z from 'zod';
import {
  openQueryPrompt,
  queryPromptFields,
  queryPromptSystem,
  type QueryPromptParams,
} from './query-prompt.ts';
import { defineSystem } from './system.ts';

const { vision, qFormer, language, ...others } = queryPromptFields;

const fields = z.strictObject({
  name: z
    .literal('blip2-generation')
    .describe('Li et al. 2023, arXiv:2301.12597, the second stage'),
  ...{ vision, qFormer, language },
  blind: z.boolean().describe('All pictures are grey; for comparison'),
  ...others,
});

export const blip2Generation = defineSystem<z.infer<typeof fields>, QueryPromptParams>({
  ...queryPromptSystem,
  schema: fields,
  open: openQueryPrompt,
});
