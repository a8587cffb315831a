/** Tar shards as Python's `webdataset` and `img2dataset` write them. */
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { openIdSet } from './id-set.ts';
import { MAX_RECORD_BYTES } from './json-pieces.ts';
import { kindOf } from './media-names.ts';
import { openReadAhead, type ReadAhead } from './read-ahead.ts';
import type { Source, SourceMedia, SourceRecord } from './source.ts';
import { splitsOf } from './splits.ts';
import { DamagedTar, tarMembers, type TarMember } from './tar-index.ts';
import { NO_WORDS, WORDS_ENDINGS, wordsOf, type Words } from './words.ts';

const COMPRESSED = /\.(?:tar\.(?:gz|bz2|xz|zst)|tgz)$/i;
/** `.cls` holds the number or the name of a class: the words of last resort. */
const TEXT_ENDINGS: readonly string[] = [...WORDS_ENDINGS, '.cls'];
/** More members of one name are no sample. */
const MAX_MEMBERS = 1024;

/**
 * A sample is a run of members with one key: the name up to the first dot of its last component. What follows is the
 * field. Its media are the videos, or where it has none the pictures, of plain fields (`jpg`) if there are such, else of
 * compound ones (`0.jpg`, `seg.png`); its words those of `vtt`, `srt`, `txt`, `json` or `cls`. The id is the shard's
 * name and the key, as keys repeat between shards. Files beside the shards are not looked at.
 * Source: github.com/webdataset/webdataset, "The WebDataset Format".
 */
export const webdataset: Source = {
  name: 'webdataset',
  matches: (_store, files) =>
    Promise.resolve(files.some(({ path }) => isShard(path) || COMPRESSED.test(path))),
  async *read(store, files, signal) {
    const shards = files.filter(({ path }) => isShard(path));
    const splitOf = splitsOf(shards.map(({ path }) => path));
    for (const { path } of files) {
      if (!COMPRESSED.test(path)) continue;
      const message = `${path} is compressed as a whole, so no sample can be read by itself; unpack it to a plain .tar`;
      yield { skipped: { path, code: 'SHARD_COMPRESSED', message } };
    }
    if (shards.length === 0) {
      const message = `there are no tar shards in ${store.root} or below it; files that end in .tar are looked for`;
      throw new DataError('DATA_EMPTY', message);
    }
    for (const shard of shards) {
      const split = splitOf(shard.path);
      for await (const record of readShard(store, shard, signal)) {
        if ('skipped' in record || split === undefined) yield record;
        else yield { sample: { ...record.sample, split } };
      }
    }
  },
};

function isShard(path: string): boolean {
  return /\.tar$/i.test(path);
}

/** The members of one sample so far. */
interface Group {
  readonly key: string;
  readonly media: { readonly field: string; readonly media: SourceMedia }[];
  numMembers: number;
  words: Words;
  /** Of the words in {@link TEXT_ENDINGS}: lower ones count before them. */
  wordsRank: number;
  fault?: { readonly code: string; readonly message: string };
}

async function* readShard(
  store: Store,
  shard: StoredFile,
  signal?: AbortSignal,
): AsyncGenerator<SourceRecord> {
  const bytes = openReadAhead(store, shard, signal);
  const ids = openIdSet();
  let group: Group | undefined;
  try {
    for await (const member of tarMembers(store, shard, { bytes, signal })) {
      if (member.type === 'folder') continue;
      const refusal = refusalOf(member);
      if (refusal !== undefined) {
        yield { skipped: { path: `${shard.path}!${member.name}`, ...refusal } };
        continue;
      }
      const split = splitName(member.name);
      if (split === undefined) continue;
      if (split.key !== group?.key) {
        if (group) yield recordOf(group, shard, ids.add(group.key));
        const words = NO_WORDS;
        group = { key: split.key, media: [], numMembers: 0, words, wordsRank: Infinity };
      }
      await addMember(group, split.field, member, shard, bytes);
    }
    if (group) yield recordOf(group, shard, ids.add(group.key));
  } catch (error) {
    if (!(error instanceof DamagedTar)) throw error;
    // The sample that was being read may lack members: half of one is none.
    const name = group?.key ?? error.member;
    const path = name === undefined ? shard.path : `${shard.path}!${name}`;
    yield { skipped: { path, code: error.code, message: error.message } };
  }
}

