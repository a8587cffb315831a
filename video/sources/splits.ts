import type { SourceSample } from './source.ts';

const TRAIN = /(?:^|[^a-z])train(?:ing)?(?:[^a-z]|$)/i;
const HELD_OUT = /(?:^|[^a-z])(?:val|valid|validation|test|held-?out)(?:[^a-z]|$)/i;

/**
 * The split that the files with the records belong to, by their names (`train-00000-of-00008.parquet`,
 * `results_2M_val.csv`). Told only if there are both: a name alone may mean anything.
 */
export function splitsOf(
  recordFiles: readonly string[],
): (recordFile: string) => SourceSample['split'] {
  const nameOf = (path: string): SourceSample['split'] =>
    HELD_OUT.test(path) ? 'heldOut' : TRAIN.test(path) ? 'train' : undefined;
  const told = new Set(recordFiles.map(nameOf));
  return told.has('train') && told.has('heldOut') ? nameOf : () => undefined;
}
