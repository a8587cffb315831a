/** The four sounds of the controlled worlds. Two differ in pitch, two in nothing but the order of their pitches. Pure. */
import { SAMPLE_RATE } from './sound.ts';

export const SOUNDS = ['low', 'high', 'rising', 'falling'] as const;
export type Sound = (typeof SOUNDS)[number];

export interface ToneSpan {
  readonly sound: Sound;
  readonly startSeconds: number;
  readonly endSeconds: number;
  /** At the start and at the end; in between the pitch goes evenly from one to the other. */
  readonly frequenciesHz: readonly [number, number];
  /** Of full scale. */
  readonly amplitude: number;
}

const [LOW_HZ, HIGH_HZ] = [400, 1600];
const PITCHES: Readonly<Record<Sound, readonly [number, number]>> = {
  low: [LOW_HZ, LOW_HZ],
  high: [HIGH_HZ, HIGH_HZ],
  rising: [LOW_HZ, HIGH_HZ],
  falling: [HIGH_HZ, LOW_HZ],
};

/** A sound's frequencies, all of them times `factor`: no two clips need be in tune. */
export function frequenciesOf(sound: Sound, factor: number): readonly [number, number] {
  const [from, to] = PITCHES[sound];
  return [Math.round(from * factor), Math.round(to * factor)];
}

/** All tones, alike on both channels, at `SAMPLE_RATE`; silence between. */
export function renderTones(
  tones: readonly ToneSpan[],
  durationSeconds: number,
): [left: Float32Array, right: Float32Array] {
  const samples = new Float32Array(Math.round(durationSeconds * SAMPLE_RATE));
  for (const { startSeconds, endSeconds, frequenciesHz, amplitude } of tones) {
    const [from, to] = frequenciesHz;
    const length = endSeconds - startSeconds;
    const first = Math.round(startSeconds * SAMPLE_RATE);
    const count = Math.min(Math.round(length * SAMPLE_RATE), samples.length - first);
    let phase = 0;
    for (let i = 0; i < count; i++) {
      const time = i / SAMPLE_RATE;
      // 20 ms up and down, so that nothing clicks.
      const edges = Math.min(1, time / 0.02, (length - time) / 0.02);
      samples[first + i]! +=
        amplitude * edges * (0.85 * Math.sin(phase) + 0.15 * Math.sin(2 * phase));
      phase += (2 * Math.PI * from * (to / from) ** (time / length)) / SAMPLE_RATE;
    }
  }
  return [samples, samples.slice()];
}
