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
  /** For systems that know several captions of a clip; the sample's text alone unless given. */
  readonly several?: SeveralCaptions;
}

export interface SeveralCaptions {
  /** All that are true of a clip. */
  readonly of: (sample: Sample) => readonly string[];
  /** The one that a row asks for. */
  readonly asked: (row: Row) => string;
}

/** {@link captionRecall}'s task, and what it chooses from. */
export interface CaptionRecall extends HeldOutTask {
  readonly candidates: readonly string[];
}

/**
 * Adds to a batch all captions, `candidates` [B, K, L], which of them is that of each row, `labels` [B], and whether it is
 * among them, `answerWeights` [B]. Where several captions of a clip are known, `alsoTrue` [B, B K] is 1 for those that are
 * not asked for: no answer is wrong because another is right too.
 */
export function captionRecall({
  seed,
  heldOut,
  idsOf,
  textArray,
  assemble,
  several,
}: CaptionRecallOptions): CaptionRecall {
  const captionsOf = several?.of ?? (({ text }: Sample) => [text]);
  const captionOf = several?.asked ?? (({ sample }: Row) => sample.text);
  const { texts: candidates, classOf } = candidateTexts(heldOut.flatMap(captionsOf), idsOf, seed);
  return {
    candidates,
    name: 'recall-at-1',
    objective: 'contrastive',
    numClasses: candidates.length,
    asks: (sample) => captionsOf(sample).some((caption) => classOf(caption) !== undefined),
    assemble(rows) {
      const batch = assemble(rows);
      // Each row carries a part of the captions, so that rows can be cut among devices; all rows see them all.
      const perRow = Math.ceil(candidates.length / rows.length);
      const whole = Array.from(
        { length: perRow * rows.length },
        (_, i) => candidates[i] ?? candidates[0]!,
      );
      const [labels, answerWeights] = [intArray(rows.length), floatArray(rows.length)];
      const alsoTrue = floatArray(rows.length, whole.length);
      for (const [i, row] of rows.entries()) {
        const label = classOf(captionOf(row));
        labels.data[i] = label ?? 0;
        answerWeights.data[i] = label === undefined ? 0 : 1;
        for (const caption of captionsOf(row.sample)) {
          const other = classOf(caption);
          if (other !== undefined && other !== label)
            for (const [k, text] of whole.entries())
              if (text === candidates[other]) alsoTrue.data[i * whole.length + k] = 1;
        }
      }
      const asked = { candidates: textArray(whole, rows.length, perRow), labels, answerWeights };
      const known = several === undefined ? {} : { alsoTrue };
      return { ...batch, arrays: { ...batch.arrays, ...asked, ...known } };
    },
    labels: ({ arrays }) => countedOf(arrays['labels']!, arrays['answerWeights']!),
  };
}
