import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { readObjectCaptions } from './chair-files.ts';
import { scoreChair } from './chair.ts';
import { openObjectFinder } from './object-mentions.ts';

/** COCO's objects and their plurals, as inflect makes them: fixtures/make-benchmarks.py. */
const { plurals: PLURALS } = JSON.parse(
  readFileSync(join(import.meta.dirname, 'fixtures/benchmarks.json'), 'utf8'),
) as { plurals: [name: string, plural: string][] };

const finder = openObjectFinder([
  ['person', 'man', 'woman', 'child', 'fireman', 'baby'],
  ['dog', 'puppy'],
  ['bird'],
  ['bear'],
  ['teddy bear', 'teddy'],
  ['train'],
  ['airplane', 'jet', 'plane', 'aeroplane'],
  ['bus'],
  ['knife'],
  ['toilet'],
  ['chair', 'seat'],
  ['dining table', 'table', 'plate'],
  ['hot dog'],
  ['wine glass'],
  ['tie'],
  ['traffic light', 'stop light', 't-junction light'],
  ['scissors'],
  ['skis', 'ski'],
  ['cell phone', 'mobile phone', 'phone'],
]);

test('objects are found singular and plural, by synonyms and by the longest name', () => {
  for (const [caption, ...objects] of [
    ['A dog', 'dog'],
    ['Two dogs and a puppy.', 'dog', 'dog'],
    ['puppies', 'dog'],
    ["the dog's bowl", 'dog'],
    ["the dogs' bowl", 'dog'],
    ['three men, two women and children', 'person', 'person', 'person'],
    ['firemen', 'person'],
    ['people', 'person'],
    ['buses', 'bus'],
    ['knives', 'knife'],
    ['a pair of scissors', 'scissors'],
    ['a man on skis', 'person', 'skis'],
    ['one ski', 'skis'],
    ['a teddy bear', 'teddy bear'],
    ['teddy bears and bears', 'teddy bear', 'bear'],
    ['a teddy', 'teddy bear'],
    ['hot dogs', 'hot dog'],
    // A mark is a token of its own, as in the original.
    ['a hot, dog', 'dog'],
    ['it is hot. Dog and wine, glass', 'dog'],
    ['wine - glass'],
    ['a mother with her baby, bird and dog', 'person', 'bird', 'dog'],
    ["her baby's bird", 'person', 'bird'],
    ['a "dog" and a \'train\'', 'dog', 'train'],
    ['a teddy-bear', 'teddy bear'],
    ['wine glasses', 'wine glass'],
    ['a glass of wine'],
    ['a bow tie', 'tie'],
    ['ties', 'tie'],
    ['stop lights', 'traffic light'],
    ['T-junction lights', 'traffic light'],
    ['cell phones', 'cell phone'],
    ['phones', 'cell phone'],
    ['a cellphone'],
    ['a baby', 'person'],
    ['a baby bird', 'bird'],
    ['baby birds', 'bird'],
    ['an adult bear', 'bear'],
    ['a passenger train', 'train'],
    ['passenger jets', 'airplane'],
    ['a toilet seat', 'toilet'],
    ['a toilet with its seat up', 'toilet'],
    ['a seat', 'chair'],
    ['he slides to home plate'],
    ['a plate', 'dining table'],
    ['tables', 'dining table'],
    ['THE DOG — and the “train”', 'dog', 'train'],
    ['bused bearing treed'],
    [''],
  ] as const)
    assert.deepEqual(finder.mentions(caption), objects, caption);
});

test("all of COCO's objects are found by the plurals of inflect", () => {
  const coco = openObjectFinder(PLURALS.map(([name]) => [name]));
  for (const [name, plural] of PLURALS) {
    assert.deepEqual(coco.mentions(`there are ${plural} here`), [name], plural);
    assert.deepEqual(coco.mentions(`a ${name}.`), [name]);
  }
});

test('a name without letters is no name', () => {
  const odd = openObjectFinder([['-', 'dog'], ['']]);
  assert.deepEqual(odd.mentions('a - dog.'), ['-']);
  assert.equal(odd.objectOf('-'), undefined);
  assert.equal(odd.objectOf(''), undefined);
});

