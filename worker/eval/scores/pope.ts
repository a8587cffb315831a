/**
 * POPE: whether a model says that things are there which are not. Source: Li et al. 2023, arXiv:2305.10355, sec. 5;
 * github.com/AoiDragon/POPE, evaluate.py.
 */
import { ratio, scored, type Score } from './bootstrap.ts';

/** What was said to a question that is answered by yes or no. */
export interface YesNoAnswered {
  readonly answer: string;
  readonly isYes: boolean;
  /** As `adversarial`, of which scores are apart; empty: none. */
  readonly category: string;
}

/** Whether an answer counts as yes: where its first sentence has none of the words No, no and not, whatever it says. */
export function saysYes(answer: string): boolean {
  const words = answer.split('.')[0]!.replaceAll(',', '').split(' ');
  return !words.some((word) => word === 'No' || word === 'no' || word === 'not');
}

/**
 * Accuracy, precision, recall and F1 of yes, and how often it is said, of each category. Where there is nothing to divide
 * by, as the precision of one who never says yes, a score is 0. Chance is what the better of always yes and always no
 * reaches, of F1 always yes.
 */
export function scorePope(answered: readonly YesNoAnswered[]): Score[] {
  const categories = new Map<string, YesNoAnswered[]>();
  for (const each of answered)
    categories.set(each.category, [...(categories.get(each.category) ?? []), each]);
  return [...categories].flatMap(([category, own]) => {
    const prefix = category === '' ? '' : `${category} `;
    return scoresOf(own).map((score) => ({ ...score, name: `${prefix}${score.name}` }));
  });
}

function scoresOf(answered: readonly YesNoAnswered[]): Score[] {
  // 0 or 1 of each: it is yes, and yes was said.
  const truth = answered.map(({ isYes }) => Number(isYes));
  const said = answered.map(({ answer }) => Number(saysYes(answer)));
  const scores = scored(
    ['accuracy', 'precision', 'recall', 'F1', 'yes ratio'],
    answered.length,
    (drawn) => {
      let [numTrue, numSaid, both] = [0, 0, 0];
      for (const at of drawn) {
        numTrue += truth[at]!;
        numSaid += said[at]!;
        both += truth[at]! * said[at]!;
      }
      const right = drawn.length - numTrue - numSaid + 2 * both;
      return [
        ratio(right, drawn.length),
        ratio(both, numSaid),
        ratio(both, numTrue),
        // 2 P R / (P + R) with both's fractions written out.
        ratio(2 * both, numSaid + numTrue),
        ratio(numSaid, drawn.length),
      ];
    },
  );
  const share = ratio(
    truth.reduce((a, b) => a + b, 0),
    truth.length,
  );
  const chances = new Map([
    ['accuracy', Math.max(share, 1 - share)],
    ['F1', (2 * share) / (share + 1)],
  ]);
  return scores.map((score) => {
    const chance = chances.get(score.name);
    return chance === undefined ? score : { ...score, chance };
  });
}
