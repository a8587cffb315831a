/** Features of what the training split shows, to find visual words in. */
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { openProgress, type Progress } from '../../proto/progress.ts';
import { drawnOf, openRng } from '../../proto/random.ts';
import { DataError } from '../../video/index/sample-index.ts';
import type { Clip } from '../../video/loading/loader.ts';
import type { FitContext } from './system.ts';

/** Samples beyond this many add nothing to a vocabulary of some thousand words. */
const FITTING_CLIPS = 2000;

/**
 * The features of some clips of the training split, one after another, and how many clips those are; clips that do not
 * decode are left out. The caller ends the progress.
 * @param what is made of them, for people
 * @throws VideoloomError `DATA_UNREADABLE` where none decodes
 */
export async function fittingFeatures(
  {
    index,
    loader,
    seed,
    what,
  }: Pick<FitContext, 'index' | 'loader'> & { readonly seed: number; readonly what: string },
  featuresOf: (clip: Clip) => Float32Array,
): Promise<{
  readonly features: Float32Array;
  readonly numClips: number;
  readonly progress: Progress;
}> {
  const shown = [...index.train.keys()].filter((number) => index.train[number]!.media.length > 0);
  if (shown.length === 0) {
    throw new DataError(
      'DATA_UNFIT',
      `there is nothing to see in any sample, and ${what} are found in pictures`,
    );
  }
  const samples = drawnOf(shown, FITTING_CLIPS, openRng(seed, 'fitting-samples'));
  const progress = openProgress(what, samples.length);
  const features: Float32Array[] = [];
  const failures: string[] = [];
  const chunk = 16;
  for (let first = 0; first < samples.length; first += chunk) {
    const wanted = samples.slice(first, first + chunk);
    const decoded = await Promise.all(
      wanted.map((sample) =>
        loader
          .load([{ sample, epoch: 0, substitutes: [] }], AbortSignal.timeout(600_000))
          .catch((error: unknown) => {
            failures.push(messageOf(error));
            return [];
          }),
      ),
    );
    for (const clip of decoded.flat()) features.push(featuresOf(clip));
    progress.update(first + wanted.length);
  }
  if (features.length === 0) {
    throw new VideoloomError(
      'DATA_UNREADABLE',
      `none of the ${samples.length} clips could be decoded; the first failed with: ${failures[0] ?? '-'}`,
    );
  }
  return { features: concatenate(features), numClips: features.length, progress };
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
