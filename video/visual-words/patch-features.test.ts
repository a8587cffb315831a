import assert from 'node:assert/strict';
import { test } from 'node:test';
import { patchFeatures, patchFeatureWidth, picturedPatches } from './patch-features.ts';

test('a part of a patch has the mean colour of its pixels, patches row by row, frames one after the other', () => {
  const [size, patchSize, numFrames] = [16, 8, 2];
  const value = (frame: number, y: number, x: number, c: number): number =>
    (frame * 91 + y * 37 + x * 11 + c * 53) % 256;
  const frames = Uint8Array.from({ length: numFrames * size * size * 3 }, (_, i) => {
    const [c, x, y] = [i % 3, Math.floor(i / 3) % size, Math.floor(i / 3 / size) % size];
    return value(Math.floor(i / 3 / size / size), y, x, c);
  });
  const features = patchFeatures(frames, { size, patchSize });
  const width = patchFeatureWidth(numFrames);
  assert.equal(features.length, 4 * width);
  for (let i = 0; i < features.length; i++) {
    const [patch, inPatch] = [Math.floor(i / width), i % width];
    const [frame, inFrame] = [Math.floor(inPatch / 48), inPatch % 48];
    const [part, c] = [Math.floor(inFrame / 3), inFrame % 3];
    const y = 8 * Math.floor(patch / 2) + 2 * Math.floor(part / 4);
    const x = 8 * (patch % 2) + 2 * (part % 4);
    const sum = [
      [0, 0],
      [0, 1],
      [1, 0],
      [1, 1],
    ].reduce((total, [down, right]) => total + value(frame, y + down!, x + right!, c), 0);
    assert.ok(Math.abs(features[i]! - sum / 4 / 255) < 1e-6, `[${i}]`);
  }
});

test('a patch of two pixels has each of them four times', () => {
  const frames = Uint8Array.from({ length: 2 * 2 * 3 }, (_, i) => 20 * i);
  const features = patchFeatures(frames, { size: 2, patchSize: 2 });
  assert.equal(features.length, patchFeatureWidth(1));
  const reds = [...Array(16).keys()].map((part) => Math.round(255 * features[3 * part]!));
  assert.deepEqual(reds, [0, 0, 60, 60, 0, 0, 60, 60, 120, 120, 180, 180, 120, 120, 180, 180]);
});

test('a picture by its features has each part in its colour, whatever the patch size', () => {
  for (const patchSize of [1, 2, 3, 4, 6, 10, 14]) {
    const size = 2 * patchSize;
    // A colour for each fourth of a patch, down and across, as features cut it.
    const partOf = (at: number): number =>
      [3, 2, 1, 0].find((k) => at % patchSize >= Math.floor((k * patchSize) / 4))!;
    const frame = Uint8Array.from({ length: size * size * 3 }, (_, i) => {
      const [x, y] = [Math.floor(i / 3) % size, Math.floor(i / 3 / size)];
      return 60 * partOf(y) + 15 * partOf(x) + (i % 3);
    });
    const features = patchFeatures(frame, { size, patchSize });
    assert.deepEqual(picturedPatches(features, { size, patchSize }), frame, `${patchSize}`);
  }
});
