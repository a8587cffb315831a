/**
 * Makes a smaller index out of one: by rules, and without what is there twice. Nothing that the index names is touched;
 * a report says of each sample that is left out why.
 */
import { writeFileDurably } from '../../proto/durable-file.ts';
import type { DecoderPool } from '../decode/decoder.ts';
import { evenTimes } from '../sampling/frame-sampler.ts';
import type { MediaFile, MediaSpan, Sample } from '../index/sample.ts';
import { digestOf, type SampleIndex } from '../index/sample-index.ts';
import { isFileFault } from '../loading/file-fault.ts';
import type { MediaCache } from '../storage/media-cache.ts';
import { brokenRule, type Rule } from './filter-rules.ts';
import {
  HASH_SIDE,
  HashIndex,
  jaccard,
  perceptualHash,
  shinglesOf,
  TextIndex,
} from './near-duplicates.ts';

/**
 * What counts as there twice: `exact` the same bytes, span and words; `near-text` nearly the same words; `near-media`
 * pictures that look the same; `near` both.
 */
export type Dedup = 'exact' | 'near' | 'near-text' | 'near-media';

export interface FilterOptions {
  readonly index: SampleIndex;
  readonly rules: readonly Rule[];
  readonly dedup: readonly Dedup[];
  /** Least Jaccard index of near texts; 0.8 by default. */
  readonly textThreshold?: number;
  /** Most bits in which the hashes of near pictures differ; 8 by default. */
  readonly maxHashBits?: number;
  /** Needed for `near` and `near-media`. */
  readonly media?: MediaCache;
  readonly pool?: DecoderPool;
  readonly onProgress?: (progress: { numDone: number; numSamples: number }) => void;
  readonly signal?: AbortSignal;
}

/** A sample that is left out. */
export interface Dropped {
  readonly id: string;
  readonly split: 'train' | 'heldOut';
  /** The rule that it breaks, the kind of copy that it is, or the code of what is wrong with its media. */
  readonly reason: string;
  /** The sample that it is a copy of. */
  readonly of?: string;
}

export interface FilterResult {
  readonly index: SampleIndex;
  readonly dropped: readonly Dropped[];
}

const FORMAT = 'videoloom-filter/1';
const HASHED_AT_ONCE = 16;
/** Frames of a span that are compared, spread evenly. */
const NUM_FRAMES = 4;
/** Spans look the same if this share of their frames do. */
const MIN_SHARE = 0.5;

/**
 * Filters an index. Of several copies the one held out is kept, so that nothing that is evaluated on is trained on; within
 * a split the first by id. A pure function of the index, its media and the options.
 * @throws StorageError, DecodeError where no file is to blame: without credentials, with a full disk, with no decoder
 */
export async function filterIndex(options: FilterOptions): Promise<FilterResult> {
  const { index, rules, dedup } = options;
  const why = new Map<Sample, Omit<Dropped, 'id' | 'split'>>();
  for (const sample of [...index.heldOut, ...index.train]) {
    const broken = brokenRule(sample, index.files, rules);
    if (broken !== undefined) why.set(sample, { reason: broken.text });
  }
  for (const kind of dedup) {
    const left = [...byId(index.heldOut), ...byId(index.train)].filter(
      (sample) => !why.has(sample),
    );
    const copies = await copiesOf(left, kind, options);
    for (const [sample, reason] of copies) why.set(sample, reason);
  }
  const dropped = (['train', 'heldOut'] as const).flatMap((split) =>
    index[split].flatMap((sample) => {
      const reason = why.get(sample);
      return reason === undefined ? [] : [{ id: sample.id, split, ...reason }];
    }),
  );
  return { index: without(index, why), dropped };
}

/** Writes the report as JSON Lines: a line with the counts, then one for each sample that is left out. */
export async function writeReport(
  { index, dropped }: FilterResult,
  of: SampleIndex,
  file: string,
): Promise<void> {
  const head = {
    ...{ format: FORMAT, of: of.digest, digest: index.digest },
    ...{
      numSamples: of.train.length + of.heldOut.length,
      numKept: index.train.length + index.heldOut.length,
    },
    dropped: countReasons(dropped),
  };
  await writeFileDurably(
    file,
    [head, ...dropped].map((line) => `${JSON.stringify(line)}\n`),
  );
}

