import assert from 'node:assert/strict';
import { test } from 'node:test';
import { clipMedia, controlledTruth } from './clip.ts';
import { SPLITS } from './combinations.ts';
import type { PlacesTruth } from './controlled-truth.ts';
import { boxText, placeQuestionsOf } from './place-questions.ts';
import { placesVocabulary, QUARTERS, splitOfPlaced, type Quarter } from './places.ts';

const PARAMETERS = {
  ...{ seed: 5, width: 64, height: 64, fps: 8, seconds: 1 },
  kind: 'places' as const,
};
const NUM_CLIPS = 200;
const truths = SPLITS.flatMap((split) =>
  Array.from(
    { length: NUM_CLIPS },
    (_, index) => controlledTruth(PARAMETERS, { split, index }) as PlacesTruth,
  ),
);

test('one object or two, each whole in the picture, over no other, in a quarter and a colour of its own', () => {
  for (const { objects, caption, id } of truths) {
    assert.ok(objects.length === 1 || objects.length === 2);
    assert.equal(new Set(objects.map(({ colour }) => colour)).size, objects.length, id);
    const boxes = objects.map(({ track }) => track.boxes[0]!);
    for (const [i, [left, top, right, bottom]] of boxes.entries()) {
      assert.ok(left >= 0 && top >= 0 && right <= 64 && bottom <= 64, id);
      for (const other of boxes.slice(i + 1)) {
        const isApart =
          left >= other[2] || other[0] >= right || top >= other[3] || other[1] >= bottom;
        assert.ok(isApart, `${id}: ${boxes.join(' ')}`);
      }
    }
    const said = caption.text.split(' , ').map((clause, i) => {
      const { colour, shape, track } = objects[i]!;
      const [x, y] = track.centers[0]!;
      const quarter = `${y < 32 ? 'top' : 'bottom'} ${x < 32 ? 'left' : 'right'}`;
      assert.match(clause, new RegExp(`^an? ${colour} ${shape} ${quarter}$`), id);
      return quarter;
    });
    assert.equal(new Set(said).size, objects.length);
    const order = said.map((quarter) => (QUARTERS as readonly string[]).indexOf(quarter));
    assert.deepEqual(order, order.toSorted(), 'as a picture is read');
  }
});

test('as many pictures have one object as two', () => {
  const single = truths.filter(({ objects }) => objects.length === 1);
  assert.equal(single.length, truths.length / 2);
});

test('splits share no picture of the same objects in the same quarters, and each word is in both', () => {
  const sets = SPLITS.map(
    (split) =>
      new Set(
        truths
          .filter((truth) => truth.split === split)
          .map(({ objects, caption }) => {
            const quarters = caption.text.split(' , ').map((clause) => clause.split(' ').slice(-2));
            const placed = objects.map(({ colour, shape }, i) => ({
              ...{ colour, shape, quarter: quarters[i]!.join(' ') as Quarter },
            }));
            assert.equal(splitOfPlaced(placed), split);
            return caption.text;
          }),
      ),
  );
  assert.ok([...sets[0]!].every((set) => !sets[1]!.has(set)));
  for (const split of SPLITS) {
    const words = truths
      .filter((truth) => truth.split === split)
      .flatMap(({ caption }) => caption.text.split(' '));
    assert.deepEqual([...new Set(words)].filter((word) => word !== ',').sort(), placesVocabulary());
  }
});

test('what is drawn in the middle of a box is the colour of its object', () => {
  for (const index of [0, 1, 2, 3]) {
    const { truth, media } = clipMedia(PARAMETERS, { split: 'train', index });
    const [frame] = [...media.frames].slice(0, 1);
    for (const { rgb, track } of (truth as PlacesTruth).objects) {
      const [left, top, right, bottom] = track.boxes[0]!;
      // The centre of each of these shapes is well inside of it; luma of BT.601, limited range.
      const [x, y] = [Math.round((left + right) / 2), Math.round((top + bottom) / 2)];
      const luma = 16 + 0.25679 * rgb[0] + 0.50413 * rgb[1] + 0.09791 * rgb[2];
      assert.ok(Math.abs(frame![y * 64 + x]! - luma) < 8, `${index}: ${frame![y * 64 + x]!}`);
    }
  }
});

test('a box is told in hundredths of the sides, to the nearest ten', () => {
  const picture = { width: 200, height: 50 };
  assert.equal(boxText([0, 0, 200, 50], picture), '{<0><0><100><100>}');
  assert.equal(boxText([29, 7, 31, 48], picture), '{<10><10><20><100>}');
});

test('questions name objects and boxes that are there, and two tasks ask the same', () => {
  for (const truth of truths.slice(0, 20)) {
    const asked = placeQuestionsOf(truth).map(({ id, video, conversations: [human, gpt] }) => {
      assert.ok(id.startsWith(`${truth.id}-`) && video === `${truth.id}.mp4`);
      const [, task, question] = /^<video>\n\[(\w+)\] (.*)$/.exec(human.value)!;
      return { task: task!, question: question!, answer: gpt.value };
    });
    assert.equal(asked.length, 2 + 3 * truth.objects.length);
    const of = (name: string) => asked.filter(({ task }) => task === name);
    assert.deepEqual(
      of('refer').map(({ question }) => question),
      of('vqa').map(({ question }) => question),
    );
    assert.equal(of('caption')[0]!.question, of('grounding')[0]!.question);
    for (const [i, { colour, shape, track }] of truth.objects.entries()) {
      const box = boxText(track.boxes[0]!, truth);
      assert.equal(of('refer')[i]!.question, `where is the ${colour} ${shape} ?`);
      assert.equal(of('refer')[i]!.answer, box);
      assert.deepEqual(of('identify')[i], {
        ...{ task: 'identify', question: `what is at ${box} ?`, answer: `${colour} ${shape}` },
      });
      assert.ok(of('grounding')[0]!.answer.includes(`<p>${colour} ${shape}</p> ${box}`));
    }
  }
});
