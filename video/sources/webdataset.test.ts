import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { test } from 'node:test';
import { pack } from 'tar-stream';
import { FIXTURES, makeFolder, openFolder, readManifest, readSource } from './test/read-source.ts';
import { webdataset } from './webdataset.ts';

const SHARDS = join(FIXTURES, 'webdataset');

interface PythonSample {
  readonly shard: string;
  readonly key: string;
  readonly fields: Readonly<
    Record<string, { readonly sha256: string; readonly text: string | null }>
  >;
}

test('samples are those that Python’s webdataset reads, their media byte for byte', async () => {
  const python = await readManifest<PythonSample[]>('webdataset');
  const { store } = await openFolder(SHARDS);
  const { samples, faults } = await readSource(webdataset, SHARDS);
  assert.deepEqual(faults, ['clips.tar!four SAMPLE_NO_MEDIA']);
  const expected = python.filter(({ key }) => key !== 'four');
  assert.deepEqual(
    samples.map(({ id }) => id),
    expected.map(({ shard, key }) => `${shard.slice(0, -4)}/${key}`),
  );
  // Videos before pictures, plain fields before compound ones.
  const chosen: Readonly<Record<string, readonly string[]>> = {
    one: ['mp4'],
    two: ['mp4'],
    three: ['0.png', '1.png'],
    five: ['webp'],
  };
  for (const [i, { key, fields }] of expected.entries()) {
    const { media, text } = samples[i]!;
    const digests: string[] = [];
    for (const { path, range } of media) {
      const bytes = await store.read(path, { range: range! });
      digests.push(createHash('sha256').update(bytes).digest('hex'));
    }
    const names = chosen[key] ?? ['jpg'];
    assert.deepEqual(
      digests,
      names.map((name) => fields[name]!.sha256),
      key,
    );
    const caption =
      fields['json'] && (JSON.parse(fields['json'].text!) as { caption: string }).caption;
    assert.equal(text, fields['txt']?.text ?? caption ?? fields['cls']!.text, key);
  }
});

test('members with unsafe names, links, devices and sparse files are told by name; the others are read', async () => {
  const { samples, faults } = await readSource(webdataset, join(FIXTURES, 'tar'));
  for (const form of ['ustar', 'gnu', 'pax']) {
    const own = faults.filter((fault) => fault.startsWith(`${form}.tar!`));
    assert.deepEqual(
      own.map((fault) => fault.slice(form.length + 5)),
      [
        'link.jpg MEMBER_UNSAFE',
        'hard.jpg MEMBER_UNSAFE',
        'pipe.jpg MEMBER_UNSAFE',
        '../outside.jpg MEMBER_UNSAFE',
        '/absolute.jpg MEMBER_UNSAFE',
        'empty SAMPLE_NO_MEDIA',
      ],
    );
    const ids = samples.map(({ id }) => id).filter((id) => id.startsWith(`${form}/`));
    assert.equal(ids.length, 3);
    assert.ok(ids.includes(`${form}/folder/a`) && ids.includes(`${form}/last`));
  }
  assert.deepEqual(
    faults.filter((fault) => fault.startsWith('sparse')),
    ['sparse-gnu.tar!holes.jpg MEMBER_UNSAFE', 'sparse-posix.tar!holes.jpg MEMBER_UNSAFE'],
  );
  assert.equal(samples.filter(({ id }) => id.startsWith('sparse')).length, 2);
});

test('a shard cut at any block gives whole samples alone, and names the one that is lost', async () => {
  const whole = await readFile(join(SHARDS, 'pairs-000000.tar'));
  const all = await readSource(webdataset, await makeFolder({ 'x.tar': whole }));
  assert.equal(all.samples.length, 3);
  const { store } = await openFolder(await makeFolder({ 'x.tar': whole }));
  for (let sizeBytes = 512; sizeBytes < 16_000; sizeBytes += 512) {
    const ids: string[] = [];
    const skipped: string[] = [];
    for await (const record of webdataset.read(store, [{ path: 'x.tar', sizeBytes }])) {
      if ('skipped' in record) skipped.push(`${record.skipped.path} ${record.skipped.code}`);
      else {
        assert.deepEqual(record.sample, all.samples[ids.length]);
        ids.push(record.sample.id);
      }
    }
    const lost = `00000000${ids.length}`;
    assert.equal(skipped.length, 1);
    assert.match(skipped[0]!, new RegExp(`^x\\.tar(!${lost}(\\.\\w+)?)? TAR_TRUNCATED$`));
  }
});

test('compressed shards, samples torn apart and faulty words are told', async () => {
  const tar = pack();
  const members: Readonly<Record<string, string>> = {
    './a.jpg': 'x',
    'b.jpg': 'x',
    'b.json': '{"caption": ',
    './a.txt': 'too late',
    'c.jpg': 'x',
    'c.srt': '1\n00:00:01,000 --> 00:00:02,000\nsaid\n',
    '.hidden.jpg': 'x',
    'no-ending': 'x',
  };
  for (const [name, content] of Object.entries(members)) tar.entry({ name }, content);
  tar.finalize();
  const root = await makeFolder({
    'x.tar': await buffer(tar),
    'y.tar.gz': '',
  });
  const { samples, faults } = await readSource(webdataset, root);
  assert.deepEqual(faults, [
    'y.tar.gz SHARD_COMPRESSED',
    'x.tar!b CAPTION_UNREADABLE',
    'x.tar!a DUPLICATE_ID',
  ]);
  assert.deepEqual(
    samples.map(({ id, text }) => [id, text]),
    [
      ['x/a', ''],
      ['x/c', 'said'],
    ],
  );
  assert.deepEqual(samples[1]!.cues, [{ startSeconds: 1, endSeconds: 2, text: 'said' }]);
});
