import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { FIXTURES, makeFolder, noise, openFolder, readManifest } from './test/read-source.ts';
import { DamagedTar, tarMembers, type TarMember } from './tar-index.ts';
import type { Store } from '../storage/store.ts';

interface PythonMember {
  readonly name: string;
  readonly isFile: boolean;
  readonly offset: number;
  readonly sizeBytes: number;
}

async function membersOf(root: string, name: string): Promise<TarMember[]> {
  const { store, files } = await openFolder(root);
  const members: TarMember[] = [];
  for await (const member of tarMembers(
    store,
    files.find(({ path }) => path === name)!,
  )) {
    members.push(member);
  }
  return members;
}

/** The members before the fault, and the fault. */
async function untilFault(
  store: Store,
  path: string,
  sizeBytes: number,
): Promise<[TarMember[], unknown]> {
  const members: TarMember[] = [];
  try {
    for await (const member of tarMembers(store, { path, sizeBytes })) members.push(member);
  } catch (error) {
    return [members, error];
  }
  return [members, undefined];
}

test('ustar, GNU and pax members are those that Python’s tarfile finds', async () => {
  const forms = await readManifest<Record<string, PythonMember[]>>('tarForms');
  for (const name of ['ustar.tar', 'gnu.tar', 'pax.tar']) {
    const found = await membersOf(join(FIXTURES, 'tar'), name);
    assert.deepEqual(
      found.map((member) => ({
        // tarfile takes the slash off the end of a folder's name
        name: member.name.replace(/\/$/, ''),
        isFile: member.type === 'file',
        offset: member.offset,
        sizeBytes: member.sizeBytes,
      })),
      forms[name],
      name,
    );
    const odd = found.filter(({ type }) => type !== 'file').map(({ type }) => type);
    assert.deepEqual(odd, ['folder', 'link', 'link', 'device'], name);
  }
});

test('sparse members of GNU tar are told, and what follows them is found', async () => {
  const forms = await readManifest<Record<string, PythonMember[]>>('tarForms');
  for (const name of ['sparse-gnu.tar', 'sparse-posix.tar']) {
    const [sparse, plain] = await membersOf(join(FIXTURES, 'tar'), name);
    assert.deepEqual([sparse!.name, sparse!.type], ['holes.jpg', 'sparse'], name);
    const { offset, sizeBytes } = forms[name]![1]!;
    assert.deepEqual(plain, { name: 'plain.jpg', offset, sizeBytes, type: 'file' }, name);
  }
});

test('a tar cut at any block gives the members before the cut and says that it was cut', async () => {
  const whole = await readFile(join(FIXTURES, 'webdataset', 'clips.tar'));
  const python = (await readManifest<Record<string, PythonMember[]>>('tar'))['clips.tar']!;
  const root = await makeFolder({ 'cut.tar': whole });
  const { store } = await openFolder(root);
  const last = python.at(-1)!;
  // The mark of the end: the first block after the last member's bytes.
  const end = last.offset + Math.ceil(last.sizeBytes / 512) * 512 + 512;
  for (let size = 0; size <= whole.length; size += 512) {
    const [members, error] = await untilFault(store, 'cut.tar', size);
    const expected = python.filter(({ offset, sizeBytes }) => offset + sizeBytes <= size);
    assert.deepEqual(
      members.map(({ name }) => name),
      expected.map(({ name }) => name),
    );
    if (size >= end) assert.equal(error, undefined);
    else {
      assert.ok(error instanceof DamagedTar);
      assert.equal(error.code, 'TAR_TRUNCATED');
    }
  }
});

test('whatever the bytes are, reading ends with members or with a named fault', async () => {
  const whole = await readFile(join(FIXTURES, 'tar', 'pax.tar'));
  const bytes = noise('tar', 4096);
  const root = await makeFolder({ 'noise.tar': bytes, 'flip.tar': whole });
  const { store } = await openFolder(root);
  const [members, error] = await untilFault(store, 'noise.tar', bytes.length);
  assert.deepEqual(members, []);
  assert.ok(error instanceof DamagedTar && error.code === 'TAR_DAMAGED');

  const offsets = noise('flips', 400);
  for (let i = 0; i < 200; i++) {
    const damaged = Buffer.from(whole);
    const at = (offsets[2 * i]! * 256 + offsets[2 * i + 1]!) % whole.length;
    damaged[at]! ^= 1 << (i % 8);
    const memory: Store = { ...store, read: (_path, options) => readOf(damaged, options?.range) };
    const [, fault] = await untilFault(memory, 'flip.tar', damaged.length);
    assert.ok(fault === undefined || fault instanceof DamagedTar, String(fault));
  }
});

function readOf(
  bytes: Buffer,
  range = { offset: 0, sizeBytes: bytes.length },
): Promise<Uint8Array> {
  assert.ok(range.offset + range.sizeBytes <= bytes.length);
  return Promise.resolve(bytes.subarray(range.offset, range.offset + range.sizeBytes));
}

test('the headers of a shard of large members cost a small part of its bytes', async () => {
  const root = await makeFolder({});
  const file = join(root, 'a.mp4');
  const handle = await open(file, 'w');
  await handle.truncate(8 * 2 ** 20);
  await handle.close();
  const names = ['b.mp4', 'c.mp4', 'd.mp4'];
  for (const name of names) execFileSync('ln', [file, join(root, name)]);
  execFileSync('tar', [
    '-C',
    root,
    '--hard-dereference',
    '-cf',
    join(root, 'x.tar'),
    'a.mp4',
    ...names,
  ]);
  const { store, files } = await openFolder(root);
  let numRead = 0;
  const counting: Store = {
    ...store,
    read: async (path, options) => {
      const bytes = await store.read(path, options);
      numRead += bytes.length;
      return bytes;
    },
  };
  const shard = files.find(({ path }) => path === 'x.tar')!;
  const members: TarMember[] = [];
  for await (const member of tarMembers(counting, shard)) members.push(member);
  assert.deepEqual(
    members.map(({ name, sizeBytes }) => [name, sizeBytes]),
    ['a.mp4', ...names].map((name) => [name, 8 * 2 ** 20]),
  );
  assert.ok(numRead <= 5 * 64 * 2 ** 10, `${numRead} bytes`);
});
