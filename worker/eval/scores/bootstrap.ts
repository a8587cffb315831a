/** Scores with the interval in which they lie: what a score of few answers is worth. */
import { openRng } from '../../../proto/random.ts';

export interface Score {
  readonly name: string;
  readonly value: number;
  /** Between which the value lies in 95 % of 1,000 samples drawn from these with replacement. */
  readonly interval: readonly [number, number];
  readonly count: number;
  /** What is reached without looking; absent where nothing is to be guessed. */
  readonly chance?: number;
  /** Share of the items in which something wrong is as good as what is right; that counts as wrong. */
  readonly ties?: number;
}

/** What may be said beside a value. */
export type Beside = Pick<Score, 'chance' | 'ties'>;

export function meanScore(name: string, values: readonly number[], beside: Beside = {}): Score[] {
  return scored([name], values.length, (drawn) => [meanOf(drawn, (at) => values[at]!)]).map(
    (score) => ({ ...score, ...beside }),
  );
}

/** 0 of nothing. */
export function meanOf<T>(items: readonly T[], valueOf: (item: T) => number): number {
  return ratio(
    items.reduce((sum, item) => sum + valueOf(item), 0),
    items.length,
  );
}

/** 0 where there is nothing to divide by: in samples that are drawn there may be none. */
export function ratio(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}

const NUM_SAMPLES = 1000;

/** @param valuesOf the values, one a name, of the items with these numbers, of which one may come several times */
export function scored(
  names: readonly string[],
  count: number,
  valuesOf: (items: readonly number[]) => readonly number[],
): Score[] {
  const rng = openRng(0, 'bootstrap');
  const samples = Array.from({ length: NUM_SAMPLES }, () =>
    valuesOf(Array.from({ length: count }, () => rng.integer(count))),
  );
  const values = valuesOf(Array.from({ length: count }, (_, item) => item));
  return names.map((name, which) => {
    const sorted = Float64Array.from(samples, (sample) => sample[which]!).sort();
    const at = (share: number): number => sorted[Math.round(share * (NUM_SAMPLES - 1))]!;
    return { name, value: values[which]!, interval: [at(0.025), at(0.975)], count };
  });
}

/** The scores as lines for people; nothing of none. */
export function scoreTable(scores: readonly Score[]): string {
  if (scores.length === 0) return '';
  const optional = (['chance', 'ties'] as const).filter((key) =>
    scores.some((score) => score[key] !== undefined),
  );
  const rows = scores.map((score) => [
    score.name,
    score.value.toFixed(3),
    `${score.interval[0].toFixed(3)} to ${score.interval[1].toFixed(3)}`,
    ...optional.map((key) => score[key]?.toFixed(3) ?? ''),
    String(score.count),
  ]);
  const all = [['', 'score', '95 %', ...optional, 'n'], ...rows];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  return all
    .map((row) =>
      row
        .map((cell, column) =>
          column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!),
        )
        .join('  ')
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join('');
}
