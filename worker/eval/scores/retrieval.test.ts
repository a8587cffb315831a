import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { encodeSafetensors } from '../../checkpoint/format.ts';
import { readSimilarities } from './retrieval-files.ts';
import { scoreRetrieval, type Similarities } from './retrieval.ts';

/** What torchmetrics says: fixtures/make-benchmarks.py. */
const { retrieval: REFERENCE } = JSON.parse(
  readFileSync(join(import.meta.dirname, 'fixtures/benchmarks.json'), 'utf8'),
) as {
  retrieval: {
    captions: number[];
    similarity: number[][];
    text: Record<string, number>;
    media: Record<string, number>;
  };
};

const scoresOf = (similarities: Similarities) =>
  new Map(scoreRetrieval(similarities).map((score) => [score.name, score]));

const reference = (): Similarities => ({
  values: REFERENCE.similarity.flat(),
  numMedia: REFERENCE.captions.length,
  numTexts: REFERENCE.similarity[0]!.length,
  mediaOf: REFERENCE.captions.flatMap((count, medium) =>
    Array.from({ length: count }, () => [medium]),
  ),
});

test('recalls in both directions, of media with several captions, are those of torchmetrics', () => {
  const scores = scoresOf(reference());
  for (const [k, value] of Object.entries(REFERENCE.text))
    assert.ok(Math.abs(scores.get(`text recall@${k}`)!.value - value) < 1e-6, `text ${k}`);
  for (const [k, value] of Object.entries(REFERENCE.media))
    assert.ok(Math.abs(scores.get(`media recall@${k}`)!.value - value) < 1e-6, `media ${k}`);
  assert.equal(scores.get('text recall@1')!.count, REFERENCE.captions.length);
  // Of seven media at most six are wrong: everybody finds the right one among ten.
  assert.equal(scores.has('media recall@10'), false);
});

test('ranks, medians and chance by hand', () => {
  // Two media, of which the first has two captions.
  const scores = scoresOf({
    ...{ numMedia: 2, numTexts: 3, mediaOf: [[0], [0], [1]] },
    values: [0.1, 0.9, 0.5, 0.8, 0.7, 0.2],
  });
  // The first medium finds its second caption; of the second both others are before its own.
  assert.equal(scores.get('text recall@1')!.value, 1 / 2);
  assert.equal(scores.get('text median rank')!.value, (1 + 3) / 2);
  assert.ok(Math.abs(scores.get('text recall@1')!.chance! - (2 / 3 + 1 / 3) / 2) < 1e-12);
  // Of the captions the second one finds its medium.
  assert.equal(scores.get('media recall@1')!.value, 1 / 3);
  assert.equal(scores.get('media median rank')!.value, 2);
  // Two of the three captions are of the first medium: whoever names it always is right for these.
  assert.ok(Math.abs(scores.get('media recall@1')!.chance! - 2 / 3) < 1e-12);
  assert.equal(scores.get('media recall@1')!.ties, 0);
});

test('chance is what one list for all queries reaches', () => {
  // Of 20 media 10 have the first text, 4 the second and third, 2 each of the rest.
  const groups = [10, 4, 2, 2, 2];
  const media = groups.flatMap((count, text) => Array.from({ length: count }, () => text));
  const mediaOf = groups.map((_, text) =>
    [...media.keys()].filter((medium) => media[medium] === text),
  );
  // The same media again have another text: it is right for those that are found already.
  mediaOf.push(mediaOf[0]!);
  while (mediaOf.length < 30) mediaOf.push([]);
  const values = Array.from({ length: 20 * 30 }, (_, i) => -(i % 30));
  const scores = scoresOf({ numMedia: 20, numTexts: 30, mediaOf, values });
  // Here the model is such a list.
  for (const [k, share] of [
    [1, 10 / 20],
    [5, 1],
  ] as const) {
    const { value, chance } = scores.get(`text recall@${k}`)!;
    assert.ok(Math.abs(value - share) < 1e-12 && Math.abs(chance! - share) < 1e-12, `${k}`);
  }

  // Such a list misses one of seven here, a drawn one less: five of six, of which 2, 3 or 1 are right.
  const right = [[2, 3], [3], [4], [1], [0, 2, 5], [5], [0]];
  const drawn = scoresOf({
    ...{ numMedia: 7, numTexts: 6, values: Array.from({ length: 42 }, () => 0) },
    mediaOf: Array.from({ length: 6 }, (_, text) =>
      [...right.keys()].filter((medium) => right[medium]!.includes(text)),
    ),
  });
  const uniform = (1 + 5 / 6 + 5 / 6 + 5 / 6 + 1 + 5 / 6 + 5 / 6) / 7;
  assert.ok(Math.abs(drawn.get('text recall@5')!.chance! - uniform) < 1e-12);
});

test('a model that sees everything alike finds nothing, and all are ties; so is one without numbers', () => {
  for (const [value, ties] of [
    [0.5, 1],
    [NaN, 0],
  ] as const) {
    const constant = { ...reference(), values: REFERENCE.similarity.flat().fill(value) };
    for (const score of scoreRetrieval(constant)) {
      assert.equal(score.ties, ties, score.name);
      if (score.name.includes('recall')) assert.equal(score.value, 0, score.name);
    }
  }
});

