/** Retrieval of texts by pictures or films and of these by texts: recall and ranks. Ties count as wrong. */
import { meanOf, meanScore, scored, type Score } from './bootstrap.ts';

/** How alike each medium is to each text, and which belong together. */
export interface Similarities {
  /** [media, texts], row-major; higher is more alike. */
  readonly values: ArrayLike<number>;
  readonly numMedia: number;
  readonly numTexts: number;
  /** Of each text the media that it is a text of, in any order. */
  readonly mediaOf: readonly (readonly number[])[];
}

/** One that is looked for among many. */
interface Query {
  /** Of the best right one, from 1; every wrong one that is as good is before it. */
  readonly rank: number;
  readonly isTied: boolean;
  /** The candidates that are right, each once. */
  readonly right: ReadonlySet<number>;
  readonly numCandidates: number;
}

const RECALLS = [1, 5, 10] as const;

/**
 * Recall at 1, 5 and 10 and the median rank in both directions. A recall at more than there are wrong candidates is left
 * out: everybody reaches it. Media without a text, and texts without a medium, are candidates alone. Chance is what one and
 * the same list reaches for all queries, or one drawn for each, whichever is more.
 */
export function scoreRetrieval(similarities: Similarities): Score[] {
  const { values, numMedia, numTexts, mediaOf } = similarities;
  const textsOf = Array.from({ length: numMedia }, (): number[] => []);
  for (const [text, media] of mediaOf.entries())
    for (const medium of media) textsOf[medium]!.push(text);
  const toTexts = textsOf.flatMap((right, medium) =>
    queryOf(right, numTexts, (text) => values[medium * numTexts + text]!),
  );
  const toMedia = mediaOf.flatMap((right, text) =>
    queryOf(right, numMedia, (medium) => values[medium * numTexts + text]!),
  );
  return [...scoresOf('text', toTexts), ...scoresOf('media', toMedia)];
}

function queryOf(
  right: readonly number[],
  numCandidates: number,
  valueOf: (candidate: number) => number,
): Query[] {
  if (right.length === 0) return [];
  const own = new Set(right);
  const best = Math.max(...right.map(valueOf));
  let [numBefore, isTied] = [0, false];
  for (let candidate = 0; candidate < numCandidates; candidate++) {
    if (own.has(candidate)) continue;
    const value = valueOf(candidate);
    // Not `value >= best`: what is no number is not found either.
    if (!(value < best)) numBefore++;
    if (value === best) isTied = true;
  }
  return [{ rank: 1 + numBefore, isTied, right: own, numCandidates }];
}

function scoresOf(what: string, queries: readonly Query[]): Score[] {
  if (queries.length === 0) return [];
  const ties = meanOf(queries, ({ isTied }) => Number(isTied));
  const recalls = RECALLS.filter((k) =>
    queries.some(({ numCandidates, right }) => k <= numCandidates - right.size),
  );
  const chances = chancesOf(queries);
  const ranks = queries.map(({ rank }) => rank);
  return [
    ...recalls.flatMap((k) =>
      meanScore(
        `${what} recall@${k}`,
        ranks.map((rank) => Number(rank <= k)),
        {
          chance: Math.max(
            chances[k - 1]!,
            meanOf(queries, (query) => uniform(query, k)),
          ),
          ties,
        },
      ),
    ),
    ...scored([`${what} median rank`], queries.length, (drawn) => [
      medianOf(drawn.map((at) => ranks[at]!)),
    ]).map((score) => ({ ...score, ties })),
  ];
}

/** That one of the right ones is among k drawn without replacement. */
function uniform({ right, numCandidates }: Query, k: number): number {
  let none = 1;
  for (let drawn = 0; drawn < Math.min(k, numCandidates); drawn++)
    none *= Math.max(0, numCandidates - right.size - drawn) / (numCandidates - drawn);
  return 1 - none;
}

/**
 * The recalls at 1, 2, ... of one list for all queries, in which next is who is right for the most of those that have
 * nobody in it yet.
 */
function chancesOf(queries: readonly Query[]): number[] {
  const chances: number[] = [];
  let open = [...queries];
  for (let k = 1; k <= Math.max(...RECALLS); k++) {
    const counts = new Map<number, number>();
    for (const { right } of open)
      for (const candidate of right) counts.set(candidate, (counts.get(candidate) ?? 0) + 1);
    let [next, most] = [-1, 0];
    for (const [candidate, count] of counts) if (count > most) [next, most] = [candidate, count];
    open = open.filter(({ right }) => !right.has(next));
    chances.push(1 - open.length / queries.length);
  }
  return chances;
}

/** Of an even number the mean of the two in the middle. */
function medianOf(values: readonly number[]): number {
  const sorted = Float64Array.from(values).sort();
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2;
}
