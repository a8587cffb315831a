/** `videoloom score`: what kinds of scores there are, and the files of each. */
import { UsageError } from '../../../proto/errors.ts';
import { VERBS } from '../../../proto/verbs.ts';
import { readAnswered } from './answer-files.ts';
import type { Score } from './bootstrap.ts';
import { readObjectCaptions } from './chair-files.ts';
import { scoreChair } from './chair.ts';
import { readPairScores } from './pairs-files.ts';
import { scorePairs } from './pairs.ts';
import { readYesNo } from './pope-files.ts';
import { scorePope } from './pope.ts';
import { readSimilarities } from './retrieval-files.ts';
import { scoreRetrieval } from './retrieval.ts';
import { scoreAnswers, scoreCaptions, scoreVqa, type Answered } from './score.ts';

interface Kind {
  /** Least and most files. */
  readonly files: readonly [least: number, most: number];
  score(files: readonly string[], synonyms?: string): Promise<Score[]>;
}

const answered = (score: (answered: readonly Answered[]) => Score[]): Kind => ({
  files: [1, 2],
  score: async ([said, references]) => score(await readAnswered(said!, references)),
});

const KINDS: ReadonlyMap<string, Kind> = new Map<string, Kind>([
  ['captions', answered(scoreCaptions)],
  ['vqa', answered(scoreVqa)],
  ['answers', answered(scoreAnswers)],
  [
    'pope',
    {
      files: [1, 2],
      score: async ([said, labels]) => scorePope(await readYesNo(said!, labels)),
    },
  ],
  [
    'chair',
    {
      files: [2, 3],
      score: async ([captions, objects, references], synonyms) =>
        scoreChair(
          await readObjectCaptions({
            ...{ captions: captions!, objects: objects!, references, synonyms },
          }),
        ),
    },
  ],
  [
    'retrieval',
    {
      files: [1, 2],
      score: async ([similarity, ids]) => scoreRetrieval(await readSimilarities(similarity!, ids)),
    },
  ],
  [
    'pairs',
    { files: [1, 1], score: async ([scores]) => scorePairs(await readPairScores(scores!)) },
  ],
]);

/** @throws UsageError USAGE, SCORE_FILE_INVALID, SCORE_FILES_DIFFER */
export async function scoreFiles(
  [name = '', ...files]: readonly string[],
  { synonyms }: { readonly synonyms?: string | undefined },
): Promise<Score[]> {
  const kind = KINDS.get(name);
  const isCall =
    kind !== undefined && files.length >= kind.files[0] && files.length <= kind.files[1];
  if (!isCall || (synonyms !== undefined && name !== 'chair'))
    throw new UsageError('USAGE', VERBS.score.usage);
  return kind.score(files, synonyms);
}
