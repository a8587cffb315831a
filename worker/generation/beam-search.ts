/**
 * The bookkeeping of beam search for one batch: which beams go on, which texts are finished, and when to stop. No
 * model, no tensors. Source: transformers, generation/utils.py, `_beam_search`; scores are float32 as there.
 */

export interface BeamOptions {
  readonly numBeams: number;
  /** Scores are sums of log probabilities divided by length ** penalty; 1 unless given. Above 0 favours long texts. */
  readonly lengthPenalty?: number;
  /**
   * Whether a row ends with its first `numBeams` finished texts (true), when its best running beam is worse than they
   * at the length it has (false, the default), or only when no beam could become better (`never`).
   */
  readonly earlyStopping?: boolean | 'never';
}

/** A text as far as it goes. Score: of running ones the sum of log probabilities, of finished ones with the penalty. */
export interface Beam {
  readonly ids: readonly number[];
  readonly score: number;
  readonly isFinished: boolean;
}

/** Of the best continuations of a row, best first: their summed log probability, beam and token. */
export interface Candidate {
  readonly score: number;
  readonly beam: number;
  readonly token: number;
}

/** What stands for minus infinity, so that differences stay numbers. */
export const NEVER = -1e9;

interface RowState {
  running: Beam[];
  /** The best so far, best first. */
  finished: Beam[];
  canImprove: boolean;
}

export class BeamSearch {
  readonly #rows: RowState[];
  readonly #options: Required<BeamOptions>;
  readonly #eosIds: ReadonlySet<number>;
  readonly #maxLength: number;
  #length = 0;
  #isDone = false;

  constructor(
    numRows: number,
    { numBeams, lengthPenalty = 1, earlyStopping = false }: BeamOptions,
    { eosIds, maxLength }: { readonly eosIds: readonly number[]; readonly maxLength: number },
  ) {
    this.#options = { numBeams, lengthPenalty, earlyStopping };
    this.#eosIds = new Set(eosIds);
    this.#maxLength = maxLength;
    const blank = (score: number): Beam => ({ ids: [], score, isFinished: false });
    this.#rows = Array.from({ length: numRows }, () => ({
      // All beams are alike at first: only the first may go on.
      running: Array.from({ length: numBeams }, (_, k) => blank(k === 0 ? 0 : NEVER)),
      finished: Array.from({ length: numBeams }, () => blank(NEVER)),
      canImprove: true,
    }));
  }

  /** How many continuations of a row `advance` wants: some may end, and `numBeams` have to go on. */
  get numCandidates(): number {
    return Math.max(2, 1 + this.#eosIds.size) * this.#options.numBeams;
  }

  /** Scores of the running beams, row by row. */
  get scores(): Float32Array {
    return Float32Array.from(
      this.#rows.flatMap(({ running }) => running.map(({ score }) => score)),
    );
  }

  get isDone(): boolean {
    return this.#isDone;
  }

  /** Takes the best continuations of each row. Gives, beam by beam, the beam of the batch it continues and its token. */
  advance(candidates: readonly (readonly Candidate[])[]): {
    parents: Int32Array;
    tokens: Int32Array;
  } {
    this.#length++;
    const { numBeams, earlyStopping } = this.#options;
    const parents: number[] = [];
    const tokens: number[] = [];
    let numOpen = 0;
    for (const [at, row] of this.#rows.entries()) {
      const made = candidates[at]!.map(({ score, beam, token }) => {
        const ends = this.#eosIds.has(token) || this.#length >= this.#maxLength;
        if (!ends) numOpen += 1;
        const ids = [...row.running[beam]!.ids, token];
        return { ids, score, beam, token, ends };
      });
      const open = made.map((beam) => ({
        ...beam,
        score: beam.ends ? Math.fround(beam.score + NEVER) : beam.score,
      }));
      const chosen = best(open, numBeams);
      row.finished = this.#withFinished(row, made);
      row.running = chosen.map(({ ids, score }) => ({ ids, score, isFinished: false }));
      parents.push(...chosen.map(({ beam }) => at * numBeams + beam));
      tokens.push(...chosen.map(({ token }) => token));
    }
    for (const row of this.#rows) row.canImprove = row.canImprove && this.#mayImprove(row);
    const isFull = this.#rows.every(({ finished }) => finished.every((beam) => beam.isFinished));
    this.#isDone =
      numOpen === 0 ||
      !this.#rows.some(({ canImprove }) => canImprove) ||
      (earlyStopping === true && isFull);
    return { parents: Int32Array.from(parents), tokens: Int32Array.from(tokens) };
  }

  /** The best text of each row. */
  best(): Beam[] {
    return this.#rows.map(({ finished }) => finished[0]!);
  }

  #withFinished(
    { finished, canImprove }: RowState,
    made: readonly { ids: number[]; score: number; ends: boolean }[],
  ): Beam[] {
    const { numBeams, lengthPenalty, earlyStopping } = this.#options;
    const isClosed =
      !canImprove || (earlyStopping === true && finished.every((beam) => beam.isFinished));
    const ended = made.map(({ ids, score, ends }, rank): Beam => {
      // Those behind the first `numBeams` are there to go on, not to end.
      const counts = ends && rank < numBeams;
      const penalised = Math.fround(score / this.#length ** lengthPenalty);
      const hidden = (isClosed ? NEVER : 0) + (counts ? 0 : NEVER);
      return { ids, score: Math.fround(penalised + hidden), isFinished: counts };
    });
    return best([...finished, ...ended], numBeams);
  }

  #mayImprove({ running, finished }: RowState): boolean {
    const { lengthPenalty, earlyStopping } = this.#options;
    const isLongBetter = earlyStopping === 'never' && lengthPenalty > 0;
    const length = isLongBetter ? this.#maxLength : this.#length;
    const possible = Math.fround(running[0]!.score / length ** lengthPenalty);
    const worst = Math.min(...finished.map(({ score }) => score));
    return finished.some(({ isFinished }) => possible > (isFinished ? worst : NEVER));
  }
}

/** The items of the highest scores; of equal ones the first. */
function best<T extends { readonly score: number }>(items: readonly T[], count: number): T[] {
  return [...items].sort((a, b) => b.score - a.score).slice(0, count);
}
