import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { demoPairs } from './demo-pairs.ts';
import { readPairs } from './pairs-file.ts';

const textsOf = (...captions: string[]) => {
  const items = demoPairs(captions.map((text) => ({ text })));
  return Object.fromEntries(items.map((item) => [item.id, item.captions]));
};

test('of a thing that moves colour, shape and motion are exchanged, with the article that belongs to it', () => {
  const items = textsOf('an orange star moves left');
  assert.deepEqual(Object.keys(items), ['0/colour', '0/shape', '0/motion']);
  const [own, ...colours] = items['0/colour']!;
  assert.equal(own, 'an orange star moves left');
  assert.equal(colours.length, 7);
  assert.equal(colours[0], 'a red star moves left');
  assert.equal(new Set(colours).size, 7);
  assert.deepEqual(items['0/motion'], [
    'an orange star moves left',
    ...['right', 'up', 'down', 'nearer', 'farther'].map((to) => `an orange star moves ${to}`),
  ]);
});

test('of still things their places are exchanged, of two their colours', () => {
  const one = textsOf('a red circle top left');
  assert.deepEqual(Object.keys(one), ['0/colour', '0/shape', '0/place']);
  assert.equal(one['0/place']![3], 'a red circle bottom right');
  const two = textsOf('an orange circle top left , a red square bottom right');
  assert.deepEqual(two, {
    '0/exchanged colours': [
      'an orange circle top left , a red square bottom right',
      'a red circle top left , an orange square bottom right',
    ],
  });
  assert.deepEqual(textsOf('a red circle top left , a red circle top right'), {});
});

test('samples of the same words in another order are a pair, each in one at most', () => {
  const captions = ['a then b', 'b then a', 'a then b', 'b then c', 'a then b', 'a  b then'];
  assert.deepEqual(textsOf(...captions), {
    '0/1': ['a then b', 'b then a'],
    '2/5': ['a then b', 'a  b then'],
  });
});

test("Winoground's, ARO's and SugarCrepe's files are read, and what is wrong is told", async () => {
  const folder = await temporaryFolder('pairs-file');
  const read = async (name: string, content: unknown) => {
    const path = join(folder, name);
    await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
    return readPairs(path);
  };
  const cross = { image_0: 'a.png', image_1: 'b.png', caption_0: 'x', caption_1: 'y' };
  const line = JSON.stringify({ id: 7, ...cross, tag: 'Adjective' });
  const wanted = { kind: 'cross', id: '7', media: ['a.png', 'b.png'], captions: ['x', 'y'] };
  assert.deepEqual(await read('one.jsonl', `${line}\n`), [wanted]);
  assert.deepEqual(await read('two.jsonl', `${line}\n${line}\n`), [wanted, wanted]);
  // A record alone may have lists, objects and nothing in its fields.
  const alone = { image: 'f.jpg', caption: 't', false_captions: ['u', 't', 'u', 'v'] };
  for (const own of [{}, { tags: ['a'] }, { meta: { a: 1 } }, { note: null }])
    assert.deepEqual(await read('alone.json', { ...alone, ...own }), [
      // Each false caption is there once: one that came again would lower the chance.
      { kind: 'list', id: '0', media: ['f.jpg'], type: 'alone', captions: ['t', 'u', 'v'] },
    ]);
  const crepe = { filename: 'c.jpg', caption: 'true', negative_caption: 'false' };
  assert.deepEqual(await read('swap_att.json', { 0: crepe, 1: crepe }), [
    { kind: 'list', id: '0', media: ['c.jpg'], type: 'swap_att', captions: ['true', 'false'] },
    { kind: 'list', id: '1', media: ['c.jpg'], type: 'swap_att', captions: ['true', 'false'] },
  ]);
  const aro = { image_path: 'd.jpg', true_caption: 't', false_caption: 'f' };
  const shuffled = { image: 'e.jpg', caption: 't', false_captions: ['t', 'u', 'v'], type: 'order' };
  const same = { image: 'e.jpg', caption: 't', false_captions: ['t'] };
  const lists = await read('aro.json', [
    { ...aro, relation_name: 'on' },
    { ...aro, attributes: ['white', 'tall'] },
    shuffled,
    same,
  ]);
  assert.deepEqual(
    lists.map((item) => [item.kind === 'list' && item.type, item.media[0], item.captions]),
    [
      ['on', 'd.jpg', ['t', 'f']],
      ['white_tall', 'd.jpg', ['t', 'f']],
      ['order', 'e.jpg', ['t', 'u', 'v']],
    ],
  );
  await assert.rejects(read('w.json', [{ ...aro, bbox_x: 4 }]), { message: /w\.json#0: .* a box/ });
  await assert.rejects(read('w.json', [{ image: 'a', caption: 'b' }]), { message: /no false/ });
  await assert.rejects(read('w.json', [same, same]), {
    message: /w\.json: in all of its records the false captions are the true one/,
  });
  await assert.rejects(read('w.json', []), { message: /w\.json: there is no record in it/ });
  await assert.rejects(read('w.json', [{ caption: 'b' }]), {
    message: /w\.json#0: it has no image/,
  });
});
