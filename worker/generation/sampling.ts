/** Drawing a token by its logits, as transformers' logits warpers cut them, with randomness by counter. */
import { openRng } from '../../proto/random.ts';

export interface SamplingOptions {
  /** Logits are divided by it; 1 unless given. */
  readonly temperature?: number;
  /** Only so many tokens, the likeliest; all unless given. */
  readonly topK?: number;
  /** Only the likeliest tokens that together are at least so probable; all unless given. */
  readonly topP?: number;
}

/**
 * Logits of one row with those that are not to be drawn at -Infinity: temperature, then top-k, then top-p, as
 * transformers orders them. Source: Fan et al. 2018, arXiv:1805.04833; Holtzman et al. 2020, arXiv:1904.09751, sec. 3.1.
 */
export function filterLogits(
  logits: Float32Array,
  { temperature = 1, topK, topP = 1 }: SamplingOptions,
): Float32Array {
  const kept = logits.map((logit) => logit / temperature);
  if (topK !== undefined && topK < kept.length) {
    const least = Float32Array.from(kept).sort().at(-topK)!;
    for (const [id, logit] of kept.entries()) if (logit < least) kept[id] = -Infinity;
  }
  if (topP < 1) cutTail(kept, topP);
  return kept;
}

/** Hides the least likely tokens whose probabilities sum to 1 - topP at most; one token stays. */
function cutTail(logits: Float32Array, topP: number): void {
  const probabilities = softmax(logits);
  // Ids, the least likely first; those that are hidden already need no sorting.
  const order = [...logits.keys()].filter((id) => logits[id] !== -Infinity);
  order.sort((a, b) => logits[a]! - logits[b]! || a - b);
  let sum = 0;
  for (const id of order.slice(0, -1)) {
    sum += probabilities[id]!;
    if (sum > 1 - topP) return;
    logits[id] = -Infinity;
  }
}

/** What keys a draw: the run's seed, what the text belongs to, and how far it is. */
export interface DrawKey {
  readonly seed: number;
  /** Of the text: the same text comes of the same key, whatever it is batched with. */
  readonly row: number;
  /** Number of the token in the text. */
  readonly step: number;
}

/** One token id by the probabilities that the logits stand for; a function of logits and key. */
export function drawToken(logits: Float32Array, { seed, row, step }: DrawKey): number {
  const probabilities = softmax(logits);
  const target = openRng(seed, 'generate', row, step).uniform();
  let [sum, last] = [0, 0];
  for (const [id, probability] of probabilities.entries()) {
    if (probability === 0) continue;
    sum += probability;
    last = id;
    if (target < sum) return id;
  }
  return last;
}

function softmax(logits: Float32Array): Float64Array {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = Float64Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}
