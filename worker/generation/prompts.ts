/** Token ids of several rows as arrays of one shape, on the host. */
import { GenerationError } from './generation-error.ts';

/** Rows of different lengths, padded to the longest. */
export interface PaddedRows {
  /** [B, L] */
  readonly ids: Int32Array;
  /** 1 for tokens, 0 for padding, [B, L] */
  readonly present: Float32Array;
  readonly shape: readonly [number, number];
}

/**
 * Prompts side by side, padded in front, so that the next token of each follows at the same place; to `length` where
 * it is given, so that few programs are compiled.
 *
 * @throws GenerationError `GENERATION_BAD_PROMPT` for an empty row, or one that is longer than `length`
 */
export function padPrompts(
  rows: readonly (readonly number[])[],
  { padId, length: wanted }: { readonly padId: number; readonly length?: number },
): PaddedRows {
  const longest = Math.max(0, ...rows.map((row) => row.length));
  const length = wanted ?? longest;
  if (rows.length === 0 || rows.some((row) => row.length === 0)) {
    throw new GenerationError(
      'GENERATION_BAD_PROMPT',
      "A prompt has no tokens, and a model needs one to begin with. Begin it with the tokenizer's BOS token.",
    );
  }
  if (longest > length) {
    throw new GenerationError(
      'GENERATION_BAD_PROMPT',
      `A prompt has ${longest} tokens, and there is room for ${length}. Shorten it, or make more room.`,
    );
  }
  const ids = new Int32Array(rows.length * length).fill(padId);
  const present = new Float32Array(rows.length * length);
  for (const [at, row] of rows.entries()) {
    const start = (at + 1) * length - row.length;
    ids.set(row, start);
    present.fill(1, start, start + row.length);
  }
  return { ids, present, shape: [rows.length, length] };
}

/**
 * Where soft tokens stand: each row's `placeholder` ids take its soft tokens 0, 1, ... in order. Gives ids with `padId`
 * in their places, and for each place the number of its soft token, -1 for none.
 *
 * @throws GenerationError `GENERATION_BAD_PROMPT` for a row with another number of places than `numSoft`
 */
export function placeSoftTokens(
  ids: Int32Array,
  {
    length,
    placeholder,
    numSoft,
    padId,
  }: {
    readonly length: number;
    readonly placeholder: number;
    readonly numSoft: number;
    readonly padId: number;
  },
): { ids: Int32Array; softRows: Int32Array } {
  const softRows = new Int32Array(ids.length).fill(-1);
  const counts = new Int32Array(ids.length / length);
  for (const [at, id] of ids.entries()) {
    if (id === placeholder) softRows[at] = counts[Math.floor(at / length)]!++;
  }
  const bad = counts.findIndex((count) => count !== numSoft);
  if (bad >= 0) {
    throw new GenerationError(
      'GENERATION_BAD_PROMPT',
      `Row ${bad} has ${counts[bad]!} places for ${numSoft} soft tokens. Write the placeholder once for each, and do ` +
        'not cut a text within them.',
    );
  }
  return { ids: ids.map((id) => (id === placeholder ? padId : id)), softRows };
}
