/**
 * Which samples are held out. All that show the same picture or film stay together, under whatever names it lies and
 * however many samples link two of them: otherwise what is held out would be trained on.
 */
import { createHash } from 'node:crypto';
import type { SourceSample } from '../sources/source.ts';
import { redactUrl } from '../storage/paths.ts';
import { DataError } from './sample-index.ts';
import { locationName, type MediaFile } from './sample.ts';

const HELD_OUT_FOLDER = 'held-out/';

/** Samples that share media, directly or through others of them. */
interface Group {
  /** What its hash is of: the smallest of its media's locations. */
  key: string;
  numSamples: number;
  /** Whether the source or the folder `held-out/` says so of one of its samples. */
  isHeldOut: boolean;
}

/**
 * Where neither the source nor a folder holds anything out, the hash of the groups' keys picks the given share of them.
 * @param fileOf a medium's file, by location
 * @throws DataError SPLIT_SHARED
 */
export function heldOutOf(
  samples: readonly SourceSample[],
  fileOf: ReadonlyMap<string, Pick<MediaFile, 'sha256'>>,
  fraction: number,
): ReadonlySet<SourceSample> {
  const places = groupsOf(samples, fileOf);
  const groups = new Map<number, Group>();
  for (const [i, sample] of samples.entries()) {
    const locations = sample.media.map(locationName);
    const key = locations.length === 0 ? sample.id : locations.reduce(smaller);
    const isHeldOut =
      sample.split === 'heldOut' || locations.some((name) => name.startsWith(HELD_OUT_FOLDER));
    const group = groups.get(places[i]!);
    if (group === undefined) groups.set(places[i]!, { key, numSamples: 1, isHeldOut });
    else {
      group.key = smaller(group.key, key);
      group.numSamples++;
      group.isHeldOut ||= isHeldOut;
    }
  }
  const all = [...groups.values()];
  const told = all.filter(({ isHeldOut }) => isHeldOut);
  const chosen = new Set(told.length > 0 ? told : byHash(all, samples.length, fraction));
  const heldOut = new Set(samples.filter((_, i) => chosen.has(groups.get(places[i]!)!)));
  if (heldOut.size === samples.length && samples.some(({ split }) => split === 'train')) {
    throw new DataError(
      'SPLIT_SHARED',
      `every sample to train on shares a picture or a film with those held out, such as ${redactUrl(told[0]!.key)}; ` +
        'take what they share out of one of the splits',
    );
  }
  return heldOut;
}

/** Of each sample: the place of the sample that its group is known by. */
function groupsOf(
  samples: readonly SourceSample[],
  fileOf: ReadonlyMap<string, Pick<MediaFile, 'sha256'>>,
): number[] {
  const parents = samples.map((_, i) => i);
  const rootOf = (start: number): number => {
    let at = start;
    while (parents[at] !== at) {
      parents[at] = parents[parents[at]!]!;
      at = parents[at]!;
    }
    return at;
  };
  const firstOf = new Map<string, number>();
  for (const [i, { media }] of samples.entries()) {
    for (const medium of media) {
      const { sha256 } = fileOf.get(locationName(medium))!;
      const first = firstOf.get(sha256);
      if (first === undefined) firstOf.set(sha256, i);
      else parents[rootOf(i)] = rootOf(first);
    }
  }
  return samples.map((_, i) => rootOf(i));
}

function byHash(groups: readonly Group[], numSamples: number, fraction: number): Group[] {
  if (fraction <= 0 || groups.length < 2) return [];
  const count = Math.min(groups.length - 1, Math.max(1, Math.round(groups.length * fraction)));
  return (
    groups
      // One picture in most samples, a logo say, binds these together: they are for training.
      .filter((group) => group.numSamples * 2 <= numSamples)
      .map((group) => ({ group, hash: createHash('sha256').update(group.key).digest('hex') }))
      .sort((a, b) => (a.hash < b.hash ? -1 : a.hash > b.hash ? 1 : 0))
      .slice(0, count)
      .map(({ group }) => group)
  );
}

/** By code unit: the same one on every machine, whatever its locale. */
function smaller(a: string, b: string): string {
  return a < b ? a : b;
}