test('matrices of NumPy and safetensors, embeddings and records with scores are read alike', async () => {
  const folder = await temporaryFolder('retrieval');
  const path = (name: string): string => join(folder, name);
  const ids = path('ids.json');
  // BLIP's form; a third record is of the first picture.
  await writeFile(
    ids,
    JSON.stringify([
      { image: 'a.jpg', caption: ['one', 'two'] },
      { image: 'b.jpg', caption: 'three' },
      { image: 'a.jpg', caption: 'four' },
    ]),
  );
  const rows = [
    [1, 2, 3, 4],
    [5, 6, 7, 8.5],
  ];
  const wanted = { numMedia: 2, numTexts: 4, mediaOf: [[0], [0], [1], [0]] };
  const check = async (name: string, bytes: Uint8Array): Promise<void> => {
    await writeFile(path(name), bytes);
    const { values, ...rest } = await readSimilarities(path(name), ids);
    assert.deepEqual(rest, wanted, name);
    assert.deepEqual([...(values as Float64Array)], rows.flat(), name);
  };
  const npy = (dtype: string, isFortran: boolean, data: Uint8Array): Buffer => {
    const dict = `{'descr': '${dtype}', 'fortran_order': ${isFortran ? 'True' : 'False'}, 'shape': (2, 4), }`;
    const header = `${dict.padEnd(117)}\n`;
    const start = Buffer.from('\x93NUMPY\x01\x00\x00\x00', 'latin1');
    start.writeUInt16LE(header.length, 8);
    return Buffer.concat([start, Buffer.from(header), data]);
  };
  const bytesOf = (array: Float32Array | Float64Array | Uint16Array): Uint8Array =>
    new Uint8Array(array.buffer);
  const turned = rows[0]!.flatMap((value, i) => [value, rows[1]![i]!]);
  await check('a.npy', npy('<f8', false, bytesOf(Float64Array.from(rows.flat()))));
  await check('b.npy', npy('<f4', true, bytesOf(Float32Array.from(turned))));
  const halves = [0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4840];
  await check('c.npy', npy('<f2', false, bytesOf(Uint16Array.from(halves))));
  const tensor = (dtype: 'F32', shape: number[], data: number[]) =>
    ({ dtype, shape, data: bytesOf(Float32Array.from(data)) }) as const;
  await check(
    'd.safetensors',
    encodeSafetensors(new Map([['similarity', tensor('F32', [2, 4], rows.flat())]])),
  );

  // Cosines of embeddings that have no unit length.
  const embeddings = new Map([
    ['images', tensor('F32', [2, 2], [3, 0, 0, 2])],
    ['texts', tensor('F32', [4, 2], [5, 0, 1, 1, 0, 1, 0, 0])],
  ]);
  await writeFile(path('e.safetensors'), encodeSafetensors(embeddings));
  const { values } = await readSimilarities(path('e.safetensors'), ids);
  const half = Math.SQRT1_2;
  for (const [i, value] of [1, half, 0, 0, 0, half, 1, 0].entries())
    assert.ok(Math.abs(values[i]! - value) < 1e-12, `${i}`);

  await writeFile(
    path('own.jsonl'),
    '{"id":"a","captions":["x","y"],"scores":[1,2,3]}\n{"id":"b","captions":["y","z"],"scores":[4,5,6]}\n',
  );
  assert.deepEqual(await readSimilarities(path('own.jsonl'), undefined), {
    ...{ values: [1, 2, 3, 4, 5, 6], numMedia: 2, numTexts: 3, mediaOf: [[0], [0, 1], [1]] },
  });

  // COCO's pictures have an order of their own, and its annotations theirs.
  await writeFile(
    path('coco.json'),
    JSON.stringify({
      images: [{ id: 1 }, { id: 2 }],
      annotations: [
        ...[2, 1, 2, 1].map((image, id) => ({ id, image_id: image, caption: String(id) })),
      ],
    }),
  );
  const coco = await readSimilarities(path('a.npy'), path('coco.json'));
  assert.deepEqual(coco.mediaOf, [[1], [0], [1], [0]]);

  const wrong = async (file: string, own: string | undefined, message: RegExp): Promise<void> =>
    assert.rejects(readSimilarities(path(file), own), { code: 'SCORE_FILE_INVALID', message });
  await wrong('ids.json', undefined, /ids\.json#0: it has no scores/);
  await wrong('ids.json', ids, /it is neither \.npy nor safetensors/);
  await writeFile(path('few.json'), '[{"id":"a","caption":"x"},{"id":"b","caption":"y"}]');
  await wrong(
    'e.safetensors',
    path('few.json'),
    /2 media with 4 texts, and .* has 2 with 2 captions/,
  );
  await writeFile(path('int.npy'), npy('<i8', false, new Uint8Array(64)));
  await wrong('int.npy', ids, /it holds <i8/);
  const whole = npy('<f8', false, bytesOf(Float64Array.from(rows.flat())));
  for (const [length, message] of [
    [
      whole.length - 3,
      /it has 61 bytes of numbers, and its shape \[2, 4\] takes 64: it is cut off/,
    ],
    [whole.length - 8, /it has 56 bytes/],
    [60, /its header is cut off/],
    [9, /its header is cut off/],
  ] as const) {
    await writeFile(path('torn.npy'), whole.subarray(0, length));
    await wrong('torn.npy', ids, message);
  }
  await writeFile(
    path('twice.jsonl'),
    '{"id":"a","captions":["x"],"scores":[1,2]}\n{"id":"a","captions":["y"],"scores":[3,4]}\n',
  );
  await wrong('twice.jsonl', undefined, /twice\.jsonl:2: a second one for a: the scores/);
});
