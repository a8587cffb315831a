/** What a model gets to see and hear of a sample. */
export interface ShownClip {
  /** RGB, [windows, frames a window, H, W, 3]; shared with the cache, not to be written to. */
  readonly frames: Uint8Array;
  /** When each frame is shown, in seconds from the start of its file, [windows x frames a window]; 0 of a picture. */
  readonly timesSeconds: readonly number[];
  /** Log-mel spectrogram, [bands, frames] flat; where it is asked for. Shared with the cache too. */
  readonly audio?: Float32Array;
}

/** How long the parts of a clip are. */
export interface ShownClipShape {
  readonly frameBytes: number;
  readonly numFrames: number;
  /** Values of the spectrogram; 0: there is none. */
  readonly audioValues: number;
}

/** Bytes that a clip takes, in memory and packed. */
export function sizeOfClip({ frames, timesSeconds, audio }: ShownClip): number {
  return frames.byteLength + 8 * timesSeconds.length + (audio?.byteLength ?? 0);
}

/** A clip as one string of bytes: pixels, times (float64), spectrogram (float32). */
export function packClip(clip: ShownClip): Uint8Array {
  const { frames, timesSeconds, audio } = clip;
  const packed = new Uint8Array(sizeOfClip(clip));
  packed.set(frames);
  packed.set(new Uint8Array(Float64Array.from(timesSeconds).buffer), frames.byteLength);
  if (audio !== undefined) {
    const bytes = new Uint8Array(audio.buffer, audio.byteOffset, audio.byteLength);
    packed.set(bytes, frames.byteLength + 8 * timesSeconds.length);
  }
  return packed;
}

/** Undefined where the bytes are not as many as such a clip has. */
export function unpackClip(packed: Uint8Array, shape: ShownClipShape): ShownClip | undefined {
  const { frameBytes, numFrames, audioValues } = shape;
  const endOfFrames = frameBytes * numFrames;
  const endOfTimes = endOfFrames + 8 * numFrames;
  if (packed.byteLength !== endOfTimes + 4 * audioValues) return undefined;
  // Slices have a buffer of their own, so that their numbers begin where numbers may.
  const times = new Float64Array(Uint8Array.from(packed.subarray(endOfFrames, endOfTimes)).buffer);
  const audio = new Float32Array(Uint8Array.from(packed.subarray(endOfTimes)).buffer);
  return {
    frames: packed.subarray(0, endOfFrames),
    timesSeconds: [...times],
    ...(audioValues === 0 ? {} : { audio }),
  };
}
