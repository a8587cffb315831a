import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, realpath, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openLocalStore } from './local.ts';
import { openStore } from './open.ts';
import type { Store } from './store.ts';

describe('the store over a folder', () => {
  let folder: string;
  let store: Store;
  before(async () => {
    folder = await realpath(await temporaryFolder('store'));
    const root = join(folder, 'root');
    await mkdir(join(root, 'a', 'deep'), { recursive: true });
    await mkdir(join(root, '.hidden'));
    await mkdir(join(folder, 'outside'));
    await writeFile(join(folder, 'outside', 'secret.mp4'), 'secret');
    for (const name of ['b.mp4', 'a-b.mp4', 'a/deep/c.mp4', 'a/z.mp4', 'B.mp4', 'é.mp4', '😀.mp4'])
      await writeFile(join(root, name), `bytes of ${name}`);
    await writeFile(join(root, '.hidden', 'x.mp4'), 'x');
    await writeFile(join(root, 'a', '.x.mp4'), 'x');
    await writeFile(join(root, 'empty.mp4'), '');
    await symlink(join(root, 'b.mp4'), join(root, 'link-inside.mp4'));
    await symlink(join(folder, 'outside', 'secret.mp4'), join(root, 'link-outside.mp4'));
    await symlink(join(folder, 'outside'), join(root, 'folder-outside'));
    await symlink('..', join(root, 'a', 'loop'));
    await symlink('nowhere', join(root, 'dangling'));
    execFileSync('mkfifo', [join(root, 'pipe.mp4')]);
    store = openStore(root);
  });

  it('lists files by code unit, without hidden ones, pipes and links that lead out or in circles', async () => {
    const found: string[] = [];
    const outside: string[] = [];
    for await (const { path, sizeBytes } of store.list(undefined, (path) => outside.push(path))) {
      found.push(path);
      assert.equal(sizeBytes, await store.sizeOf(path));
    }
    const expected = ['b.mp4', 'a-b.mp4', 'a/deep/c.mp4', 'a/z.mp4', 'B.mp4', 'é.mp4', '😀.mp4'];
    // `sort` of strings is by code unit.
    assert.deepEqual(found, [...expected, 'empty.mp4', 'link-inside.mp4'].sort());
    assert.deepEqual(outside.sort(), ['folder-outside', 'link-outside.mp4']);
  });

  it('reads all, a part and the rest of a file', async () => {
    const text = async (bytes: Promise<Uint8Array>) => Buffer.from(await bytes).toString();
    assert.equal(await text(store.read('b.mp4')), 'bytes of b.mp4');
    assert.equal(await text(store.read('./a/z.mp4')), 'bytes of a/z.mp4');
    assert.equal(await text(store.read('b.mp4', { range: { offset: 6, sizeBytes: 2 } })), 'of');
    assert.equal((await buffer(await store.stream('b.mp4', { offset: 9 }))).toString(), 'b.mp4');
    const part = await store.stream('b.mp4', { offset: 6, sizeBytes: 2 });
    assert.equal((await buffer(part)).toString(), 'of');
    const none = await store.stream('b.mp4', { offset: 14 });
    assert.equal((await buffer(none)).length, 0);
    assert.equal((await store.read('empty.mp4')).length, 0);
    assert.equal(store.localPath('link-inside.mp4'), join(folder, 'root', 'b.mp4'));
  });

  const outside = [
    ...['../outside/secret.mp4', 'a/../../outside/secret.mp4', '/etc/passwd', '..', 'a/..'],
    ...['b.mp4\0.jpg', 'C:\\x', '..\\x', 'link-outside.mp4', 'folder-outside/secret.mp4'],
  ];
  for (const path of outside) {
    it(`refuses the path ${JSON.stringify(path)}`, async () => {
      const refusal = { code: 'PATH_OUTSIDE' };
      await assert.rejects(store.sizeOf(path), refusal);
      await assert.rejects(store.stat(path), refusal);
      await assert.rejects(store.read(path), refusal);
      await assert.rejects(store.stream(path), refusal);
      assert.throws(() => store.localPath(path), refusal);
    });
  }

  it('says what is missing, cut short, too large or changed', async () => {
    await assert.rejects(store.read('none.mp4'), { code: 'NOT_FOUND' });
    await assert.rejects(store.read('b.mp4/x'), { code: 'NOT_FOUND' });
    await assert.rejects(store.read('a'), { code: 'NOT_FOUND' });
    await assert.rejects(store.read('pipe.mp4'), { code: 'NOT_FOUND' });
    assert.throws(() => store.localPath('none.mp4'), { code: 'NOT_FOUND' });
    const range = { offset: 10, sizeBytes: 100 };
    await assert.rejects(store.read('b.mp4', { range }), { code: 'RANGE_OUTSIDE' });
    await assert.rejects(store.stream('b.mp4', range), { code: 'RANGE_OUTSIDE' });
    await assert.rejects(store.read('b.mp4', { maxBytes: 3 }), { code: 'TOO_LARGE' });
    const path = join(folder, 'root', 'changing.mp4');
    await writeFile(path, 'one');
    const { version } = await store.stat('changing.mp4');
    await store.read('changing.mp4', { version });
    await writeFile(path, 'two!');
    await assert.rejects(store.read('changing.mp4', { version }), { code: 'STORAGE_CHANGED' });
    await rm(path);
  });

  it('says that its folder is not there', async () => {
    const missing = openLocalStore(join(folder, 'nowhere'));
    await assert.rejects(missing.list()[Symbol.asyncIterator]().next(), { code: 'NOT_FOUND' });
  });
});
