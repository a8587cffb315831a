/** Ways in which media files are broken in the wild, and on purpose. Each makes one file out of a good one. */
import { deflateSync } from 'node:zlib';
import { crc32 } from '@node-rs/crc32';
import type { Rng } from '../../proto/random.ts';

/** A file of the corpus. */
export interface MutatedFile {
  /** Ending with its dot. */
  readonly ending: string;
  readonly bytes: Buffer;
  /** Words beside it, by ending. */
  readonly words?: Readonly<Record<string, string | Buffer>>;
}

/** Good files that mutations start from. */
export interface GoodFiles {
  readonly videos: readonly Buffer[];
  readonly pictures: readonly { readonly ending: string; readonly bytes: Buffer }[];
}

export type Mutation = (rng: Rng, good: GoodFiles) => MutatedFile;

const GOOD_VTT = 'WEBVTT\n\n00:00.500 --> 00:01.500\nsome words\n';

function pick<T>(rng: Rng, items: readonly T[]): T {
  return items[rng.integer(items.length)]!;
}

/** A video with something done to a copy of it. */
function video(change: (bytes: Buffer, rng: Rng) => Buffer | undefined): Mutation {
  return (rng, { videos }) => {
    const bytes = Buffer.from(pick(rng, videos));
    return { ending: '.mp4', bytes: change(bytes, rng) ?? bytes, words: { '.vtt': GOOD_VTT } };
  };
}

function picture(change: (bytes: Buffer, rng: Rng) => Buffer | undefined): Mutation {
  return (rng, { pictures }) => {
    const { ending, bytes: good } = pick(rng, pictures);
    const bytes = Buffer.from(good);
    return { ending, bytes: change(bytes, rng) ?? bytes, words: { '.txt': 'a picture' } };
  };
}

function words(ending: string, text: (rng: Rng) => string | Buffer): Mutation {
  return (rng, { videos }) => ({
    ending: '.mp4',
    bytes: pick(rng, videos),
    words: { [ending]: text(rng) },
  });
}

function flipBits(bytes: Buffer, rng: Rng, count: number, from = 0, to = bytes.length): void {
  for (let i = 0; i < count; i++) {
    const at = from + rng.integer(Math.max(1, to - from));
    bytes[at]! ^= 1 << rng.integer(8);
  }
}

/** Where the boxes of a kind begin (at their size), by their four letters. */
function boxes(bytes: Buffer, kind: string): number[] {
  const found: number[] = [];
  for (let at = bytes.indexOf(kind); at >= 4; at = bytes.indexOf(kind, at + 1)) found.push(at - 4);
  return found;
}

/** Calls `change` with the place of a box, of a kind drawn from these; the file stays as it is if it has none. */
function box(
  kinds: readonly string[],
  change: (bytes: Buffer, at: number, rng: Rng) => void,
): Mutation {
  return video((bytes, rng) => {
    const places = boxes(bytes, pick(rng, kinds));
    if (places.length > 0) change(bytes, pick(rng, places), rng);
    return undefined;
  });
}

const CONTAINERS = ['moov', 'trak', 'mdia', 'minf', 'stbl', 'stsd', 'avc1', 'udta'];
const TABLES = ['stts', 'ctts', 'stsc', 'stsz', 'stco', 'stss', 'elst'];
const EXTREMES = [0, 1, 2, 7, 8, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff];