test('what is said and not there, and what is there and said, are counted over all captions', () => {
  const scores = scoreChair([
    { mentions: ['dog', 'dog', 'cat'], truth: new Set(['dog', 'bird']) },
    { mentions: [], truth: new Set(['bus']) },
    { mentions: ['bus', 'car', 'car'], truth: new Set(['bus']) },
    { mentions: ['bird'], truth: new Set(['bird']) },
  ]);
  assert.deepEqual(
    scores.map(({ name, value, count }) => [name, value, count]),
    [
      ['CHAIR-i', 3 / 7, 4], // cat, car, car
      ['CHAIR-s', 2 / 4, 4],
      ['coverage', 3 / 5, 4], // dog, bus, bird of dog, bird, bus, bus, bird
      ['says none', 1 / 4, 4],
    ],
  );
  // Who says nothing hallucinates nothing, and covers nothing.
  const silent = scoreChair([{ mentions: [], truth: new Set(['dog']) }]);
  assert.deepEqual(
    silent.map(({ value }) => value),
    [0, 0, 0, 1],
  );
});

test("COCO's instances, lists by picture and records are read with synonyms and captions", async () => {
  const folder = await temporaryFolder('chair');
  const write = async (name: string, content: unknown): Promise<string> => {
    const path = join(folder, name);
    await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
    return path;
  };
  const captions = await write('captions.json', [
    { image_id: 7, caption: 'two men with a cat' },
    { image_id: 8, caption: 'a puppy' },
  ]);
  const synonyms = await write('synonyms.txt', 'person, man\ndog, puppy\ncat\n\n');
  const coco = await write('instances.json', {
    annotations: [
      { image_id: 7, category_id: 1 },
      { image_id: 7, category_id: 1 },
      { image_id: 8, category_id: 2 },
      { image_id: 9, category_id: 2 },
    ],
    categories: [
      { id: 1, name: 'person' },
      { id: 2, name: 'dog' },
    ],
  });
  const wanted = [
    { mentions: ['person', 'cat'], truth: new Set(['person']) },
    { mentions: ['dog'], truth: new Set(['dog']) },
  ];
  assert.deepEqual(await readObjectCaptions({ captions, objects: coco, synonyms }), wanted);
  const plain = await write('objects.json', { 7: ['man'], 8: ['dog'] });
  assert.deepEqual(await readObjectCaptions({ captions, objects: plain, synonyms }), wanted);
  const lines = await write('o.jsonl', '{"id":7,"objects":["person"]}\n{"id":8,"objects":["dog"]}');
  assert.deepEqual(await readObjectCaptions({ captions, objects: lines, synonyms }), wanted);
  // Names are as they are where nobody says what they stand for.
  assert.deepEqual(
    (await readObjectCaptions({ captions, objects: plain })).map(({ mentions }) => mentions),
    [['man'], []],
  );
  const references = await write('references.json', {
    annotations: [{ image_id: 7, caption: 'cats' }],
  });
  const both = await readObjectCaptions({ captions, objects: coco, references, synonyms });
  assert.deepEqual(both[0]!.truth, new Set(['person', 'cat']));

  const few = await write('few.json', { 7: ['man'] });
  await assert.rejects(readObjectCaptions({ captions, objects: few, synonyms }), {
    message: /^1 ids of .*captions\.json are not in .*few\.json \(8\)/,
  });
  // A list of pictures without a box among them is one of pictures with nothing in them.
  const empty = await write('empty.json', { ...JSON.parse(await readFile(coco, 'utf8')), images: [{ id: 7 }, { id: 10 }] }); // prettier-ignore
  const blank = await write('blank.json', [{ image_id: 10, caption: 'a dog' }]);
  assert.deepEqual(await readObjectCaptions({ captions: blank, objects: empty, synonyms }), [
    { mentions: ['dog'], truth: new Set() },
  ]);
  // As many as COCO has; none of them is of another form.
  const many = Array.from({ length: 200_000 }, (_, i) => ({ image_id: i % 9, category_id: 1 }));
  const categories = [{ id: 1, name: 'person' }];
  const large = await write('large.json', { annotations: many, categories });
  const [man] = await readObjectCaptions({ captions, objects: large, synonyms });
  assert.deepEqual(man, wanted[0]);
  for (const [name, objects, message] of [
    ['none.json', { 7: ['-'], 8: [] }, /none\.json#7: 0 is "-": an object has a name of letters/],
    ['of.json', { annotations: many.map(() => ({})), categories }, /#annotations\.0: image_id is/],
    ['flat.json', { 7: 'dog' }, /flat\.json#7: it is "dog"/],
  ] as const)
    await assert.rejects(readObjectCaptions({ captions, objects: await write(name, objects) }), {
      ...{ code: 'SCORE_FILE_INVALID', message },
    });
  const other = await write('other.json', { 7: ['tree'], 8: [] });
  await assert.rejects(readObjectCaptions({ captions, objects: other, synonyms }), {
    message: /other\.json: "tree" is not among the names of .*synonyms\.txt: add it there/,
  });
});
