import * as z from 'zod';
import type { PairScores } from './pairs.ts';
import { invalid, parse, recordsOf } from './records.ts';

const crossForm = z.looseObject({
  c0_i0: z.number(),
  c0_i1: z.number(),
  c1_i0: z.number(),
  c1_i1: z.number(),
});

const listForm = z.looseObject({
  scores: z.array(z.number()).min(2, 'expected that of the true caption and of a false one'),
  type: z.string().optional(),
});

/**
 * Scores of captions that are to be told apart, from records of JSON or JSON Lines: `c0_i0`, `c0_i1`, `c1_i0` and `c1_i1`
 * of two captions and two pictures as Winoground's own code names them, or a list of `scores` of which that of the true
 * caption is the first, with a `type`.
 * @throws UsageError SCORE_FILE_INVALID
 */
export async function readPairScores(path: string): Promise<PairScores[]> {
  const records = await recordsOf(path);
  if (records.length === 0) throw invalid(path, 'there is no record in it');
  return records.map(([record, at]): PairScores => {
    if (typeof record === 'object' && record !== null && 'scores' in record) {
      const { scores, type = '' } = parse(listForm, record, at);
      return { kind: 'list', type, right: scores[0]!, wrong: scores.slice(1) };
    }
    const own = parse(crossForm, record, at);
    return {
      ...{ kind: 'cross', c0i0: own.c0_i0, c0i1: own.c0_i1 },
      ...{ c1i0: own.c1_i0, c1i1: own.c1_i1 },
    };
  });
}
