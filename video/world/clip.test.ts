import assert from 'node:assert/strict';
import { test } from 'node:test';
import { clipTruth } from './clip.ts';
import { combinationsOf, SPLITS, splitOf } from './combinations.ts';
import type { GroundTruth } from './ground-truth.ts';
import { toWebVtt, worldVocabulary } from './narrate.ts';
import { BACKGROUND_COLOUR_NAMES, COLOUR_NAMES, MOTIONS, PATTERNS, SHAPES } from './palette.ts';
import { EXTENTS } from './shapes.ts';

const PARAMETERS = { seed: 11, width: 128, height: 128, fps: 24, seconds: 6 };
const CLIPS: readonly GroundTruth[] = SPLITS.flatMap((split) =>
  Array.from({ length: 60 }, (_, index) => clipTruth(PARAMETERS, { split, index })),
);

/** [colour, shape] pairs in the order in which a text names them. */
function named(text: string): string[] {
  const pattern = new RegExp(`\\b(${COLOUR_NAMES.join('|')}) (${SHAPES.join('|')})\\b`, 'g');
  return [...text.matchAll(pattern)].map(([words]) => words);
}

function words(truth: GroundTruth, ids: readonly string[]): string[] {
  return ids.map((id) => {
    const object = truth.objects.find((candidate) => candidate.id === id)!;
    return `${object.colour} ${object.shape}`;
  });
}

test('a clip is a function of seed, split and index', () => {
  for (const { split, index } of [CLIPS[3]!, CLIPS[70]!]) {
    const again = clipTruth(PARAMETERS, { split, index });
    assert.deepEqual(
      again,
      CLIPS.find((truth) => truth.id === again.id),
    );
    const other = clipTruth({ ...PARAMETERS, seed: 12 }, { split, index });
    assert.notDeepEqual(other.objects, again.objects);
  }
});

test('splits share no combination, hold all words, and each pair of words is in training', () => {
  const [train, heldOut] = [combinationsOf('train'), combinationsOf('held-out')];
  assert.equal(train.length + heldOut.length, SHAPES.length * COLOUR_NAMES.length * MOTIONS.length);
  assert.ok(heldOut.every((combination) => splitOf(combination) === 'held-out'));
  for (const [a, b] of [
    ['shape', 'colour'],
    ['shape', 'motion'],
    ['colour', 'motion'],
  ] as const) {
    const pairs = (list: typeof train): Set<string> =>
      new Set(list.map((one) => `${one[a]} ${one[b]}`));
    assert.deepEqual(
      [...pairs(heldOut)].filter((pair) => !pairs(train).has(pair)),
      [],
    );
  }
  for (const split of SPLITS) {
    const objects = CLIPS.filter((truth) => truth.split === split).flatMap(
      (truth) => truth.objects,
    );
    for (const object of objects) assert.equal(splitOf(object), split);
    for (const key of ['shape', 'colour', 'motion'] as const) {
      const all = { shape: SHAPES, colour: COLOUR_NAMES, motion: MOTIONS }[key];
      assert.deepEqual(new Set(objects.map((object) => object[key])), new Set<string>(all), split);
    }
  }
});

test('all backgrounds and patterns occur, and no clip repeats one or an object', () => {
  const shots = CLIPS.flatMap((truth) => truth.shots);
  assert.equal(
    new Set(shots.map(({ background }) => background.colour)).size,
    BACKGROUND_COLOUR_NAMES.length,
  );
  assert.equal(new Set(shots.map(({ background }) => background.pattern)).size, PATTERNS.length);
  for (const truth of CLIPS) {
    assert.equal(
      new Set(truth.shots.map(({ background }) => background.colour)).size,
      truth.shots.length,
    );
    const looks = truth.objects.map(({ colour, shape }) => `${colour} ${shape}`);
    assert.equal(new Set(looks).size, looks.length, truth.id);
  }
});

test('captions name exactly the objects that are there, once each, clauses in the order of events', () => {
  for (const truth of CLIPS) {
    const all = truth.objects.map(({ colour, shape }) => `${colour} ${shape}`);
    assert.deepEqual(named(truth.caption.text).sort(), all.sort(), truth.caption.text);
    const firstTimes = truth.caption.clauses.map((clause) => {
      assert.equal(truth.caption.text.slice(clause.start, clause.end), clause.text);
      assert.deepEqual(named(clause.text), words(truth, clause.objects));
      const own = truth.events.filter(({ id }) => clause.events.includes(id));
      assert.ok(own.every(({ objects }) => objects.some((id) => clause.objects.includes(id))));
      return own[0]!.timeSeconds;
    });
    assert.deepEqual(
      firstTimes,
      firstTimes.toSorted((a, b) => a - b),
      truth.caption.text,
    );
    const told = truth.caption.clauses.flatMap(({ events }) => events);
    assert.deepEqual(told.sort(), truth.events.map(({ id }) => id).sort());
    const sentences = truth.caption.text.split('.').length - 1;
    assert.ok(sentences === 1 || sentences === 2, truth.caption.text);
    assert.doesNotMatch(truth.caption.text, /[{}]|undefined| {2}|\ba [aeiou]|\ban [^aeiou]/);
  }
});

