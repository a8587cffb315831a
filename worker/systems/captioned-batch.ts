/** Clips with a caption each, as systems take them that compare the two. */
import type { Tokenizer } from '../../video/text/tokenizer.ts';
import { intArray, packedFrames } from './host-arrays.ts';
import { textNumbers } from './text-number.ts';
import type { HostArray, HostBatch, Row, Similarity } from './system.ts';

export interface CaptionedBatchOptions {
  readonly tokenizer: Tokenizer;
  readonly maxTokens: number;
  /** Whether texts begin with `[CLS]`; all end with `[SEP]`. */
  readonly hasStart: boolean;
  readonly tokensOfClip: number;
}

export interface CaptionedBatches {
  /** What is read of a text. */
  readonly idsOf: (text: string) => number[];
  /** Ids of texts, padded, [...shape, L]. */
  readonly textArray: (texts: readonly string[], ...shape: number[]) => HostArray;
  /**
   * `pixels`, `ids` [B, L] of a caption for each row, and `captions` [B, 2], equal for captions that are read alike; see
   * {@link textNumbers}.
   */
  readonly assemble: (rows: readonly Row[], captions: readonly string[]) => HostBatch;
  /** `pixels` alone, and `ids` alone. */
  readonly similarity: Pick<Similarity, 'assembleClips' | 'assembleTexts'>;
}

export function captionedBatches({
  tokenizer,
  maxTokens,
  hasStart,
  tokensOfClip,
}: CaptionedBatchOptions): CaptionedBatches {
  const { sep, pad } = tokenizer.special;
  // A tokenizer of somebody else's may have none, where none is needed.
  const start = hasStart ? [tokenizer.special.cls] : [];
  const idsOf = (text: string): number[] => {
    const words = tokenizer.encode(text).slice(0, maxTokens - 1 - start.length);
    return [...start, ...words, sep];
  };
  const textArray = (texts: readonly string[], ...shape: number[]) => {
    const ids = intArray(...shape, maxTokens);
    ids.data.fill(pad);
    for (const [i, text] of texts.entries()) ids.data.set(idsOf(text), i * maxTokens);
    return ids;
  };
  return {
    idsOf,
    textArray,
    assemble(rows, captions) {
      const ids = textArray(captions, rows.length);
      const numWords = ids.data.reduce((sum, id) => sum + (id === pad ? 0 : 1), 0);
      return {
        arrays: { pixels: packedFrames(rows), ids, captions: textNumbers(captions.map(idsOf)) },
        counts: { contrastive: rows.length },
        numTokens: rows.length * tokensOfClip + numWords,
      };
    },
    similarity: {
      assembleClips: (rows) => ({
        ...{ arrays: { pixels: packedFrames(rows) }, counts: {} },
        numTokens: rows.length * tokensOfClip,
      }),
      assembleTexts: (texts) => ({
        ...{ arrays: { ids: textArray(texts, texts.length) }, counts: {} },
        numTokens: texts.length * maxTokens,
      }),
    },
  };
}
