import * as tf from '@tensorflow/tfjs-core';

/** Of each token [B, L], float32. */
export interface AttendedTokens {
  /** How much it is looked at. */
  readonly attention: tf.Tensor;
  /** 1 where it may be hidden. */
  readonly candidates: tf.Tensor;
  /** Exponential draws of mean 1: the smaller, the earlier a token is picked. */
  readonly draws: tf.Tensor;
  /** How many neighbours a pick takes with it to either side, 0 to 2. */
  readonly reachLeft: tf.Tensor;
  readonly reachRight: tf.Tensor;
}

const NEVER = 1e9;
/** Makes a pick come before the neighbours that it takes along. */
const STEP = 1e-6;

/**
 * The first `count` tokens of each row that are hidden, [B, count] int32: `chooseAttended` within a program, where the
 * attention is. Each pick is one of the most attended fifth with chance `guidedShare`, else any; picks come in the order
 * of exponential draws divided by those chances, which is drawing without replacement. A row with fewer candidates goes
 * on with others, which the caller gives no weight.
 * Source: MERLOT, arXiv:2106.02636, sec. 3.2; the order: Efraimidis & Spirakis 2006, sec. 3.
 */
export function attendedPositions(
  { attention, candidates, draws, reachLeft, reachRight }: AttendedTokens,
  {
    count,
    topShare = 0.2,
    guidedShare = 0.5,
  }: { readonly count: number; readonly topShare?: number; readonly guidedShare?: number },
): tf.Tensor {
  const [batch, length] = attention.shape as [number, number];
  const numCandidates = tf.sum(candidates, 1, true); // [B, 1]
  const numTop = tf.ceil(tf.mul(numCandidates, topShare));
  // How many candidates are looked at more; of equals those that come first.
  const [own, other] = [tf.expandDims(attention, 2), tf.expandDims(attention, 1)];
  const earlier = tf.tensor2d(
    Float32Array.from({ length: length * length }, (_, i) =>
      i % length < Math.floor(i / length) ? 1 : 0,
    ),
    [length, length],
  );
  const isMore = tf.add(
    tf.cast(tf.greater(other, own), 'float32'),
    tf.mul(tf.cast(tf.equal(other, own), 'float32'), earlier),
  );
  const rank = tf.sum(tf.mul(isMore, tf.expandDims(candidates, 1)), 2); // [B, L]
  const isTop = tf.mul(tf.cast(tf.less(rank, numTop), 'float32'), candidates);
  const chance = tf.add(
    tf.div(tf.mul(isTop, guidedShare), tf.maximum(numTop, 1)),
    tf.div(1 - guidedShare, tf.maximum(numCandidates, 1)),
  );
  const never = tf.mul(tf.sub(1, candidates), NEVER);
  const turn = tf.add(tf.div(draws, chance), never);

  /** Of the token `by` places to the left (to the right where negative); beyond the ends `outside`. */
  const from = (x: tf.Tensor, by: number, outside: number): tf.Tensor => {
    const rest = tf.slice(x, [0, Math.max(0, -by)], [batch, length - Math.abs(by)]);
    const paddings: [number, number][] = [
      [0, 0],
      [Math.max(0, by), Math.max(0, -by)],
    ];
    return tf.pad(rest, paddings, outside);
  };
  const taken = [1, 2, -1, -2].map((by) => {
    const reach = from(by > 0 ? reachRight : reachLeft, by, 0);
    const isReached = tf.cast(tf.greaterEqual(reach, Math.abs(by)), 'float32');
    // What lies between belongs to the same run.
    const isRun = Math.abs(by) === 1 ? isReached : tf.mul(isReached, from(candidates, by / 2, 0));
    const turns = tf.mul(from(turn, by, NEVER), 1 + STEP * Math.abs(by));
    return tf.add(turns, tf.mul(tf.sub(1, isRun), NEVER));
  });
  const first = tf.add(
    taken.reduce((a, b) => tf.minimum(a, b), turn),
    never,
  );
  return tf.cast(tf.topk(tf.neg(first), count).indices, 'int32');
}
