import { copyFile, link, mkdir, open, readFile, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { openRng, shuffled } from '../../proto/random.ts';
import type { Prepared } from '../cluster.ts';

/** The head of a run's index, and its lines of files, so far as they matter here. */
interface IndexHead {
  readonly root: string;
  readonly numFiles: number;
}

interface IndexedFile {
  readonly path: string;
  readonly sizeBytes: number;
  readonly range?: { readonly offset: number; readonly sizeBytes: number };
}

const INDEX_FILE = 'samples.jsonl';

/** Where the data of a prepared run lie. */
export async function dataRootOf({ folder }: Prepared): Promise<string> {
  return (await readIndexFiles(folder)).head.root;
}

async function readIndexFiles(
  folder: string,
): Promise<{ head: IndexHead; files: IndexedFile[]; lines: string[] }> {
  const lines = (await readFile(join(folder, INDEX_FILE), 'utf8')).split('\n');
  const head = JSON.parse(lines[0]!) as IndexHead;
  const files = lines.slice(1, 1 + head.numFiles).map((line) => JSON.parse(line) as IndexedFile);
  return { head, files, lines };
}

/**
 * Damages a share of the media that a prepared run uses, at least one, in a copy of its data at `copy`: half of them lose
 * their second half, the others have noise in their middle. Files that stay whole are links to the originals. The run
 * was indexed before, as when a disk goes bad; its index names the copy from now on. Gives the paths of what was damaged.
 */
export async function damageData(
  { folder }: Prepared,
  { copy, share, seed }: { readonly copy: string; readonly share: number; readonly seed: number },
): Promise<string[]> {
  const { head, files, lines } = await readIndexFiles(folder);
  const rng = openRng(seed, 'damage');
  const count = Math.min(files.length, Math.max(1, Math.round(share * files.length)));
  const damaged = shuffled(files, rng.fork('files')).slice(0, count);
  const hit = new Set(damaged.map(({ path }) => path));
  for (const path of new Set(files.map((file) => file.path))) {
    const [from, to] = [join(head.root, path), join(copy, path)];
    await mkdir(dirname(to), { recursive: true });
    if (!hit.has(path)) await linkTo(from, to);
    else await copyFile(from, to);
  }
  for (const [index, { path, range, sizeBytes }] of damaged.entries()) {
    const file = await open(join(copy, path), 'r+');
    try {
      const { offset, sizeBytes: length } = range ?? { offset: 0, sizeBytes };
      const middle = offset + Math.floor(length / 2);
      if (index % 2 === 0 && range === undefined) await file.truncate(middle);
      else {
        const noise = Buffer.from(
          Array.from({ length: Math.ceil(length / 4) }, () => rng.integer(256)),
        );
        await file.write(noise, 0, noise.length, middle - Math.floor(noise.length / 2));
      }
    } finally {
      await file.close();
    }
  }
  const rest = lines.slice(1).join('\n');
  await writeFileDurably(
    join(folder, INDEX_FILE),
    `${JSON.stringify({ ...head, root: copy })}\n${rest}`,
  );
  return damaged.map(({ path }) => path);
}

async function linkTo(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch {
    // Another file system.
    await symlink(from, to);
  }
}