test('background words of a text are true of the shot that it tells of', () => {
  let numNamed = 0;
  for (const truth of CLIPS) {
    for (const { text, shot } of [...truth.caption.clauses, ...truth.subtitles]) {
      const over = text.split(' over ')[1];
      if (over === undefined) continue;
      numNamed++;
      assert.equal(over, truth.shots[shot]!.background.name);
    }
  }
  assert.ok(numNamed > CLIPS.length / 2);
});

test('relations in a text are true of the boxes', () => {
  let numRelations = 0;
  for (const truth of CLIPS) {
    for (const { text, objects } of truth.caption.clauses) {
      const relation = /(above|below|next to) it/.exec(text)?.[1];
      if (relation === undefined) continue;
      numRelations++;
      const [first, second] = objects.map((id) =>
        truth.objects.find((object) => object.id === id)!,
      );
      for (const [frame, box] of first!.track.boxes.entries()) {
        const other = second!.track.boxes[frame];
        if (box === null || other === undefined || other === null) continue;
        if (relation === 'above') assert.ok(other[3] <= box[1] + 1, text);
        else if (relation === 'below') assert.ok(other[1] >= box[3] - 1, text);
        else assert.ok(other[2] <= box[0] + 1 || other[0] >= box[2] - 1, text);
      }
    }
  }
  assert.ok(numRelations > 3);
});

test('subtitles are plain lower-case words near what they tell of, one after the other', () => {
  for (const truth of CLIPS) {
    let end = 0;
    for (const cue of truth.subtitles) {
      assert.match(cue.text, /^[a-z]+( [a-z]+)*$/);
      assert.ok(cue.startSeconds >= end && cue.endSeconds > cue.startSeconds, truth.id);
      assert.ok(cue.endSeconds <= truth.durationSeconds);
      end = cue.endSeconds;
      const times = truth.events
        .filter(({ id }) => cue.events.includes(id))
        .map((event) => event.timeSeconds);
      assert.ok(
        Math.abs(cue.startSeconds - times[0]!) < 1.2,
        `${truth.id}: ${cue.startSeconds} ${times.join()} ${cue.text}`,
      );
      const own = words(truth, cue.objects);
      assert.ok(named(cue.text).every((name) => own.includes(name)));
    }
    const spoken = truth.subtitles.flatMap(({ text }) => named(text));
    assert.deepEqual(
      new Set(spoken),
      new Set(truth.objects.map(({ colour, shape }) => `${colour} ${shape}`)),
    );
  }
  const [vtt] = CLIPS.map((truth) => toWebVtt(truth.subtitles));
  assert.match(vtt!, /^WEBVTT\n\n\d\d:\d\d:\d\d\.\d{3} --> \d\d:\d\d:\d\d\.\d{3}\n[a-z ]+\n/);
});

test('the language is closed and small', () => {
  const vocabulary = new Set(worldVocabulary());
  assert.ok(vocabulary.size >= 80 && vocabulary.size <= 140, `${vocabulary.size} words`);
  for (const truth of CLIPS) {
    const texts = [
      truth.caption.text.replaceAll(/[.,]/g, ''),
      ...truth.subtitles.map(({ text }) => text),
    ];
    for (const word of texts.join(' ').split(' ')) assert.ok(vocabulary.has(word), word);
  }
});

