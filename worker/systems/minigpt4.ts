/**
 * MiniGPT-4: what BLIP-2's frozen Q-Former reads goes through one linear layer into a frozen language model, and nothing
 * but that layer is trained: first on pictures and captions, then on a conversation's questions. Source: Zhu et al. 2023,
 * arXiv:2304.10592, sec. 3, and its released code (Vision-CAIR/MiniGPT-4, minigpt4/models/minigpt4.py).
 */
import * as z from 'zod';
import {
  openQueryPrompt,
  queryPromptFields,
  queryPromptSystem,
  type QueryPromptParams,
} from './query-prompt.ts';
import { defineSystem } from './system.ts';

const fields = z.strictObject({
  name: z.literal('minigpt4').describe('Zhu et al. 2023, arXiv:2304.10592'),
  permuted: z
    .boolean()
    .describe('Each conversation has the picture of another one of its microbatch; for comparison'),
  ...queryPromptFields,
});

/** All parameters but those of the one layer. */
const FROZEN = ['vision', 'queries', 'qFormer', 'language'];

export const miniGpt4 = defineSystem<z.infer<typeof fields>, QueryPromptParams>({
  ...queryPromptSystem,
  schema: fields,
  check(config) {
    const trained = FROZEN.filter((part) => !config.train.frozen.includes(part));
    return (
      queryPromptSystem.check(config) ??
      (trained.length === 0
        ? undefined
        : `one linear layer is trained and nothing else: add ${trained.join(', ')} to train.frozen`)
    );
  },
  open: openQueryPrompt,
});