/** By name; the name of a corpus file begins with it. */
export const MUTATIONS: Readonly<Record<string, Mutation>> = {
  'good-video': video(() => undefined),
  'good-picture': picture(() => undefined),

  // Bits and lengths.
  'bit-flips': video((bytes, rng) => {
    flipBits(bytes, rng, 1 + rng.integer(64));
    return undefined;
  }),
  'bit-flips-header': video((bytes, rng) => {
    const [moov = 0] = boxes(bytes, 'moov');
    flipBits(bytes, rng, 1 + rng.integer(16), moov, moov + 2000);
    return undefined;
  }),
  'bit-flips-picture': picture((bytes, rng) => {
    flipBits(bytes, rng, 1 + rng.integer(64));
    return undefined;
  }),
  truncated: video((bytes, rng) => bytes.subarray(0, rng.integer(bytes.length))),
  'truncated-picture': picture((bytes, rng) => bytes.subarray(0, rng.integer(bytes.length))),
  'hole-of-zeros': video((bytes, rng) => {
    const at = rng.integer(bytes.length);
    bytes.fill(0, at, Math.min(bytes.length, at + rng.integer(4096)));
    return undefined;
  }),
  'block-moved': video((bytes, rng) => {
    const size = 64 + rng.integer(1024);
    bytes.copyWithin(rng.integer(bytes.length), rng.integer(bytes.length), size);
    return undefined;
  }),
  'two-glued': (rng, { videos }) => ({
    ending: '.mp4',
    bytes: Buffer.concat([pick(rng, videos), pick(rng, videos)]),
  }),
  empty: () => ({ ending: '.mp4', bytes: Buffer.alloc(0) }),
  noise: (rng) => ({
    ending: pick(rng, ['.mp4', '.mkv', '.webm', '.avi', '.ts', '.jpg', '.png', '.webp']),
    bytes: Buffer.from(
      Uint32Array.from({ length: 1 + rng.integer(8192) }, () => rng.uint32()).buffer,
    ),
  }),

  // Boxes that lie.
  'box-size': box([...CONTAINERS, ...TABLES, 'mdat', 'ftyp'], (bytes, at, rng) => {
    bytes.writeUInt32BE(pick(rng, EXTREMES), at);
  }),
  'table-count': box(TABLES, (bytes, at, rng) => {
    if (at + 16 <= bytes.length) bytes.writeUInt32BE(pick(rng, EXTREMES), at + 12);
  }),
  'table-entries': box(TABLES, (bytes, at, rng) => {
    for (let i = 0; i < 8 && at + 20 + 4 * i <= bytes.length; i++) {
      bytes.writeUInt32BE(
        rng.integer(2) === 0 ? rng.uint32() : pick(rng, EXTREMES),
        at + 16 + 4 * i,
      );
    }
  }),
  'times-all-zero': box(['stts'], (bytes, at) => {
    const count = bytes.readUInt32BE(at + 12);
    for (let i = 0; i < Math.min(count, 1000) && at + 24 + 8 * i <= bytes.length; i++) {
      bytes.writeUInt32BE(0, at + 20 + 8 * i);
    }
  }),
  'huge-duration': box(['mvhd', 'mdhd', 'tkhd'], (bytes, at) => {
    bytes.fill(0xff, at + 24, at + 32);
  }),
  'huge-dimensions': box(['avc1'], (bytes, at, rng) => {
    bytes.writeUInt16BE(pick(rng, [0, 1, 16384, 65535]), at + 32);
    bytes.writeUInt16BE(pick(rng, [0, 1, 16384, 65535]), at + 34);
  }),
  // The parameter set in avcC says how large the pictures are, whatever the header says.
  'huge-picture-in-parameter-set': box(['avcC'], (bytes, at, rng) => {
    flipBits(bytes, rng, 6, at + 18, at + 30);
  }),
  'codec-unknown': box(['avc1'], (bytes, at, rng) => {
    bytes.write(pick(rng, ['hvc1', 'vp09', 'zzzz', 'mp4v', 'av01']), at + 4, 'latin1');
  }),
  'no-video-track': box(['vide'], (bytes, at) => {
    bytes.write('soun', at + 4, 'latin1');
  }),
  'boxes-in-boxes': video((bytes) => {
    const depth = 2000;
    const nested = Buffer.alloc(8 * depth);
    for (let i = 0; i < depth; i++) {
      nested.writeUInt32BE(8 * (depth - i), 8 * i);
      nested.write('moov', 8 * i + 4, 'latin1');
    }
    return Buffer.concat([bytes.subarray(0, 32), nested]);
  }),

  // Files that are not what they are called.
  'picture-as-video': (rng, { pictures }) => ({ ending: '.mp4', bytes: pick(rng, pictures).bytes }),
  'video-as-picture': (rng, { videos }) => ({
    ending: pick(rng, ['.jpg', '.png']),
    bytes: pick(rng, videos),
  }),
  'text-as-video': () => ({ ending: '.mkv', bytes: Buffer.from('#!/bin/sh\necho no\n') }),
  // A playlist would let a file name other files and hosts.
  'playlist-as-video': (rng) => ({
    ending: pick(rng, ['.mp4', '.ts']),
    bytes: Buffer.from('#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n'),
  }),
  'concat-as-video': () => ({
    ending: '.mp4',
    bytes: Buffer.from("ffconcat version 1.0\nfile '/etc/passwd'\n"),
  }),
  'svg-as-picture': () => ({
    ending: '.png',
    bytes: Buffer.from(
      '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
    ),
  }),
  'picture-bomb': (rng) => ({
    ending: '.png',
    bytes: pngOf(pick(rng, [30_000, 65_535, 0x7fffffff])),
  }),

  // Words.
  'times-negative': words(
    '.vtt',
    () =>
      'WEBVTT\n\n-00:01.000 --> 00:01.000\nbefore\n\n00:02.000 --> 00:01.000\nback\n\n00:00.100 --> 00:00.900\ngood\n',
  ),
  'times-huge': words('.srt', () => '1\n99:59:59,999 --> 99999999:00:00,000\nlate\n'),
  'words-not-utf8': words('.txt', (rng) =>
    Buffer.from(Array.from({ length: 300 }, () => 0x80 + rng.integer(0x80))),
  ),
  'words-long': words('.txt', () => 'word '.repeat(200_000)),
  'words-control': words('.txt', () => 'a\u0000b\u001b[2Jc\u202e d'),
  'json-broken': words('.json', () => '{"caption": "cut of'),
  'json-deep': words('.json', () => '['.repeat(100_000)),
};

/** A PNG that says it is `size` pixels square; its data are a few kilobytes that unpack to megabytes. */
function pngOf(size: number): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(size, 0);
  header.writeUInt32BE(size, 4);
  header.set([1, 0, 0, 0, 0], 8); // one bit a pixel, grey
  return Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(Buffer.alloc(8 * 2 ** 20))),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}

function chunk(kind: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(kind, 'latin1'), data]);
  const framed = Buffer.alloc(body.length + 8);
  framed.writeUInt32BE(data.length, 0);
  body.copy(framed, 4);
  framed.writeUInt32BE(crc32(body), body.length + 4);
  return framed;
}