/** How many samples are left out for each reason, most first. */
export function countReasons(dropped: readonly Dropped[]): Record<string, number> {
  const counts = new Map<string, number>();
  for (const { reason } of dropped) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  return Object.fromEntries([...counts].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1)));
}

/** The index without some of its samples, and without the files that no other is of. */
function without(index: SampleIndex, left: ReadonlyMap<Sample, unknown>): SampleIndex {
  const [train, heldOut] = [index.train, index.heldOut].map((samples) =>
    samples.filter((sample) => !left.has(sample)),
  ) as [Sample[], Sample[]];
  const used = new Set(
    [...train, ...heldOut].flatMap(({ media }) => media.map(({ file }) => file)),
  );
  const rows = [...used].sort((a, b) => a - b);
  const rowOf = new Map(rows.map((row, at) => [row, at]));
  const moved = (samples: readonly Sample[]): Sample[] =>
    samples.map((sample) => ({
      ...sample,
      media: sample.media.map((span) => ({ ...span, file: rowOf.get(span.file)! })),
    }));
  const content = {
    files: rows.map((row) => index.files[row]!),
    ...{ train: moved(train), heldOut: moved(heldOut) },
  };
  return { ...index, ...content, digest: digestOf(content) };
}

/** By code unit. */
function byId(samples: readonly Sample[]): Sample[] {
  return [...samples].sort((a, b) => (a.id < b.id ? -1 : 1));
}

type Reasons = Map<Sample, Omit<Dropped, 'id' | 'split'>>;

/** Of samples in the order in which they are kept, those that are a copy of an earlier one that is kept. */
async function copiesOf(
  samples: readonly Sample[],
  kind: Dedup,
  options: FilterOptions,
): Promise<Reasons> {
  switch (kind) {
    case 'exact':
      return exactCopies(samples, options.index.files);
    case 'near-text':
      return nearTexts(samples, options);
    case 'near-media':
    case 'near':
      return nearMedia(samples, kind, options);
  }
}

function exactCopies(samples: readonly Sample[], files: readonly MediaFile[]): Reasons {
  const first = new Map<string, Sample>();
  const copies: Reasons = new Map();
  for (const sample of samples) {
    const media = sample.media.map((span) => [
      files[span.file]!.sha256,
      span.startSeconds,
      span.endSeconds,
    ]);
    const key = JSON.stringify([media, sample.text]);
    const of = first.get(key);
    if (of === undefined) first.set(key, sample);
    else copies.set(sample, { reason: 'exact', of: of.id });
  }
  return copies;
}

function nearTexts(samples: readonly Sample[], { textThreshold = 0.8 }: FilterOptions): Reasons {
  const index = new TextIndex(textThreshold);
  const kept: Sample[] = [];
  const copies: Reasons = new Map();
  for (const sample of samples) {
    // Samples without words are not copies of each other.
    if (sample.text.trim() === '') continue;
    const [of] = index.near(sample.text);
    if (of !== undefined) copies.set(sample, { reason: 'near-text', of: kept[of]!.id });
    else {
      index.add(sample.text);
      kept.push(sample);
    }
  }
  return copies;
}

/** Hash of each frame that is compared; undefined for a frame of one colour. */
type Look = readonly (bigint | undefined)[];

