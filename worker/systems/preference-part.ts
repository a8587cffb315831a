/** Two answers to one question in a dialogue system: fields, which samples have them, and how they become a batch. */
import * as tf from '@tensorflow/tfjs-core';
import * as z from 'zod';
import { openRng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';
import type { RunConfig } from '../config-fields.ts';
import { PREFERENCE_LOSSES, preferenceSums, type PreferenceLoss } from '../losses/preference.ts';
import type { ObjectiveSums } from '../losses/cross-entropy.ts';
import type { TokenScores } from '../losses/next-token.ts';
import { turnsOf, type Turn } from './dialogue.ts';
import type { ModelConfig } from './system.ts';

export const preferenceFields = z.strictObject({
  loss: z
    .enum(PREFERENCE_LOSSES)
    .describe('sigmoid: DPO, Rafailov et al. 2023, arXiv:2305.18290; ipo: arXiv:2310.12036'),
  beta: z
    .number()
    .positive()
    .describe('How dear it is to leave the model that the run begins with; less: further away'),
  labelSmoothing: z
    .number()
    .min(0)
    .lt(0.5, 'expected less than 0.5')
    .describe('How often a preference is taken to be the wrong way round; of sigmoid alone'),
  answerWeight: z
    .number()
    .min(0)
    .describe('Weight of the next-token loss of the preferred answers beside it; 0: none'),
  shuffled: z.boolean().describe('Which answer is preferred is drawn by lot; for comparison'),
});

export type PreferenceConfig = z.infer<typeof preferenceFields>;

/** Objective of the pairs. */
export const PREFERENCE = 'preference';
/** What is no loss, but how far the rewards of the two answers are apart on average. */
export const REWARD_MARGIN = 'reward margin';

export interface PreferenceTurn extends Turn {
  readonly rejected: string;
}

/** The question of a sample that has two answers; undefined where none has. */
export function preferenceOf(sample: Sample): PreferenceTurn | undefined {
  // A sample with two answers is a conversation: nothing is described.
  return turnsOf(sample, '').find((turn): turn is PreferenceTurn => turn.rejected !== undefined);
}

/** What a training run sees of it: `shuffled`, half of the preferences are the wrong way round, in every epoch alike. */
export function trainedPreference(
  turn: PreferenceTurn,
  { shuffled }: PreferenceConfig,
  { seed, number }: { readonly seed: number; readonly number: number },
): PreferenceTurn {
  if (!shuffled || openRng(seed, 'preference', number).uniform() < 0.5) return turn;
  return { ...turn, answer: turn.rejected, rejected: turn.answer };
}

/** Whether a model with these fields learns from preferences, so that it takes samples with two answers alone. */
export function wantsPreferences(model: ModelConfig): boolean {
  return (model as { readonly preference?: PreferenceConfig }).preference !== undefined;
}

/** What is wrong with a run that learns from preferences, if anything. */
export function preferenceFault({
  model,
  init,
}: Pick<RunConfig, 'init'> & { readonly model: ModelConfig }): string | undefined {
  const { preference } = model as { readonly preference?: PreferenceConfig };
  if (preference?.loss === 'ipo' && preference.labelSmoothing > 0)
    return `model.preference.labelSmoothing (${preference.labelSmoothing}) is of the loss sigmoid: set it to 0 for ipo`;
  return preference !== undefined && init.length === 0
    ? 'model.preference compares with the model that the run begins with, and init is empty: begin from a run whose ' +
        'model answers already'
    : undefined;
}

/** Soft tokens [B, N, W], or none, for the two answers of each row, which stand side by side: [2 B, N, W]. */
export function forBothAnswers(soft: tf.Tensor | undefined): tf.Tensor | undefined {
  if (soft === undefined) return undefined;
  const [rows, ...rest] = soft.shape as [number, number, number];
  return tf.reshape(tf.stack([soft, soft], 1), [2 * rows, ...rest]);
}

/**
 * The sums of a microbatch of pairs.
 * @param policy of the answers' tokens, [2 B, L - 1], the preferred answer of each row first
 * @param answerObjective that of the preferred answers' words
 */
export function pairSums(
  { policy, reference }: { readonly policy: TokenScores; readonly reference: TokenScores },
  pairWeights: tf.Tensor,
  { preference, answerObjective }: { preference: PreferenceLoss; answerObjective: string },
): Record<string, ObjectiveSums> {
  const [rows, length] = policy.logProbs.shape as [number, number];
  const byPair = (values: tf.Tensor): tf.Tensor => tf.reshape(tf.sum(values, -1), [rows / 2, 2]);
  const { loss, margin } = preferenceSums(
    {
      policy: byPair(policy.logProbs),
      reference: byPair(reference.logProbs),
      numTokens: byPair(policy.counted),
    },
    pairWeights,
    preference,
  );
  const ofPreferred = (values: tf.Tensor): tf.Tensor =>
    tf.sum(tf.slice(tf.reshape(values, [rows / 2, 2, length]), [0, 0, 0], [rows / 2, 1, length]));
  return {
    [PREFERENCE]: loss,
    [REWARD_MARGIN]: margin,
    [answerObjective]: {
      lossSum: tf.neg(ofPreferred(policy.logProbs)),
      correct: ofPreferred(policy.right),
    },
  };
}
