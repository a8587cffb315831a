/**
 * Sound to log-mel features, in the two forms that the field's audio encoders were trained on. Both take one channel at
 * `decodeAudio`'s float scale; frames are 25 ms long and 10 ms apart at the rates their encoders use.
 */
import { powerSpectrum } from './power-spectrum.ts';

/** What {@link whisperLogMel} is to give. */
export interface WhisperOptions {
  /** Whisper's encoders take 80, that of large-v3 128. */
  readonly numMels: number;
  /** Samples beyond are cut off, missing ones are silence; all there are by default. Whisper's encoder takes 480,000. */
  readonly numSamples?: number;
}

const WHISPER = { sampleRate: 16_000, frameSize: 400, hop: 160 } as const;

/**
 * Whisper's features, [numMels, floor(numSamples / 160)], of sound at 16 kHz; each frame is centred on its time, 10 ms
 * times its number. Needs more than 200 samples.
 * Source: Hugging Face transformers, `WhisperFeatureExtractor._np_extract_fbank_features`; equal to it within 1e-4.
 */
export function whisperLogMel(samples: Float32Array, options: WhisperOptions): Float32Array {
  const { numMels, numSamples = samples.length } = options;
  const { sampleRate, frameSize, hop } = WHISPER;
  const margin = frameSize / 2;
  if (numSamples <= margin) {
    throw new RangeError(`Whisper's features need more than ${margin} samples, not ${numSamples}`);
  }
  const padded = new Float32Array(numSamples + 2 * margin);
  padded.set(samples.subarray(0, numSamples), margin);
  for (let i = 1; i <= margin; i++) {
    padded[margin - i] = padded[margin + i]!;
    padded[margin + numSamples - 1 + i] = padded[margin + numSamples - 1 - i]!;
  }
  const window = hann(frameSize, frameSize);
  const spectrum = powerSpectrum(frameSize);
  const filters = slaneyFilters(numMels, frameSize / 2 + 1, sampleRate);
  const numFrames = Math.floor(numSamples / hop);
  const features = new Float32Array(numMels * numFrames);
  const frame = new Float64Array(frameSize);
  const powers = new Float64Array(frameSize / 2 + 1);
  let loudest = -Infinity;
  for (let t = 0; t < numFrames; t++) {
    for (let i = 0; i < frameSize; i++) frame[i] = padded[t * hop + i]! * window[i]!;
    spectrum(frame, powers);
    for (const [mel, filter] of filters.entries()) {
      const value = Math.log10(Math.max(1e-10, weigh(filter, powers)));
      features[mel * numFrames + t] = value;
      loudest = Math.max(loudest, value);
    }
  }
  return features.map((value) => (Math.max(value, loudest - 8) + 4) / 4);
}

/** What {@link kaldiFbank} is to give. */
export interface FbankOptions {
  readonly sampleRate: number;
  /** 128 for AST and ImageBind. */
  readonly numMels: number;
  /** Taken from each value, and what it is divided by then: those of the encoder's training data. */
  readonly mean: number;
  readonly std: number;
  /** Frames beyond are cut off, missing ones are zeros before `mean` and `std`; all there are by default. */
  readonly numFrames?: number;
}

const KALDI = {
  frameSeconds: 0.025,
  hopSeconds: 0.01,
  preemphasis: 0.97,
  lowestHz: 20,
  smallest: 2 ** -23, // of float32
} as const;

/**
 * Kaldi's filter bank energies, [numFrames, numMels], as AST and ImageBind take them; frame t begins at t times 10 ms.
 * AST: mean -4.2677393, std 2 * 4.5689974, 1024 frames; ImageBind: mean -4.268, std 9.138, 204 frames of 2 s.
 * Source: `torchaudio.compliance.kaldi.fbank(htk_compat=True, use_energy=False, window_type='hanning', dither=0)`;
 * equal to it within 1e-4. That each frame's mean is taken off makes it unnecessary to take off the clip's first.
 */
