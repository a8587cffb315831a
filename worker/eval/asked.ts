/** Clips in batches of one size: what is asked of them, or what they are as vectors, batch by batch. */
import type { Sample } from '../../video/index/sample.ts';
import { isFileFault } from '../../video/loading/file-fault.ts';
import type { Clip, ClipLoader } from '../../video/loading/loader.ts';
import { rowsOf } from '../batches.ts';
import type { Row } from '../systems/system.ts';
import type { EvaluationFile } from './evaluation-file.ts';

/** Where clips come from. */
export interface ClipSource {
  readonly samples: readonly Sample[];
  readonly loader: ClipLoader;
}

export interface BatchesOptions {
  readonly source: ClipSource;
  /** Rows of a batch, for which there is one program. */
  readonly batchSize: number;
  readonly file: EvaluationFile;
  /** Of these batches, another one for each call. */
  readonly name: string;
}

/**
 * What a batch of clips comes to, of all of them in their order; undefined for those that do not decode. A batch that an
 * evaluation has done before it was killed is not done again, and one that it had begun is done whole: a clip is always
 * among the same others. A batch of which no clip decodes is tried again.
 *
 * @param samples numbers of those of the source; one may come several times
 * @param of results of `batchSize` rows, of which the last ones are there to fill them up
 */
export async function inBatches<T>(
  samples: readonly number[],
  { source, batchSize, file, name }: BatchesOptions,
  of: (rows: readonly Row[]) => Promise<readonly T[]>,
): Promise<(T | undefined)[]> {
  const results: (T | undefined)[] = [];
  for (let start = 0; start < samples.length; start += batchSize) {
    const own = samples.slice(start, start + batchSize);
    const done = await file.unit(
      `${name} ${start}`,
      async (): Promise<(T | null)[] | undefined> => {
        const clips = await Promise.all(own.map((sample) => load(source, sample)));
        const whole = clips.filter((clip) => clip !== undefined);
        if (whole.length === 0) return undefined;
        const rows = rowsOf(
          source.samples,
          whole.map(() => ({ epoch: 0 })),
          whole,
        );
        const found = [...(await of(filledUp(rows, batchSize)))];
        return clips.map((clip) => (clip === undefined ? null : found.shift()!));
      },
    );
    results.push(...(done ?? own).map((_, at) => done?.[at] ?? undefined));
  }
  return results;
}

/** One program for any number: the last ones come again. */
export function filledUp<T>(items: readonly T[], size: number): T[] {
  return Array.from({ length: size }, (_, at) => items[at % items.length]!);
}

/** Throws what the first clip fails by where none has come to anything. */
export async function refuseUndecoded(
  { loader }: ClipSource,
  samples: readonly number[],
  results: readonly unknown[],
): Promise<void> {
  const [sample] = samples;
  if (sample === undefined || results.some((result) => result !== undefined)) return;
  await loader.load([{ sample, epoch: 0, substitutes: [] }]);
}

async function load({ loader }: ClipSource, sample: number): Promise<Clip | undefined> {
  try {
    return (await loader.load([{ sample, epoch: 0, substitutes: [] }]))[0];
  } catch (error) {
    if (!isFileFault(error)) throw error;
    return undefined;
  }
}
