import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { sourceOf } from './detect.ts';
import { openIdSet } from './id-set.ts';
import { mediaNamesOf } from './media-names.ts';
import { parseS3Url } from '../storage/s3.ts';
import { FIXTURES, makeFolder, openFolder } from './test/read-source.ts';

async function detect(root: string, name?: string): Promise<string> {
  const { store, files } = await openFolder(root);
  return (await sourceOf(store, files, { name })).name;
}

test('each form is recognised by its files', async () => {
  for (const form of [
    'webdataset',
    'parquet',
    'webvid',
    'instructions',
    'image-text',
    'documents',
  ]) {
    assert.equal(await detect(join(FIXTURES, form)), form);
  }
  const plain = await makeFolder({
    'a.mp4': '',
    'a.json': '{"caption":"x"}',
    'list.csv': 'a,b\n1,2\n',
    'package.json': '{"name":"x"}',
  });
  assert.equal(await detect(plain), 'folder');
  assert.equal(await detect(join(FIXTURES, 'webvid'), 'folder'), 'folder');
});

test('an unknown name and data of no form say what there is', async () => {
  const root = await makeFolder({ 'notes.md': '' });
  await assert.rejects(detect(root), {
    code: 'DATA_EMPTY',
    message: /webdataset .*parquet .*webvid .*instructions .*documents .*image-text .*folder/,
  });
  await assert.rejects(detect(root, 'tars'), {
    code: 'SOURCE_UNKNOWN',
    message: /"tars"; there are webdataset, parquet/,
  });
});

test('names of media: from the record, from the root, by their end; never outside', () => {
  const names = mediaNamesOf(
    ['lists/a.jpg', 'a.jpg', 'deep/er/b.mp4', 'x/c.jpg', 'y/c.jpg', 'd.mkv'].map((path) => ({
      path,
      sizeBytes: 1,
    })),
  );
  const find = (value: string): string =>
    names.find(value, { recordFile: 'lists/all.json', kind: 'video' }).path;
  assert.equal(find('a.jpg'), 'lists/a.jpg');
  assert.equal(find('../a.jpg'), 'a.jpg');
  assert.equal(find('./er/b.mp4'), 'deep/er/b.mp4');
  assert.equal(find('er\\b.mp4'), 'deep/er/b.mp4');
  assert.equal(find('d'), 'd.mkv');
  assert.equal(find('y/c.jpg'), 'y/c.jpg');
  assert.equal(find('S3://bucket/a key.mp4'), 's3://bucket/a key.mp4');
  assert.equal(find('https://example.org/a key.mp4'), 'https://example.org/a%20key.mp4');
  const refused: Readonly<Record<string, readonly string[]>> = {
    PATH_OUTSIDE: [
      '/etc/passwd',
      '/a.jpg',
      'C:\\a.jpg',
      'c:/a.jpg',
      '\\\\host\\a.jpg',
      '../../a.jpg',
      'x/../../../a.jpg',
      'a.jpg\0',
      'file:///a.jpg',
      'FILE:/a.jpg',
      'ftp://x/a.jpg',
      's3://bucket/../other/a.jpg',
      '..',
    ],
    MEDIA_AMBIGUOUS: ['c.jpg'],
    MEDIA_NOT_FOUND: ['', 'r/b.mp4', 'e.jpg', 'https://', 'data:image/png;base64,AA', 'a'],
  };
  for (const [code, values] of Object.entries(refused)) {
    for (const value of values) assert.throws(() => find(value), { code }, JSON.stringify(value));
  }
});

test('an object in a bucket is read under the key that the record names', () => {
  const names = mediaNamesOf([]);
  for (const key of ['Filme/Größe 1.mp4', 'a%20b.mp4', 'why? #1.mp4', 'plain.mp4']) {
    const { path, kind } = names.find(`s3://Bucket-1/${key}`, { recordFile: 'x', kind: 'image' });
    assert.equal(kind, 'video');
    assert.deepEqual(parseS3Url(path, {}), { bucket: 'Bucket-1', key });
  }
});

test('a set of ids knows each of a hundred thousand', () => {
  const [ids, known] = [openIdSet(), new Set<string>()];
  for (let i = 0; i < 100_000; i++) {
    const id = `id-${(i * 7919) % 70_001}`;
    assert.equal(ids.add(id), !known.has(id));
    known.add(id);
  }
});
