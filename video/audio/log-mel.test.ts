import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { kaldiFbank, whisperLogMel } from './log-mel.ts';
import { powerSpectrum } from './power-spectrum.ts';

const RATE = 16_000;
const fixture = new URL('../test/fixtures/log-mel.json', import.meta.url);
const expected = JSON.parse(await readFile(fixture, 'utf8')) as Record<
  string,
  { shape: [number, number]; float32: string }
>;

/** The sound that the fixture's script made. */
function sound(seconds: number): Float32Array {
  let state = 1;
  return Float32Array.from({ length: seconds * RATE }, (_, i) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const [t, noise] = [i / RATE, state / 2 ** 31 - 1];
    const late = t > 0.15 ? 0.3 * Math.sin(2 * Math.PI * 3000 * t) : 0;
    return t < 0.35 ? 0.4 * Math.sin(2 * Math.PI * 440 * t) + late + 0.02 * noise : 0;
  });
}

function assertEquals(actual: Float32Array, name: string): void {
  const { shape, float32 } = expected[name]!;
  const bytes = Uint8Array.from(Buffer.from(float32, 'base64'));
  const wanted = new Float32Array(bytes.buffer);
  assert.equal(actual.length, shape[0] * shape[1]);
  const worst = actual.reduce((max, value, i) => Math.max(max, Math.abs(value - wanted[i]!)), 0);
  assert.ok(worst < 1e-4, `${name} differs by ${worst}`);
}

test("Whisper's features are those of transformers", () => {
  assertEquals(whisperLogMel(sound(0.4), { numMels: 80 }), 'whisper 80');
  assertEquals(whisperLogMel(sound(0.4), { numMels: 128, numSamples: 8000 }), 'whisper 128');
  assert.throws(() => whisperLogMel(sound(0.01), { numMels: 80 }), RangeError);
});

test("Kaldi's filter bank is that of torchaudio", () => {
  const options = { sampleRate: RATE, numMels: 128, mean: -4.268, std: 9.138 };
  const features = kaldiFbank(sound(0.4), options);
  assertEquals(features, 'kaldi 128');
  const padded = kaldiFbank(sound(0.4), { ...options, numFrames: 100 });
  assert.deepEqual(padded.subarray(0, features.length), features);
  assert.equal(padded.length, 100 * 128);
  assert.ok(
    padded.subarray(features.length).every((value) => Math.abs(value - 4.268 / 9.138) < 1e-6),
  );
  assert.equal(kaldiFbank(sound(0.01), options).length, 0);
});

test('the power spectrum is that of the transform written out', () => {
  for (const size of [2, 6, 16, 30, 400, 512]) {
    const frame = Float64Array.from(sound(0.1).subarray(0, size));
    const powers = new Float64Array(size / 2 + 1);
    const spectrum = powerSpectrum(size);
    spectrum(frame, powers);
    for (const [k, power] of powers.entries()) {
      let [re, im] = [0, 0];
      for (const [i, value] of frame.entries()) {
        re += value * Math.cos((2 * Math.PI * i * k) / size);
        im -= value * Math.sin((2 * Math.PI * i * k) / size);
      }
      assert.ok(Math.abs(power - (re * re + im * im)) < 1e-9 * size, `${size}: ${k}`);
    }
  }
});
