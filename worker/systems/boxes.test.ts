import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openRng } from '../../proto/random.ts';
import { boxesIn, boxesJoined, boxIou, boxOf, type WordBox } from './boxes.ts';

test('a box is four numbers in braces and nothing beside, however a tokenizer spaces it', () => {
  const box = [10, 20, 40, 100];
  assert.deepEqual(boxOf('{<10><20><40><100>}'), box);
  assert.deepEqual(boxOf('{ < 10 > < 20 > < 40 > < 100 > }'), box);
  for (const text of [
    ...['', 'top left', '<10><20><40><100>', '{<10><20><40>}', '{<10><20><40><100><5>}'],
    ...['{<10><20><40><101>}', '{<40><20><40><100>}', '{<10><30><40><20>}', '{<10><2x><40><90>}'],
    ...['red {<10><20><40><100>}', '{<10><20><40><100>} {<10><20><40><100>}'],
  ])
    assert.equal(boxOf(text), undefined, text);
});

test('what two boxes share of both together is that of the hundredths they cover', () => {
  const rng = openRng(3, 'boxes');
  const drawn = (): WordBox => {
    const [left, top] = [rng.integer(20), rng.integer(20)];
    return [left, top, left + 1 + rng.integer(20), top + 1 + rng.integer(20)];
  };
  for (let i = 0; i < 100; i++) {
    const [a, b] = [drawn(), drawn()];
    let [inBoth, inAny] = [0, 0];
    for (let y = 0; y < 40; y++) {
      for (let x = 0; x < 40; x++) {
        const [inA, inB] = [a, b].map(
          ([left, top, right, bottom]) => x >= left && x < right && y >= top && y < bottom,
        );
        if (inA && inB) inBoth++;
        if (inA || inB) inAny++;
      }
    }
    assert.equal(boxIou(a, b), inBoth / inAny, `${a.join()} and ${b.join()}`);
    assert.equal(boxIou(b, a), boxIou(a, b));
  }
});

test('boxes among words are found, and put in one piece as the data have them', () => {
  const said =
    '< p > red square < / p > { < 10 > < 20 > < 40 > < 100 > } and { < 1 > <2>< 3 ><4> }';
  assert.deepEqual(boxesIn(said), [
    [10, 20, 40, 100],
    [1, 2, 3, 4],
  ]);
  assert.deepEqual(boxesIn('{<40><20><40><100>} is none'), []);
  assert.equal(boxesJoined(said), '<p>red square</p> {<10><20><40><100>} and {<1><2><3><4>}');
  for (const text of ['a < b', 'top left, {1}', '<px> < pp >'])
    assert.equal(boxesJoined(text), text);
});
