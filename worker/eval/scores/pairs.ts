/** Whether a model tells captions apart that are made of the same or nearly the same words. Ties count as wrong. */
import { meanOf, meanScore, ratio, scored, type Score } from './bootstrap.ts';

/** Two captions of two media: how alike caption c and medium i are. */
export interface CrossScores {
  readonly kind: 'cross';
  readonly c0i0: number;
  readonly c0i1: number;
  readonly c1i0: number;
  readonly c1i1: number;
}

/** How alike a medium is to its caption, and to others that are false. */
export interface ListScores {
  readonly kind: 'list';
  /** What the false ones are made by, as `colour`; empty: not said. */
  readonly type: string;
  readonly right: number;
  /** One or more. */
  readonly wrong: readonly number[];
}

export type PairScores = CrossScores | ListScores;

/**
 * Of two captions of two media: whether each medium has its caption (text), each caption its medium (image), and both
 * (group). Of one true caption among false ones: whether it is the best, of each type, and the mean over types where there
 * are several.
 *
 * Sources: Winoground, Thrush et al. 2022, arXiv:2204.03162, sec. 4.1; ARO, Yuksekgonul et al. 2023, arXiv:2210.01936,
 * sec. 2.2; SugarCrepe, Hsieh et al. 2023, arXiv:2306.14610.
 */
export function scorePairs(items: readonly PairScores[]): Score[] {
  const crossed = items.filter((item) => item.kind === 'cross');
  const lists = items.filter((item) => item.kind === 'list');
  return [...scoreCrossed(crossed), ...scoreLists(lists)];
}

function scoreCrossed(items: readonly CrossScores[]): Score[] {
  if (items.length === 0) return [];
  // Of each question those pairs of scores of which the first is to be above the second.
  const text = ({ c0i0, c0i1, c1i0, c1i1 }: CrossScores): Compared => [
    [c0i0, c1i0],
    [c1i1, c0i1],
  ];
  const image = ({ c0i0, c0i1, c1i0, c1i1 }: CrossScores): Compared => [
    [c0i0, c0i1],
    [c1i1, c1i0],
  ];
  const group = (item: CrossScores): Compared => [...text(item), ...image(item)];
  // Of the 24 orders of the four scores 4 are right in both ways.
  return [
    ...crossedScore('text', items.map(text), 1 / 4),
    ...crossedScore('image', items.map(image), 1 / 4),
    ...crossedScore('group', items.map(group), 1 / 6),
  ];
}

type Compared = readonly (readonly [above: number, below: number])[];

function crossedScore(name: string, items: readonly Compared[], chance: number): Score[] {
  return meanScore(
    name,
    items.map((compared) => Number(compared.every(([above, below]) => above > below))),
    { chance, ties: meanOf(items, (each) => Number(each.some(([a, b]) => a === b))) },
  );
}

function scoreLists(items: readonly ListScores[]): Score[] {
  if (items.length === 0) return [];
  const rows = items.map(({ type, right, wrong }) => ({
    type,
    isRight: Number(wrong.every((other) => right > other)),
    isTied: Number(Math.max(...wrong) === right),
    chance: 1 / (1 + wrong.length),
  }));
  const types = [...new Set(rows.map(({ type }) => type))];
  const ofTypes = types.map((type) => {
    const own = rows.filter((row) => row.type === type);
    return {
      name: type === '' ? 'accuracy' : type,
      values: own.map(({ isRight }) => isRight),
      beside: {
        chance: meanOf(own, ({ chance }) => chance),
        ties: meanOf(own, ({ isTied }) => isTied),
      },
    };
  });
  const scores = ofTypes.flatMap(({ name, values, beside }) => meanScore(name, values, beside));
  if (types.length === 1) return scores;
  const typeAt = rows.map(({ type }) => types.indexOf(type));
  const macro = scored(['mean of types'], rows.length, (drawn) => {
    const [right, count] = [types.map(() => 0), types.map(() => 0)];
    for (const at of drawn) {
      right[typeAt[at]!]! += rows[at]!.isRight;
      count[typeAt[at]!]! += 1;
    }
    // A type may be missing among those that are drawn.
    const means = right.flatMap((sum, type) => (count[type] === 0 ? [] : [sum / count[type]!]));
    return [meanOf(means, (mean) => mean)];
  });
  const beside = {
    chance: meanOf(ofTypes, (type) => type.beside.chance),
    ties: ratio(
      rows.reduce((sum, { isTied }) => sum + isTied, 0),
      rows.length,
    ),
  };
  return [...scores, ...macro.map((score) => ({ ...score, ...beside }))];
}
