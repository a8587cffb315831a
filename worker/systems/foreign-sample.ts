import type { Rng } from '../../proto/random.ts';
import type { Sample } from '../../video/index/sample.ts';

/** Where few fit, a row goes without. */
const ATTEMPTS = 8;

/** A sample of the split that fits, drawn at random; undefined where none is within reach. */
export function foreignSample(
  split: readonly Sample[],
  rng: Rng,
  fits: (other: Sample) => boolean,
): Sample | undefined {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const other = split[rng.integer(split.length)]!;
    if (fits(other)) return other;
  }
  return undefined;
}
