/** The tower that listens: its fields in recipes, and the sound as a program takes it. */
import * as z from 'zod';
import { count } from '../config-fields.ts';
import type { AudioSizes } from '../models/audio-tower.ts';
import type { HostArray, Row } from './system.ts';

export const audioFields = z
  .strictObject({
    segments: count("Tokens of a clip's sound; divides data.audio.numFrames"),
    width: count('Width of the audio tower'),
    layers: count('Its blocks'),
    heads: count('Its attention heads'),
    mlpWidth: count('Width of its MLPs'),
  })
  .describe('The transformer that listens to the log-mel spectrogram');

export type AudioConfig = z.infer<typeof audioFields>;
type Spectrogram = { readonly numMels: number; readonly numFrames: number };

export function audioSizes(config: AudioConfig, { numMels, numFrames }: Spectrogram): AudioSizes {
  const { segments: numSegments, width, layers: numLayers, heads: numHeads, mlpWidth } = config;
  return {
    ...{ numMels, numFrames, numSegments, width, numLayers, numHeads, mlpWidth },
    ...{ activation: 'gelu', epsilon: 1e-5 },
  };
}

/** What is wrong with the fields taken together, if anything. */
export function audioFault(
  config: AudioConfig | null,
  spectrogram: Spectrogram | null,
): string | undefined {
  if (config === null) return 'the model listens, and model.audio is null';
  if (spectrogram === null) return 'the model listens, and data.audio is null';
  if (spectrogram.numFrames % config.segments !== 0)
    return `data.audio.numFrames (${spectrogram.numFrames}) is not a multiple of model.audio.segments (${config.segments})`;
  if (config.width % config.heads !== 0)
    return `model.audio.width (${config.width}) is not a multiple of its heads (${config.heads})`;
  return undefined;
}

/** [B, mels x frames], of each row's clip. */
export function spectrograms(rows: readonly Row[]): HostArray {
  const size = rows[0]?.audio?.length ?? 0;
  const data = new Float32Array(rows.length * size);
  for (const [i, { audio }] of rows.entries()) if (audio !== undefined) data.set(audio, i * size);
  return { data, shape: [rows.length, size] };
}
