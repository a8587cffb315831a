import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openRng } from '../../proto/random.ts';
import type { MediaFile } from '../index/sample.ts';
import { viewFraming } from './clip-view.ts';
import { augmentClip, randomResizedCrop, tellsSides } from './augment.ts';

const SQUARE = { isSquare: true };
const SIZE = { width: 320, height: 180 };
const pixels = (crop: ReturnType<typeof randomResizedCrop>, { width, height } = SIZE) => ({
  x: crop.x * width,
  y: crop.y * height,
  width: crop.width * width,
  height: crop.height * height,
});

test('random crops are whole pixels of the allowed area and shape, spread over the picture', () => {
  const areas: number[] = [];
  const [lefts, rights] = [new Set<boolean>(), new Set<boolean>()];
  for (let i = 0; i < 2000; i++) {
    const { x, y, width, height } = pixels(randomResizedCrop(SIZE, openRng(1, 'test', i)));
    for (const value of [x, y, width, height])
      assert.ok(Math.abs(value - Math.round(value)) < 1e-9);
    assert.ok(x >= 0 && y >= 0 && x + width <= 320 + 1e-9 && y + height <= 180 + 1e-9);
    assert.ok(width / height > 0.735 && width / height < 1.36, `${width} x ${height}`);
    areas.push((width * height) / (320 * 180));
    lefts.add(x < 1);
    rights.add(x + width > 319);
  }
  assert.ok(Math.min(...areas) > 0.078 && Math.max(...areas) <= 1);
  // Uniform from 0.08 on, but what is taller than the picture is drawn anew: 180 * 240 pixels are the most.
  assert.ok(Math.min(...areas) < 0.1 && Math.max(...areas) > 0.7);
  assert.equal(lefts.size + rights.size, 4);
});

test('where no crop fits, the middle one of the nearest shape is taken', () => {
  const options = { scale: [1, 1] as const };
  const wide = randomResizedCrop({ width: 1000, height: 30 }, openRng(1, 'test'), options);
  assert.deepEqual(wide, { x: 0.48, y: 0, width: 0.04, height: 1 });
  const tall = randomResizedCrop({ width: 30, height: 1000 }, openRng(1, 'test'), options);
  assert.deepEqual(tall, { x: 0, y: 0.48, width: 1, height: 0.04 });
});

test('a square crop is the largest square, anywhere along the longer side', () => {
  for (const size of [SIZE, { width: 180, height: 320 }]) {
    const places = new Set<number>();
    for (let sample = 0; sample < 2000; sample++) {
      const drawn = augmentClip({ seed: 3, epoch: 0, sample }, { ...size, text: '' }, SQUARE);
      const { x, y, width, height } = pixels(drawn.crop!, size);
      assert.ok(Math.abs(width - 180) < 1e-9 && Math.abs(height - 180) < 1e-9);
      assert.ok(Math.min(x, y) === 0);
      places.add(Math.round(Math.max(x, y)));
    }
    assert.equal(places.size, 141, 'each whole pixel from 0 to 140');
  }
});

test('a clip in training is shown as much of as its recipe says, held-out ones whole', () => {
  const sample = { id: 'a', media: [], cues: [], decodeMegapixels: 0, text: 'a dog' };
  const file = { ...SIZE, path: 'a.mp4' } as unknown as MediaFile;
  const cropOf = (crop: boolean | 'square', row: number, isTraining = true) =>
    viewFraming(
      {
        ...{ numFrames: 1, sampling: { policy: 'even' }, fit: 'stretch', seed: 3, isTraining },
        augment: { crop, cropScale: [0.5, 0.6], flip: false },
      },
      { sample, file, row, epoch: 0 },
    ).crop;
  for (let row = 0; row < 200; row++) {
    const { width, height } = cropOf(true, row)!;
    assert.ok(width * height > 0.49 && width * height < 0.61, `${width * height}`);
    const square = cropOf('square', row)!;
    assert.ok(Math.abs(square.width * SIZE.width - SIZE.height) < 1e-9);
    assert.equal(square.height, 1);
    assert.equal(cropOf(false, row), undefined);
    assert.equal(cropOf('square', row, false), undefined);
  }
});

test('a clip is changed by its key alone, and mirrored half of the time if its words allow', () => {
  const clip = { ...SIZE, text: 'a dog runs' };
  const of = (sample: number, text = clip.text) =>
    augmentClip({ seed: 3, epoch: 1, sample }, { ...clip, text });
  assert.deepEqual(of(5), of(5));
  assert.notDeepEqual(of(5), of(6));
  assert.notDeepEqual(of(5), augmentClip({ seed: 3, epoch: 2, sample: 5 }, clip));
  const samples = Array.from({ length: 1000 }, (_, i) => i);
  const numFlipped = samples.filter((sample) => of(sample).flip).length;
  assert.ok(Math.abs(numFlipped - 500) < 60, `${numFlipped}`);
  assert.ok(samples.every((sample) => !of(sample, 'a dog runs to the Left').flip));
  assert.deepEqual(of(5, 'to the left').crop, of(5).crop);
  assert.deepEqual(['rightmost', 'bright', 'a cleft'].map(tellsSides), [true, false, false]);
});
