import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { pack, type Header } from 'tar-stream';
import { openRng, type Rng } from '../../proto/random.ts';
import { generateWorld } from '../world/generate.ts';
import { MUTATIONS, type GoodFiles, type MutatedFile } from './mutations.ts';

export interface CorpusOptions {
  /** Folder to make it in. */
  readonly dir: string;
  /** The same seed makes the same bytes. */
  readonly seed: number;
  /** Files beside each other in a folder; about as many again are members of tar shards. */
  readonly numFiles: number;
}

export interface Corpus {
  /** Files with their words beside them. */
  readonly folder: string;
  /** The same as tar shards, with members that lead out of them and shards that are damaged themselves. */
  readonly shards: string;
  /** How many files each mutation made. */
  readonly countByMutation: Readonly<Record<string, number>>;
}

const MEMBERS_OF_SHARD = 40;

/** Makes a corpus of damaged media out of clips of the demo world and pictures. */
export async function makeCorpus({ dir, seed, numFiles }: CorpusOptions): Promise<Corpus> {
  const good = await goodFiles(join(dir, 'good'), seed);
  const [folder, shards] = [join(dir, 'folder'), join(dir, 'shards')];
  await Promise.all([mkdir(folder, { recursive: true }), mkdir(shards, { recursive: true })]);

  const names = Object.keys(MUTATIONS);
  const countByMutation: Record<string, number> = {};
  const made: { name: string; file: MutatedFile }[] = [];
  for (let i = 0; i < numFiles; i++) {
    const mutation = names[i % names.length]!;
    countByMutation[mutation] = (countByMutation[mutation] ?? 0) + 1;
    const file = MUTATIONS[mutation]!(openRng(seed, mutation, i), good);
    made.push({ name: `${mutation}-${String(i).padStart(5, '0')}`, file });
  }
  for (const { name, file } of made) {
    await writeFile(join(folder, name + file.ending), file.bytes);
    for (const [ending, content] of Object.entries(file.words ?? {})) {
      await writeFile(join(folder, name + ending), content);
    }
  }
  for (let first = 0, shard = 0; first < made.length; first += MEMBERS_OF_SHARD, shard++) {
    const rng = openRng(seed, 'shard', shard);
    const bytes = await tarOf(made.slice(first, first + MEMBERS_OF_SHARD), rng);
    await writeFile(
      join(shards, `${String(shard).padStart(6, '0')}.tar`),
      damaged(bytes, shard, rng),
    );
  }
  await rm(join(dir, 'good'), { recursive: true });
  return { folder, shards, countByMutation };
}

async function goodFiles(dir: string, seed: number): Promise<GoodFiles> {
  await generateWorld({ dir, seed, trainClips: 6, heldOutClips: 1, numProcesses: 1 });
  const folder = join(dir, 'train');
  const clips = (await readdir(folder)).filter((name) => name.endsWith('.mp4')).sort();
  const videos = await Promise.all(clips.map((name) => readFile(join(folder, name))));
  const rng = openRng(seed, 'picture');
  const pixels = Buffer.from(Array.from({ length: 48 * 64 * 3 }, () => rng.integer(256)));
  const picture = sharp(pixels, { raw: { width: 64, height: 48, channels: 3 } });
  const formats = ['jpeg', 'png', 'webp'] as const;
  const pictures = await Promise.all(
    formats.map(async (format) => ({
      ending: format === 'jpeg' ? '.jpg' : `.${format}`,
      bytes: await picture.clone().toFormat(format).toBuffer(),
    })),
  );
  return { videos, pictures };
}

/** Members that no reader may follow. */
const TRAPS: readonly (Pick<Header, 'name'> & Partial<Header>)[] = [
  { name: '../../outside.mp4', size: 4 },
  { name: '/etc/videoloom-outside.mp4', size: 4 },
  { name: 'link.mp4', type: 'symlink', linkname: '/etc/passwd' },
  { name: 'hard.mp4', type: 'link', linkname: '../../../etc/passwd' },
  { name: 'device.mp4', type: 'character-device' },
  { name: 'a/../../b/outside.jpg', size: 4 },
];

async function tarOf(
  members: readonly { readonly name: string; readonly file: MutatedFile }[],
  rng: Rng,
): Promise<Buffer> {
  const archive = pack();
  const chunks: Buffer[] = [];
  const collected = (async () => {
    for await (const chunk of archive as AsyncIterable<Buffer>) chunks.push(chunk);
  })();
  const common = { mtime: new Date(0), mode: 0o644 };
  for (const { name, file } of members) {
    archive.entry({ ...common, name: name + file.ending }, file.bytes);
    for (const [ending, content] of Object.entries(file.words ?? {})) {
      archive.entry({ ...common, name: name + ending }, Buffer.from(content));
    }
    if (rng.integer(8) > 0) continue;
    const trap = TRAPS[rng.integer(TRAPS.length)]!;
    archive.entry({ ...common, ...trap }, trap.size === undefined ? '' : 'trap');
  }
  archive.finalize();
  await collected;
  return Buffer.concat(chunks);
}

/** The first shard stays whole; the others are cut or flipped in turn. */
function damaged(bytes: Buffer, shard: number, rng: Rng): Buffer {
  if (shard % 3 === 1) return bytes.subarray(0, rng.integer(bytes.length));
  if (shard % 3 === 2) {
    for (let i = 0; i < 8; i++) bytes[rng.integer(bytes.length)]! ^= 1 << rng.integer(8);
  }
  return bytes;
}