export function kaldiFbank(samples: Float32Array, options: FbankOptions): Float32Array {
  const { sampleRate, numMels, mean, std } = options;
  const { frameSeconds, hopSeconds, preemphasis, smallest } = KALDI;
  const frameSize = Math.floor(sampleRate * frameSeconds);
  const hop = Math.floor(sampleRate * hopSeconds);
  const size = 2 ** Math.ceil(Math.log2(frameSize));
  const numThere =
    samples.length < frameSize ? 0 : 1 + Math.floor((samples.length - frameSize) / hop);
  const { numFrames = numThere } = options;
  const window = hann(frameSize, frameSize - 1);
  const spectrum = powerSpectrum(size);
  const filters = kaldiFilters(numMels, size, sampleRate);
  const features = new Float32Array(numFrames * numMels).fill((0 - mean) / std);
  const frame = new Float64Array(size);
  const powers = new Float64Array(size / 2 + 1);
  for (let t = 0; t < Math.min(numFrames, numThere); t++) {
    const start = t * hop;
    let offset = 0;
    for (let i = 0; i < frameSize; i++) offset += samples[start + i]!;
    offset /= frameSize;
    let previous = samples[start]! - offset;
    for (let i = 0; i < frameSize; i++) {
      const value = samples[start + i]! - offset;
      frame[i] = (value - preemphasis * previous) * window[i]!;
      previous = value;
    }
    spectrum(frame, powers);
    for (const [mel, filter] of filters.entries()) {
      const energy = Math.log(Math.max(smallest, weigh(filter, powers)));
      features[t * numMels + mel] = (energy - mean) / std;
    }
  }
  return features;
}

/** 0.5 - 0.5 cos(2πi / period), [size]. */
function hann(size: number, period: number): Float64Array {
  return Float64Array.from(
    { length: size },
    (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / period),
  );
}

/** A triangle over a few neighbouring frequencies. */
interface Filter {
  readonly start: number;
  readonly weights: Float64Array;
}

function weigh({ start, weights }: Filter, powers: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < weights.length; i++) sum += weights[i]! * powers[start + i]!;
  return sum;
}

/** `weightAt(mel, i)` is the weight of frequency i in filter `mel`; what is not above zero is left out. */
function sparseFilters(
  numMels: number,
  numFrequencies: number,
  weightAt: (mel: number, i: number) => number,
): Filter[] {
  return Array.from({ length: numMels }, (_, mel) => {
    const dense = Float64Array.from({ length: numFrequencies }, (_, i) => weightAt(mel, i));
    const start = Math.max(
      0,
      dense.findIndex((weight) => weight > 0),
    );
    const end = dense.findLastIndex((weight) => weight > 0) + 1;
    return { start, weights: dense.slice(start, end).map((weight) => Math.max(0, weight)) };
  });
}

/**
 * Triangles in hertz, evenly spaced on Slaney's scale (linear to 1 kHz, then logarithmic), each of area one.
 * Source: librosa.filters.mel(htk=False, norm='slaney').
 */
function slaneyFilters(numMels: number, numFrequencies: number, sampleRate: number): Filter[] {
  const logStep = Math.log(6.4) / 27;
  const toMel = (hz: number): number =>
    hz < 1000 ? (3 * hz) / 200 : 15 + Math.log(hz / 1000) / logStep;
  const toHz = (mel: number): number =>
    mel < 15 ? (200 * mel) / 3 : 1000 * Math.exp(logStep * (mel - 15));
  const highest = toMel(sampleRate / 2);
  const edges = Array.from({ length: numMels + 2 }, (_, i) => toHz((highest * i) / (numMels + 1)));
  return sparseFilters(numMels, numFrequencies, (mel, i) => {
    const hz = (i * sampleRate) / 2 / (numFrequencies - 1);
    const [left, centre, right] = [edges[mel]!, edges[mel + 1]!, edges[mel + 2]!];
    const height = Math.min((hz - left) / (centre - left), (right - hz) / (right - centre));
    return (height * 2) / (right - left);
  });
}

/**
 * Triangles in mel (1127 ln(1 + hz / 700)) of height one from 20 Hz to half of the sample rate; the highest frequency
 * has no part. Source: torchaudio.compliance.kaldi.get_mel_banks.
 */
function kaldiFilters(numMels: number, size: number, sampleRate: number): Filter[] {
  const toMel = (hz: number): number => 1127 * Math.log(1 + hz / 700);
  const lowest = toMel(KALDI.lowestHz);
  const step = (toMel(sampleRate / 2) - lowest) / (numMels + 1);
  return sparseFilters(numMels, size / 2, (mel, i) => {
    const place = (toMel((i * sampleRate) / size) - lowest) / step - mel; // the triangle spans 0 to 2
    return Math.min(place, 2 - place);
  });
}