function refusalOf({ name, type }: TarMember): { code: string; message: string } | undefined {
  if (type !== 'file') {
    const message = `a member of the type ${type} is not read; write plain files into the shard`;
    return { code: 'MEMBER_UNSAFE', message };
  }
  if (
    /^(?:[/\\]|[a-z]:[/\\])/i.test(name) ||
    name.includes('\0') ||
    /(?:^|[/\\])\.\.(?:[/\\]|$)/.test(name)
  ) {
    const message =
      'the name leads out of the shard; write names without .. and without a leading /';
    return { code: 'MEMBER_UNSAFE', message };
  }
  return undefined;
}

/** Undefined for names that are of no sample: hidden ones and those without an ending. */
function splitName(name: string): { readonly key: string; readonly field: string } | undefined {
  const match = /^((?:.*\/)?[^./][^./]*)\.([^/]+)$/.exec(name.replace(/^(?:\.\/)+/, ''));
  return match ? { key: match[1]!, field: match[2]!.toLowerCase() } : undefined;
}

async function addMember(
  group: Group,
  field: string,
  { name, offset, sizeBytes }: TarMember,
  shard: StoredFile,
  bytes: ReadAhead,
): Promise<void> {
  if (++group.numMembers > MAX_MEMBERS) {
    const message = `more than ${MAX_MEMBERS} members have this name`;
    group.fault = { code: 'SAMPLE_TOO_LARGE', message };
    return;
  }
  const kind = kindOf(`_.${field}`);
  if (kind !== undefined) {
    const range = { offset, sizeBytes };
    group.media.push({ field, media: { kind, path: shard.path, range } });
    return;
  }
  const rank = TEXT_ENDINGS.indexOf(`.${field.slice(field.lastIndexOf('.') + 1)}`);
  if (rank === -1 || rank >= group.wordsRank) return;
  group.wordsRank = rank;
  if (sizeBytes > MAX_RECORD_BYTES) {
    const message = `${name} has ${sizeBytes} bytes, more than the ${MAX_RECORD_BYTES} that are read`;
    group.fault = { code: 'CAPTION_UNREADABLE', message };
    return;
  }
  try {
    group.words = wordsOf(TEXT_ENDINGS[rank]!, await bytes.read(offset, sizeBytes));
  } catch (error) {
    if (!(error instanceof DataError)) throw error;
    group.fault = { code: 'CAPTION_UNREADABLE', message: `${name}: ${error.message}` };
  }
}

function recordOf(group: Group, shard: StoredFile, isNew: boolean): SourceRecord {
  const { key, words, fault } = group;
  const path = `${shard.path}!${key}`;
  if (fault) return { skipped: { path, ...fault } };
  if (!isNew) {
    const message = 'the members of this name do not follow one another, or it is there twice';
    return { skipped: { path, code: 'DUPLICATE_ID', message } };
  }
  const media = chooseMedia(group);
  if (media.length === 0) {
    const message = 'no member of this name is a video or a picture';
    return { skipped: { path, code: 'SAMPLE_NO_MEDIA', message } };
  }
  const { text, cues, numWarnings: numCaptionWarnings } = words;
  const id = `${shard.path.slice(0, -'.tar'.length)}/${key}`;
  return { sample: { id, media, text, cues, numCaptionWarnings } };
}

function chooseMedia({ media }: Group): SourceMedia[] {
  const plain = media.filter(({ field }) => !field.includes('.'));
  const candidates = (plain.length > 0 ? plain : media).map((one) => one.media);
  const videos = candidates.filter(({ kind }) => kind === 'video');
  return videos.length > 0 ? videos : candidates;
}
