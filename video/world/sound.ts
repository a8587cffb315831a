/** What events sound like: a note by colour, an octave and a length by event, a side by place. Pure. */
import type { EventType, WorldEvent } from './ground-truth.ts';
import { COLOUR_NAMES, type Colour } from './palette.ts';

export const SAMPLE_RATE = 16_000;

/** A pentatonic scale, in hertz: any two colours sound well together. */
const NOTES: readonly number[] = [262, 294, 330, 392, 440, 523, 587, 659];

interface Tone {
  /** Times the colour's note. */
  readonly factor: number;
  readonly seconds: number;
  /** Of full scale. */
  readonly amplitude: number;
  /** Time constant of the decay, in seconds: short is plucked, long is blown. */
  readonly decaySeconds: number;
}

const TONES: Readonly<Record<EventType, Tone>> = {
  appear: { factor: 1, seconds: 0.22, amplitude: 0.3, decaySeconds: 0.2 },
  enter: { factor: 1, seconds: 0.16, amplitude: 0.35, decaySeconds: 0.12 },
  turn: { factor: 1.5, seconds: 0.08, amplitude: 0.25, decaySeconds: 0.04 },
  bounce: { factor: 2, seconds: 0.14, amplitude: 0.45, decaySeconds: 0.05 },
  collide: { factor: 2, seconds: 0.26, amplitude: 0.35, decaySeconds: 0.09 },
  stop: { factor: 0.5, seconds: 0.3, amplitude: 0.4, decaySeconds: 0.16 },
  leave: { factor: 0.75, seconds: 0.16, amplitude: 0.3, decaySeconds: 0.12 },
};

/** The sound of an event; `place` is 0 at the picture's left and 1 at its right. */
export function soundOf(
  type: EventType,
  colours: readonly Colour[],
  place: number,
): WorldEvent['sound'] {
  const { factor, seconds } = TONES[type];
  return {
    frequenciesHz: colours.map((colour) => factor * NOTES[COLOUR_NAMES.indexOf(colour)]!),
    seconds,
    pan: Math.round(Math.min(1, Math.max(-1, 2 * place - 1)) * 1000) / 1000,
  };
}

/** All events' sounds, mixed: two channels in [-1, 1] at {@link SAMPLE_RATE}; silence between. */
export function renderSound(
  events: readonly WorldEvent[],
  durationSeconds: number,
): [left: Float32Array, right: Float32Array] {
  const numSamples = Math.round(durationSeconds * SAMPLE_RATE);
  const channels: [Float32Array, Float32Array] = [
    new Float32Array(numSamples),
    new Float32Array(numSamples),
  ];
  for (const { type, timeSeconds, sound } of events) {
    const { amplitude, decaySeconds } = TONES[type];
    const first = Math.round(timeSeconds * SAMPLE_RATE);
    const length = Math.min(Math.round(sound.seconds * SAMPLE_RATE), numSamples - first);
    const angle = ((sound.pan + 1) * Math.PI) / 4; // equal power
    const gains = [Math.cos(angle), Math.sin(angle)].map(
      (gain) => (gain * amplitude) / sound.frequenciesHz.length,
    );
    for (let i = 0; i < length; i++) {
      const time = i / SAMPLE_RATE;
      // 4 ms up and the last 20 ms down, so that nothing clicks.
      const edges = Math.min(1, time / 0.004, (sound.seconds - time) / 0.02);
      const envelope = edges * Math.exp(-time / decaySeconds);
      let value = 0;
      for (const hertz of sound.frequenciesHz) {
        const phase = 2 * Math.PI * hertz * time;
        value += 0.85 * Math.sin(phase) + 0.15 * Math.sin(2 * phase);
      }
      channels[0][first + i]! += value * envelope * gains[0]!;
      channels[1][first + i]! += value * envelope * gains[1]!;
    }
  }
  for (const channel of channels) {
    for (let i = 0; i < channel.length; i++) channel[i] = Math.min(1, Math.max(-1, channel[i]!));
  }
  return channels;
}
