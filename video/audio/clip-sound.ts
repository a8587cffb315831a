import { whisperLogMel } from './log-mel.ts';

/** Sound of a clip as a picture of fixed size. */
export interface ClipSound {
  /** Bands of the spectrogram. */
  readonly numMels: number;
  /** Frames over the whole clip, however long it is. */
  readonly numFrames: number;
}

/** Rate at which {@link clipLogMel} takes sound, hertz. */
export const CLIP_SOUND_RATE = 16_000;

/** What {@link clipLogMel} makes of silence: (log10(1e-10) + 4) / 4, its floor. */
export const SILENCE = -1.5;

/** More samples than one frame of the spectrogram reaches over; shorter sound is followed by silence. */
const FEWEST_SAMPLES = 400;

/**
 * Whisper's log-mel features of a clip in so many frames, [numMels, numFrames] flat: each is the mean of those of 10 ms
 * that fall into its equal part of the clip, or the one nearest to it where there are fewer. `samples`: one channel at
 * {@link CLIP_SOUND_RATE}. What is silent throughout is {@link SILENCE} everywhere.
 */
export function clipLogMel(samples: Float32Array, { numMels, numFrames }: ClipSound): Float32Array {
  const numSamples = Math.max(FEWEST_SAMPLES, samples.length);
  const fine = whisperLogMel(samples, { numMels, numSamples });
  const numFine = fine.length / numMels;
  const coarse = new Float32Array(numMels * numFrames);
  for (let t = 0; t < numFrames; t++) {
    const start = Math.floor((t * numFine) / numFrames);
    const end = Math.max(start + 1, Math.floor(((t + 1) * numFine) / numFrames));
    for (let mel = 0; mel < numMels; mel++) {
      let sum = 0;
      for (let i = start; i < end; i++) sum += fine[mel * numFine + i]!;
      coarse[mel * numFrames + t] = sum / (end - start);
    }
  }
  return coarse;
}
