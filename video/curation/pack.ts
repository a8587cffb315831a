/**
 * Writes the samples of an index as WebDataset tar shards with an index of their own, so that they are read as one file
 * after the other. A shard has its name only when it is whole and on disk, its bytes depend on the data alone, and a run
 * that was killed goes on behind the last whole shard.
 */
import { createHash } from 'node:crypto';
import { mkdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import type { DecoderPool } from '../decode/decoder.ts';
import { locationShown, type MediaFile, type Sample, type SkippedRecord } from '../index/sample.ts';
import {
  DataError,
  digestOf,
  INDEX_FILE,
  writeIndex,
  type SampleIndex,
} from '../index/sample-index.ts';
import { isFileFault } from '../loading/file-fault.ts';
import type { MediaCache } from '../storage/media-cache.ts';
import { CurationError, diskFull, writeErrorOf } from './curation-error.ts';
import { FfmpegFailure } from './ffmpeg-job.ts';
import { openJournal } from './journal.ts';
import { renderRecord, type PackedRecord, type PackForm } from './pack-media.ts';
import { fieldOf, keyOf, recordsOf, toVtt, type PackRecord, type Split } from './pack-records.ts';
import { removeLeftovers } from './part-file.ts';
import { openShardWriter, tarBytes, type ShardWriter } from './shard-writer.ts';

export interface PackOptions {
  readonly index: SampleIndex;
  /** Folder of the shards. */
  readonly out: string;
  /** A shard is ended before it would be larger, unless one record alone is. */
  readonly shardBytes: number;
  readonly form: PackForm;
  /** Over the index's root. */
  readonly media: MediaCache;
  /** Decodes and probes; not asked where files are stored as they are. */
  readonly pool: DecoderPool;
  /** Records made ready at a time; 4 by default. */
  readonly numAhead?: number;
  readonly onProgress?: (progress: PackProgress) => void;
  readonly signal?: AbortSignal;
}

export interface PackProgress {
  readonly numDone: number;
  readonly numRecords: number;
  readonly bytesWritten: number;
}

/** One tar file. */
export interface PackedShard {
  readonly name: string;
  readonly split: Split;
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly numRecords: number;
  readonly numSamples: number;
}

export interface PackSummary {
  readonly shards: readonly PackedShard[];
  /** Those that an earlier run has written. */
  readonly numKept: number;
  readonly numTrain: number;
  readonly numHeldOut: number;
  /** Media that could not be stored; their samples are left out. */
  readonly skipped: readonly SkippedRecord[];
}

/** The list of shards beside them; the index is {@link INDEX_FILE}. */
export const SHARDS_FILE = 'shards.json';

const FORMAT = 'videoloom-shards/1';
const JOURNAL = '.pack.jsonl';
const SHARD_PREFIX = { train: 'train', heldOut: 'held-out' } as const;

/**
 * Packs an index. A medium that cannot be stored costs its samples alone.
 * @throws CurationError PACK_OF_OTHER_DATA, DISK_FULL; StorageError, DecodeError where no file is to blame: without
 * credentials, with a full cache, with nothing to decode with
 */
export async function packShards(options: PackOptions): Promise<PackSummary> {
  const { index, out, shardBytes, form } = options;
  await mkdir(out, { recursive: true });
  await removeLeftovers(out);
  const task = createHash('sha256')
    .update(JSON.stringify([FORMAT, index.digest, shardBytes, form]))
    .digest('hex');
  const journal = await openJournal<{ task: string } | ShardEntry>(join(out, JOURNAL));
  try {
    const [head, ...rest] = journal.entries;
    if (head === undefined) await journal.append({ task });
    else if (!('task' in head) || head.task !== task) {
      throw new CurationError(
        'PACK_OF_OTHER_DATA',
        `${out} holds shards of another index or of other options; name an empty folder`,
      );
    }
    const kept = await presentShards(out, rest as ShardEntry[]);
    const entries = [...kept];
    const areShared = form.kind === 'files';
    const records = {
      train: recordsOf(index, 'train', areShared),
      heldOut: recordsOf(index, 'heldOut', areShared),
    };
    const numRecords = records.train.length + records.heldOut.length;
    const progress = { numDone: 0, numRecords, bytesWritten: 0 };
    for (const split of ['train', 'heldOut'] as const) {
      const own = kept.filter((entry) => entry.split === split);
      const numDone = own.reduce((sum, entry) => sum + entry.numTaken, 0);
      progress.numDone += numDone;
      const todo = records[split].slice(numDone);
      for await (const entry of writeShards(todo, own.length, options, progress)) {
        await journal.append(entry);
        entries.push(entry);
      }
    }
    // In the order of a run that nothing interrupted.
    const ordered = (['train', 'heldOut'] as const).flatMap((split) =>
      entries.filter((entry) => entry.split === split).sort((a, b) => (a.name < b.name ? -1 : 1)),
    );
    return { ...(await writeManifests(options, ordered)), numKept: kept.length };
  } catch (error) {
    throw writeErrorOf(error, out);
  } finally {
    await journal.close();
  }
}

/** A shard with what its members are; the index is put together from these. */
interface ShardEntry {
  readonly name: string;
  readonly split: Split;
  readonly sizeBytes: number;
  readonly sha256: string;
  /** Records that it has used up, with those left out. */
  readonly numTaken: number;
  /** Files with their place in the shard; the samples' spans count them from here. */
  readonly records: readonly {
    readonly files: readonly MediaFile[];
    readonly samples: readonly Sample[];
  }[];
  readonly skipped: readonly SkippedRecord[];
}

/** The shards of the journal up to the first that is no longer there as a whole; the rest is written anew. */
async function presentShards(out: string, entries: readonly ShardEntry[]): Promise<ShardEntry[]> {
  const latest = new Map<string, ShardEntry>();
  for (const entry of entries) latest.set(entry.name, entry);
  const present: ShardEntry[] = [];
  const isBroken = { train: false, heldOut: false };
  for (const entry of latest.values()) {
    const size = (await stat(join(out, entry.name)).catch(() => undefined))?.size;
    // A split's last records may all have been left out, and then there is no shard.
    if (size !== entry.sizeBytes && entry.sizeBytes > 0) isBroken[entry.split] = true;
    if (!isBroken[entry.split]) present.push(entry);
  }
  return present;
}

async function* writeShards(
  records: readonly PackRecord[],
  firstShard: number,
  options: PackOptions,
  progress: { numDone: number; numRecords: number; bytesWritten: number },
): AsyncGenerator<ShardEntry> {
  const { out, shardBytes, onProgress } = options;
  let shard: OpenShard | undefined;
  let numShards = firstShard;
  try {
    for await (const { record, packed } of rendered(records, options)) {
      try {
        options.signal?.throwIfAborted();
        const members = 'refused' in packed ? [] : membersOf(record, packed);
        const bytes = tarBytes(members.map(({ content }) => lengthOf(content)));
        if (
          shard !== undefined &&
          shard.numMembers > 0 &&
          shard.writer.sizeBytes + bytes > shardBytes
        ) {
          const ended = shard;
          shard = undefined;
          yield await ended.finish();
        }
        if (shard === undefined) {
          const number = String(numShards++).padStart(6, '0');
          const name = `${SHARD_PREFIX[record.split]}-${number}.tar`;
          shard = new OpenShard(name, record.split, await openShardWriter(join(out, name)));
        }
        if ('refused' in packed) shard.leaveOut(packed.refused);
        else await shard.add(packed, members);
        progress.bytesWritten += bytes;
      } finally {
        if (!('refused' in packed)) await packed.release();
      }
      progress.numDone++;
      onProgress?.({ ...progress });
    }
    const ended = shard;
    shard = undefined;
    if (ended !== undefined) yield await ended.finish();
  } finally {
    await shard?.writer.discard();
  }
}

/** A shard that is being written. */
class OpenShard {
  readonly writer: ShardWriter;
  numMembers = 0;
  readonly #name: string;
  readonly #split: Split;
  readonly #records: { files: MediaFile[]; samples: readonly Sample[] }[] = [];
  readonly #skipped: SkippedRecord[] = [];
  #numTaken = 0;

  constructor(name: string, split: Split, writer: ShardWriter) {
    this.#name = name;
    this.#split = split;
    this.writer = writer;
  }

  leaveOut(why: SkippedRecord): void {
    this.#skipped.push(why);
    this.#numTaken++;
  }

  async add(packed: PackedRecord, members: readonly Member[]): Promise<void> {
    const files: MediaFile[] = [];
    for (const { name, content, medium } of members) {
      const range = await this.writer.add(name, content);
      this.numMembers++;
      if (medium !== undefined)
        files.push({ ...packed.media[medium]!.file, path: this.#name, range });
    }
    this.#records.push({ files, samples: packed.samples });
    this.#numTaken++;
  }

  async finish(): Promise<ShardEntry> {
    const common = {
      ...{ name: this.#name, split: this.#split, numTaken: this.#numTaken },
      ...{ records: this.#records, skipped: this.#skipped },
    };
    try {
      if (this.numMembers > 0) return { ...common, ...(await this.writer.finish()) };
      await this.writer.discard();
      return { ...common, sizeBytes: 0, sha256: '' };
    } catch (error) {
      await this.writer.discard();
      throw error;
    }
  }
}

interface Member {
  readonly name: string;
  readonly content: PackedRecord['media'][number]['content'];
  /** Place among the record's media. */
  readonly medium?: number;
}

/** The members of a record: its media, then its words for readers who know no more than WebDataset. */
function membersOf(record: PackRecord, { media, samples, ptsSeconds }: PackedRecord): Member[] {
  const key = keyOf(record);
  const fields = media.map(({ ending }, place) => fieldOf(ending, place, media.length));
  const content = media.map((medium, place) => ({
    ...{ name: `${key}.${fields[place]!}`, content: medium.content, medium: place },
  }));
  const told = samples.map(({ id, media: spans, text, cues, parts }) => ({
    ...{ id, text, cues, parts },
    media: spans.map(({ file, ...span }) => ({ member: fields[file]!, ...span })),
  }));
  const cues = samples.flatMap((sample) => sample.cues);
  const text = (field: string, words: string): Member => ({
    ...{ name: `${key}.${field}`, content: Buffer.from(words) },
  });
  return [
    ...content,
    text('json', JSON.stringify({ samples: told, ptsSeconds })),
    ...(samples.length === 1 ? [text('txt', samples[0]!.text)] : []),
    ...(cues.length > 0 ? [text('vtt', toVtt(cues))] : []),
  ];
}

function lengthOf(content: Member['content']): number {
  return content instanceof Uint8Array ? content.length : content.sizeBytes;
}

interface Rendered {
  readonly record: PackRecord;
  readonly packed: PackedRecord | { readonly refused: SkippedRecord };
}

/** The records in their order, a few of them made ready at a time. */
async function* rendered(
  records: readonly PackRecord[],
  options: PackOptions,
): AsyncGenerator<Rendered> {
  const { index, out, form, media, pool, numAhead = 4 } = options;
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(options.signal ? [options.signal] : [])]);
  const context = { files: index.files, media, pool, folder: out, signal };
  const ahead: Promise<Rendered>[] = [];
  let next = 0;
  const fill = (): void => {
    while (ahead.length < numAhead && next < records.length) {
      const record = records[next++]!;
      const job = renderRecord(record, form, context).then(
        (packed) => ({ record, packed }),
        (error: unknown) => ({
          record,
          packed: { refused: refusalOf(error, record, options, signal) },
        }),
      );
      job.catch(() => undefined); // awaited in its turn
      ahead.push(job);
    }
  };
  try {
    fill();
    while (ahead.length > 0) {
      yield await ahead.shift()!;
      fill();
    }
  } finally {
    stop.abort();
    for (const left of await Promise.allSettled(ahead)) {
      if (left.status === 'fulfilled' && !('refused' in left.value.packed)) {
        await left.value.packed.release();
      }
    }
  }
}

/** Why a record is left out. Throws what is no fault of its media. */
function refusalOf(
  error: unknown,
  { files, samples }: PackRecord,
  { index, out }: PackOptions,
  signal: AbortSignal,
): SkippedRecord {
  signal.throwIfAborted();
  const path = files[0] === undefined ? samples[0]!.id : locationShown(index.files[files[0]]!);
  if (error instanceof FfmpegFailure) {
    if (error.kind === 'disk') throw diskFull(out, error.reason);
    return { path, code: 'VIDEO_UNREADABLE', message: error.reason };
  }
  // What is wrong on the way to it costs no sample: the file may be whole.
  if (!isFileFault(error) && !(error instanceof DataError)) throw error;
  return { path, code: error.code, message: error.message };
}

/** The index over the shards, and the list of them. */
async function writeManifests(
  { index, out, form, shardBytes }: PackOptions,
  entries: readonly ShardEntry[],
): Promise<Omit<PackSummary, 'numKept'>> {
  const files: MediaFile[] = [];
  const byId = new Map<string, Sample>();
  for (const { records } of entries) {
    for (const record of records) {
      const row = files.length;
      files.push(...record.files);
      for (const sample of record.samples) {
        const media = sample.media.map((span) => ({ ...span, file: span.file + row }));
        byId.set(sample.id, { ...sample, media });
      }
    }
  }
  const inOrder = (samples: readonly Sample[]): Sample[] =>
    samples.flatMap(({ id }) => byId.get(id) ?? []);
  const content = { files, train: inOrder(index.train), heldOut: inOrder(index.heldOut) };
  const skipped = entries.flatMap((entry) => entry.skipped);
  const packed: SampleIndex = {
    // Shards and index may be moved together.
    ...{ root: '.', digest: digestOf(content), ...content },
    ...{ skipped: [...index.skipped, ...skipped], numCaptionWarnings: index.numCaptionWarnings },
  };
  await writeIndex(packed, join(out, INDEX_FILE));
  const shards: PackedShard[] = entries
    .filter(({ sizeBytes }) => sizeBytes > 0)
    .map(({ name, split, sizeBytes, sha256, records }) => ({
      ...{ name, split, sizeBytes, sha256, numRecords: records.length },
      numSamples: records.reduce((sum, { samples }) => sum + samples.length, 0),
    }));
  const counts = { numTrain: packed.train.length, numHeldOut: packed.heldOut.length };
  const list = {
    ...{ format: FORMAT, of: index.digest, digest: packed.digest, form, shardBytes },
    ...{ ...counts, shards, skipped },
  };
  await writeFileDurably(join(out, SHARDS_FILE), `${JSON.stringify(list, null, 2)}\n`);
  return { shards, ...counts, skipped };
}