async function nearMedia(
  samples: readonly Sample[],
  kind: 'near' | 'near-media',
  options: FilterOptions,
): Promise<Reasons> {
  const { textThreshold = 0.8, maxHashBits = 8, onProgress } = options;
  const index = new HashIndex(maxHashBits);
  // Of each hash of the index, the sample and the place in its look.
  const places: { readonly sample: number; readonly place: number }[] = [];
  const kept: { sample: Sample; look: Look }[] = [];
  const copies: Reasons = new Map();
  let numDone = 0;
  for await (const { sample, look } of looksOf(samples, options)) {
    onProgress?.({ numDone: ++numDone, numSamples: samples.length });
    if ('code' in look) {
      copies.set(sample, { reason: look.code });
      continue;
    }
    const numNear = new Map<number, number>();
    for (const [place, hash] of look.entries()) {
      for (const n of hash === undefined ? [] : index.near(hash)) {
        const found = places[n]!;
        if (found.place === place) numNear.set(found.sample, (numNear.get(found.sample) ?? 0) + 1);
      }
    }
    const of = [...numNear]
      .filter(
        ([n, count]) => kept[n]!.look.length === look.length && count >= MIN_SHARE * look.length,
      )
      .map(([n]) => n)
      .sort((a, b) => a - b)
      .find(
        (n) =>
          kind === 'near-media' || isNearText(kept[n]!.sample.text, sample.text, textThreshold),
      );
    if (of !== undefined) {
      copies.set(sample, { reason: kind, of: kept[of]!.sample.id });
      continue;
    }
    const number = kept.push({ sample, look }) - 1;
    for (const [place, hash] of look.entries()) {
      if (hash === undefined) continue;
      index.add(hash);
      places.push({ sample: number, place });
    }
  }
  return copies;
}

function isNearText(a: string, b: string, threshold: number): boolean {
  return jaccard(shinglesOf(a), shinglesOf(b)) >= threshold;
}

/** What the samples look like, in their order, a few of them decoded at a time. */
async function* looksOf(
  samples: readonly Sample[],
  options: FilterOptions,
): AsyncGenerator<{ sample: Sample; look: Look | { readonly code: string } }> {
  const ahead: Promise<Look | { readonly code: string }>[] = [];
  for (let next = 0, at = 0; at < samples.length; at++) {
    for (; ahead.length < HASHED_AT_ONCE && next < samples.length; next++) {
      const job = lookOf(samples[next]!, options);
      job.catch(() => undefined); // awaited in its turn
      ahead.push(job);
    }
    yield { sample: samples[at]!, look: await ahead.shift()! };
  }
}

async function lookOf(
  { media }: Sample,
  options: FilterOptions,
): Promise<Look | { readonly code: string }> {
  const { index, signal } = options;
  try {
    const looks: (bigint | undefined)[] = [];
    for (const span of media)
      looks.push(...(await hashesOf(span, index.files[span.file]!, options)));
    return looks;
  } catch (error) {
    signal?.throwIfAborted();
    // What is wrong on the way to it costs no sample: the file may be whole.
    if (!isFileFault(error)) throw error;
    return { code: error.code };
  }
}

async function hashesOf(
  { startSeconds, endSeconds }: MediaSpan,
  file: MediaFile,
  { media, pool, signal }: FilterOptions,
): Promise<(bigint | undefined)[]> {
  const { release, ...place } = await media!.acquire(file, signal);
  try {
    const request = { ...place, width: HASH_SIDE, height: HASH_SIDE };
    const timesSeconds = evenTimes(startSeconds, endSeconds, NUM_FRAMES);
    const { frames } = await (file.kind === 'image'
      ? pool!.decodeImage(request, signal)
      : pool!.decode({ ...request, timesSeconds }, signal));
    const numPixels = HASH_SIDE ** 2;
    return Array.from({ length: frames.length / (numPixels * 3) }, (_, i) =>
      perceptualHash(greyOf(frames.subarray(i * numPixels * 3, (i + 1) * numPixels * 3))),
    );
  } finally {
    release();
  }
}

/** Brightness of RGB pixels. Source: Rec. ITU-R BT.601-7, sec. 2.5.1. */
function greyOf(rgb: Uint8Array): Uint8Array {
  return Uint8Array.from({ length: rgb.length / 3 }, (_, i) =>
    Math.round((299 * rgb[3 * i]! + 587 * rgb[3 * i + 1]! + 114 * rgb[3 * i + 2]!) / 1000),
  );
}
