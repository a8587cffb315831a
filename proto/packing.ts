/**
 * Several short sequences in one row of fixed length, so that little of a batch is padding. A token may attend to
 * another only where both bear the same segment id, and none to padding (id 0): the mask is block-diagonal,
 * `segmentIds[i] === segmentIds[j] && segmentIds[i] !== 0`, and `positionIds[j] <= positionIds[i]` besides where the model
 * is causal. Positions begin anew in each segment, so that a sequence gives the same as in a row of its own; the
 * last token of a segment predicts nothing. Source: Krell et al. 2021, arXiv:2107.02027.
 */

import { UsageError } from './errors.ts';

/** A sequence within a row. */
export interface PackedSegment {
  /** Which sequence this is: its place in `lengths`. */
  readonly sequence: number;
  /** Where in the row it begins. */
  readonly offset: number;
  readonly length: number;
}

export interface PackedSequences {
  /** Rows by their first sequence; segments of a row lie one behind the other, by sequence. */
  readonly rows: readonly (readonly PackedSegment[])[];
  /** Share of the rows' places that hold a token; 0 without rows. */
  readonly efficiency: number;
}

/**
 * Puts sequences into rows of `capacity` tokens: longest first, each into the first row that has place, in
 * O(n log n). At most 11/9 of the fewest rows possible and 6/9 of a row (Dosa 2007). Empty sequences take no segment.
 * Pure and the same everywhere.
 * @throws UsageError SEQUENCE_TOO_LONG
 */
export function packSequences(lengths: ArrayLike<number>, capacity: number): PackedSequences {
  const order: number[] = [];
  let numTokens = 0;
  for (let sequence = 0; sequence < lengths.length; sequence++) {
    const length = lengths[sequence]!;
    if (length > capacity) throw tooLong(sequence, length, capacity);
    if (length > 0) order.push(sequence);
    numTokens += length;
  }
  order.sort((a, b) => lengths[b]! - lengths[a]! || a - b);
  const free = new FreePlaces(order.length, capacity);
  const members: number[][] = [];
  for (const sequence of order) {
    const row = free.take(lengths[sequence]!);
    (members[row] ??= []).push(sequence);
  }
  for (const row of members) row.sort((a, b) => a - b);
  members.sort((a, b) => a[0]! - b[0]!);
  const rows = members.map((row) => {
    let end = 0;
    return row.map((sequence) => {
      const [offset, length] = [end, lengths[sequence]!];
      end += length;
      return { sequence, offset, length };
    });
  });
  return { rows, efficiency: rows.length === 0 ? 0 : numTokens / (rows.length * capacity) };
}

/** What a model needs to keep the sequences of a row apart; both [rows, capacity], flat. */
export interface PackedIds {
  /** 1 for the first segment of a row, 2 for the next, ...; 0 for padding. */
  readonly segmentIds: Int32Array;
  /** Place within the segment, from 0; 0 for padding. */
  readonly positionIds: Int32Array;
}

/** Segment and position ids of packed rows. `numRows`, if given, adds rows of padding. */
export function packedIds(
  rows: PackedSequences['rows'],
  capacity: number,
  numRows: number = rows.length,
): PackedIds {
  const segmentIds = new Int32Array(numRows * capacity);
  const positionIds = new Int32Array(numRows * capacity);
  for (const [row, segments] of rows.entries()) {
    for (const [number, { offset, length }] of segments.entries()) {
      const start = row * capacity + offset;
      segmentIds.fill(number + 1, start, start + length);
      for (let i = 0; i < length; i++) positionIds[start + i] = i;
    }
  }
  return { segmentIds, positionIds };
}

/** Rows and what is free in them; finds the first with enough place by a tree of maxima. */
class FreePlaces {
  readonly #numLeaves: number;
  readonly #most: Float64Array;

  constructor(numRows: number, capacity: number) {
    this.#numLeaves = 2 ** Math.ceil(Math.log2(Math.max(1, numRows)));
    this.#most = new Float64Array(2 * this.#numLeaves).fill(capacity);
  }

  /** The first row with `length` free places, which it then has no more. */
  take(length: number): number {
    const most = this.#most;
    let node = 1;
    while (node < this.#numLeaves) node = most[2 * node]! >= length ? 2 * node : 2 * node + 1;
    const row = node - this.#numLeaves;
    most[node]! -= length;
    for (node >>= 1; node > 0; node >>= 1)
      most[node] = Math.max(most[2 * node]!, most[2 * node + 1]!);
    return row;
  }
}

function tooLong(sequence: number, length: number, capacity: number): UsageError {
  return new UsageError(
    'SEQUENCE_TOO_LONG',
    `sequence ${sequence} has ${length} tokens, a row has place for ${capacity}: cut it, or make rows longer.`,
  );
}
