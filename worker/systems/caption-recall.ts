/** The held-out question which of all captions is that of a clip, for systems that compare the two. */
import type { Sample } from '../../video/index/sample.ts';
import { countedOf, floatArray, intArray } from './host-arrays.ts';
import type { HeldOutTask, HostArray, HostBatch, Row } from './system.ts';
import { candidateTexts } from './text-number.ts';

export interface CaptionRecallOptions {
  readonly seed: number;
  readonly heldOut: readonly Sample[];
  /** Texts with equal ones of these are one candidate, spelt as the first of them. */
  readonly idsOf: (text: string) => ArrayLike<number>;
  /** Texts as the model takes them, [...shape, L]. */
  readonly textArray: (texts: readonly string[], ...shape: number[]) => HostArray;
  /** The clips of a question. */
  readonly assemble: (rows: readonly Row[]) => HostBatch;
}

/**
 * Adds to a batch all captions, `candidates` [B, K, L], which of them is that of each row, `labels` [B], and whether it is
 * among them, `answerWeights` [B].
 */
export function captionRecall({
  seed,
  heldOut,
  idsOf,
  textArray,
  assemble,
}: CaptionRecallOptions): HeldOutTask {
  const { texts: candidates, classOf } = candidateTexts(
    heldOut.map(({ text }) => text),
    idsOf,
    seed,
  );
  return {
    name: 'recall-at-1',
    objective: 'contrastive',
    numClasses: candidates.length,
    asks: ({ text }) => classOf(text) !== undefined,
    assemble(rows) {
      const batch = assemble(rows);
      // Each row carries a part of the captions, so that rows can be cut among devices; all rows see them all.
      const perRow = Math.ceil(candidates.length / rows.length);
      const whole = Array.from(
        { length: perRow * rows.length },
        (_, i) => candidates[i] ?? candidates[0]!,
      );
      const [labels, answerWeights] = [intArray(rows.length), floatArray(rows.length)];
      for (const [i, { sample }] of rows.entries()) {
        const label = classOf(sample.text);
        labels.data[i] = label ?? 0;
        answerWeights.data[i] = label === undefined ? 0 : 1;
      }
      const asked = { candidates: textArray(whole, rows.length, perRow), labels, answerWeights };
      return { ...batch, arrays: { ...batch.arrays, ...asked } };
    },
    labels: ({ arrays }) => countedOf(arrays['labels']!, arrays['answerWeights']!),
  };
}
