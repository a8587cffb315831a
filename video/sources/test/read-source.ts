/** What the tests of the sources share: fixtures and folders of a test's own, read to the end. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import type { SkippedRecord } from '../../index/sample.ts';
import { openLocalStore } from '../../storage/local.ts';
import type { Store, StoredFile } from '../../storage/store.ts';
import type { Source, SourceSample } from '../source.ts';

export const FIXTURES = join(dirname(fileURLToPath(import.meta.url)), 'fixtures');

/** Of manifest.json, which make-fixtures.py writes: what the tools that made the files read back from them. */
export async function readManifest<T>(part: string): Promise<T> {
  const manifest = JSON.parse(await readFile(join(FIXTURES, 'manifest.json'), 'utf8')) as unknown;
  return (manifest as Record<string, T>)[part]!;
}

export interface ReadBack {
  readonly samples: readonly SourceSample[];
  readonly skipped: readonly SkippedRecord[];
  /** Of what is skipped, path and code. */
  readonly faults: readonly string[];
}

export async function openFolder(root: string): Promise<{ store: Store; files: StoredFile[] }> {
  const store = openLocalStore(root);
  const files: StoredFile[] = [];
  for await (const file of store.list()) files.push(file);
  return { store, files };
}

export async function readSource(source: Source, root: string): Promise<ReadBack> {
  const { store, files } = await openFolder(root);
  const samples: SourceSample[] = [];
  const skipped: SkippedRecord[] = [];
  for await (const record of source.read(store, files)) {
    if ('skipped' in record) skipped.push(record.skipped);
    else samples.push(record.sample);
  }
  return { samples, skipped, faults: skipped.map(({ path, code }) => `${path} ${code}`) };
}

/** A folder with these files. */
export async function makeFolder(
  files: Readonly<Record<string, string | Uint8Array>>,
): Promise<string> {
  const root = await temporaryFolder('sources');
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), content);
  }
  return root;
}

/** Bytes without any form, the same every time. */
export function noise(seed: string, sizeBytes: number): Buffer {
  return createHash('shake256', { outputLength: sizeBytes }).update(seed).digest();
}