test('boxes, visibility and velocities agree with the centres, frame by frame', () => {
  for (const truth of CLIPS) {
    for (const { id, shape, radius, track, brake } of truth.objects) {
      const times = truth.frames.ptsSeconds.slice(track.firstFrame);
      for (const [frame, [x, y]] of track.centers.entries()) {
        const [left, top, right, bottom] = EXTENTS[shape];
        const whole = [
          x + left * radius,
          y + top * radius,
          x + right * radius,
          y + bottom * radius,
        ];
        const isInside = whole[0]! >= 0 && whole[1]! >= 0 && whole[2]! <= 128 && whole[3]! <= 128;
        const isOutside = whole[2]! < 0 || whole[3]! < 0 || whole[0]! > 128 || whole[1]! > 128;
        const box = track.boxes[frame] ?? null;
        const visibility = track.visibility[frame]!;
        if (isOutside) assert.equal(box, null, `${truth.id} ${id}`);
        if (box === null) {
          assert.equal(visibility, 0);
          continue;
        }
        const area =
          ((box[2] - box[0]) * (box[3] - box[1])) /
          ((whole[2]! - whole[0]!) * (whole[3]! - whole[1]!));
        if (!isInside && area < 0.9)
          assert.ok(visibility < 1, `${truth.id} ${id}: cut but wholly visible`);
        assert.ok(
          visibility <= area * 2.1 + 0.01,
          `${truth.id} ${id}: more to see than the box holds`,
        );
        assert.ok(box.every((edge) => edge >= 0 && edge <= 128));
        if (visibility === 1) assert.ok(area > 0.9);
        const next = track.centers[frame + 1];
        const events = truth.events.filter(
          ({ objects, timeSeconds }) =>
            objects.includes(id) &&
            timeSeconds >= times[frame]! - 0.01 &&
            timeSeconds <= times[frame + 1]! + 0.01,
        );
        const brakes =
          brake !== null &&
          brake.startSeconds > times[frame]! &&
          brake.startSeconds < times[frame + 1]!;
        if (frame + 1 === track.centers.length || events.length > 0 || brakes) continue;
        // Mean of the two velocities: exact for even acceleration, near enough for an orbit.
        const [before, after] = [track.velocities[frame]!, track.velocities[frame + 1]!];
        const span = times[frame + 1]! - times[frame]!;
        for (const [axis, position] of [x, y].entries()) {
          const mean = (before[axis]! + after[axis]!) / 2;
          assert.ok(
            Math.abs((next![axis]! - position) / span - mean) < 2,
            `${truth.id} ${id} frame ${frame}`,
          );
        }
      }
    }
  }
});

test('collisions conserve momentum and energy, and the tracks show them', () => {
  let numCollisions = 0;
  for (const truth of CLIPS) {
    for (const { collision, objects } of truth.events) {
      if (collision === null) continue;
      numCollisions++;
      const masses = objects.map((id) => truth.objects.find((object) => object.id === id)!.mass);
      const total = (
        of: (v: readonly [number, number]) => number,
        when: 'before' | 'after',
      ): number => collision[when].reduce((sum, velocity, i) => sum + masses[i]! * of(velocity), 0);
      for (const of of [
        ([x]: readonly [number, number]) => x,
        ([, y]: readonly [number, number]) => y,
        ([x, y]: readonly [number, number]) => (x * x + y * y) / 2,
      ]) {
        const [before, after] = [total(of, 'before'), total(of, 'after')];
        assert.ok(Math.abs(before - after) < 1e-5 * Math.max(1, Math.abs(before)));
      }
      const last = truth.objects.find(({ id }) => id === objects[0])!.track.velocities.at(-1)!;
      assert.ok(
        Math.abs(last[0] - collision.after[0][0]) < 0.01,
        `${truth.id} ${last.join()} ${JSON.stringify(collision)}`,
      );
    }
  }
  assert.ok(numCollisions > 8, `${numCollisions}`);
});

test('events come in the order of time, each object enters before it acts and leaves last', () => {
  const seen = new Set<string>();
  for (const truth of CLIPS) {
    const times = truth.events.map(({ timeSeconds }) => timeSeconds);
    assert.deepEqual(
      times,
      times.toSorted((a, b) => a - b),
    );
    for (const object of truth.objects) {
      const own = truth.events
        .filter(({ objects }) => objects.includes(object.id))
        .map(({ type }) => type);
      for (const type of own) seen.add(type);
      assert.ok(
        own[0] === 'enter' || own[0] === 'appear',
        `${truth.id} ${object.id}: ${own.join()}`,
      );
      assert.ok(!own.slice(0, -1).includes('leave'), `${truth.id} ${object.id}: ${own.join()}`);
      const needed = { bounce: 'bounce', stop: 'stop', collide: 'collide', zigzag: 'turn' }[
        object.motion as string
      ];
      if (needed !== undefined)
        assert.ok(own.includes(needed as never), `${truth.id} ${object.id}: ${own.join()}`);
    }
  }
  assert.equal(seen.size, 7);
});

test('a main object is large in its shot', () => {
  for (const truth of CLIPS) {
    for (const { index } of truth.shots) {
      const sizes = truth.objects
        .filter(({ shot }) => shot === index)
        .map(({ radius }) => (2 * radius) / 128);
      assert.ok(sizes.every((size) => size >= 0.25 && size <= 0.47));
    }
  }
});
