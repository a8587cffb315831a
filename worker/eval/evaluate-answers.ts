/** What a system says about clips, and how good that is. */
import { UsageError } from '../../proto/errors.ts';
import { drawnOf, openRng } from '../../proto/random.ts';
import type { Answers } from '../systems/system.ts';
import { answersTo } from './answers.ts';
import type { EvaluationContext, EvaluationResult } from './evaluate.ts';
import { questionsOf, type HeldOutQuestion } from './held-out-questions.ts';
import { readQuestions, type FileQuestion } from './question-file.ts';
import type { Score } from './scores/bootstrap.ts';
import { scorePope } from './scores/pope.ts';
import { scoreAnswers, scoreCaptions, type Answered } from './scores/score.ts';

/** Of held-out clips: their captions, or the questions of their conversations. */
export async function evaluateHeldOutQuestions(
  { trained, limit, say, open }: EvaluationContext,
  answers: Answers,
  question: string,
): Promise<EvaluationResult> {
  const { index, config, folder, heldOutLoader: loader } = trained.run;
  const all = questionsOf(index.heldOut, question);
  if (all.length === 0)
    throw new UsageError(
      'NOTHING_HELD_OUT',
      `${folder} holds out no sample with words` +
        (question === '' ? '' : `, or only conversations in which nobody asks "${question}"`),
    );
  const asked = drawnOf(all, limit, openRng(config.train.seed, 'evaluate'));
  const source = { samples: index.heldOut, loader };
  const file = await open(asked);
  const found = await answersTo(trained, answers, asked, { source, file });
  const said = asked.flatMap((each, at): Said[] => {
    const answer = found[at];
    return answer === undefined ? [] : [{ asked: each, answer }];
  });
  tellSkipped(say, asked.length - said.length, asked.length);
  return {
    lines: said.map(({ asked: { id, question: own, references }, answer }) => ({
      ...{ id, ...(own === '' ? {} : { question: own }), answer, references },
    })),
    scores: scoresOf(said),
  };
}

interface Said {
  readonly asked: HeldOutQuestion;
  readonly answer: string;
}

function scoresOf(said: readonly Said[]): Score[] {
  const of = (kind: HeldOutQuestion['kind']): Answered[] =>
    said.flatMap(({ asked, answer }) =>
      asked.kind === kind ? [{ id: asked.id, answer, references: asked.references }] : [],
    );
  const [captions, answers] = [of('caption'), of('answer')];
  return [
    ...(captions.length === 0 ? [] : [...scoreCaptions(captions), ...scoreAnswers(captions)]),
    ...(answers.length === 0 ? [] : scoreAnswers(answers)),
  ];
}

/** Questions of a file about media below the folder `root`. */
export async function evaluateFileQuestions(
  { trained, limit, say, open, openMedia }: EvaluationContext,
  answers: Answers,
  { file: path, root }: { readonly file: string; readonly root: string },
): Promise<EvaluationResult> {
  const rng = openRng(trained.run.config.train.seed, 'evaluate');
  const all = drawnOf(await readQuestions(path), limit, rng);
  const media = await openMedia(root, [...new Set(all.map((each) => each.media))]);
  const asked = all.flatMap((each) => {
    const sample = media.sampleOf(each.media);
    return sample === undefined ? [] : [{ ...each, sample }];
  });
  const source = { samples: media.index.heldOut, loader: media.loader };
  const file = await open([asked, media.index.digest]);
  const found = await answersTo(trained, answers, asked, { source, file });
  const said = asked.flatMap(({ kept }, at) => {
    const { id, question, ...rest } = kept;
    const answer = found[at];
    return answer === undefined ? [] : [{ id, question, answer, ...rest }];
  });
  tellSkipped(say, all.length - said.length, all.length);
  const scores = scoresOfLines(said);
  if (scores.length === 0) say('nothing is scored: no question has a label or references');
  return { lines: said, scores };
}

type Line = FileQuestion['kept'] & { readonly answer: string };

/** Of those that say what is right: yes and no by POPE's rules, others by being one of the references. */
function scoresOfLines(lines: readonly Line[]): Score[] {
  const yesNo = lines.flatMap(({ answer, label, category }) =>
    label === undefined ? [] : [{ answer, isYes: label === 'yes', category: category ?? '' }],
  );
  const referred = lines.flatMap(({ id, answer, references }) =>
    references === undefined ? [] : [{ id, answer, references }],
  );
  return [
    ...(yesNo.length === 0 ? [] : scorePope(yesNo)),
    ...(referred.length === 0 ? [] : scoreAnswers(referred)),
  ];
}

/** Tells how many do not count. */
export function tellSkipped(say: (line: string) => void, numSkipped: number, of: number): void {
  if (numSkipped > 0) say(`${numSkipped} of ${of} clips do not decode, and do not count`);
}
