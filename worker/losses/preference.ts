/** Losses of two answers to the same question, of which one is preferred. */
import * as tf from '@tensorflow/tfjs-core';
import type { ObjectiveSums } from './cross-entropy.ts';

export const PREFERENCE_LOSSES = ['sigmoid', 'ipo'] as const;

export interface PreferenceLoss {
  readonly loss: (typeof PREFERENCE_LOSSES)[number];
  /** How dear it is to leave the reference. */
  readonly beta: number;
  /** How often the preference is taken to be the wrong way round; not for `ipo`. */
  readonly labelSmoothing: number;
}

/** Log-probabilities of the preferred answer and of the other one, nats, [B, 2] each. */
export interface PairLogProbs {
  readonly policy: tf.Tensor;
  readonly reference: tf.Tensor;
  /** Tokens of the answers, [B, 2]. */
  readonly numTokens: tf.Tensor;
}

/**
 * Direct preference optimisation, summed over pairs with weights [B], and the sum of the margins between the rewards,
 * beta times how much likelier the policy makes an answer than the reference does. With h for that margin without beta:
 * `sigmoid` -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h), s the label smoothing; `ipo` (h - 1 / (2 beta))^2, of
 * log-probabilities a token. What is right of a pair is a reward above the other's; a tie counts half.
 *
 * Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, "A note on DPO with noisy preferences", for
 * smoothing; Azar et al. 2023, arXiv:2310.12036, eq. 17, by token as TRL's `DPOTrainer` has it.
 */
export function preferenceSums(
  { policy, reference, numTokens }: PairLogProbs,
  weights: tf.Tensor,
  { loss, beta, labelSmoothing }: PreferenceLoss,
): { readonly loss: ObjectiveSums; readonly margin: ObjectiveSums } {
  const gains = tf.sub(policy, reference); // [B, 2]
  const rewards = loss === 'ipo' ? tf.div(gains, tf.maximum(numTokens, 1)) : gains;
  const pairs = rewards.shape[0];
  const of = (place: number): tf.Tensor =>
    tf.reshape(tf.slice(rewards, [0, place], [pairs, 1]), [pairs]);
  const lead = tf.sub(of(0), of(1)); // [B]
  const margin = tf.mul(lead, beta);
  const losses =
    loss === 'ipo'
      ? tf.square(tf.sub(lead, 1 / (2 * beta)))
      : tf.add(
          tf.mul(tf.softplus(tf.neg(margin)), 1 - labelSmoothing),
          tf.mul(tf.softplus(margin), labelSmoothing),
        );
  const summed = (values: tf.Tensor): tf.Tensor => tf.sum(tf.mul(values, weights));
  const correct = summed(tf.mul(tf.add(tf.sign(lead), 1), 0.5));
  return {
    loss: { lossSum: summed(losses), correct },
    margin: { lossSum: summed(margin), correct },
  };
}
