/** One clip's frames and samples to an MP4 file: the interface, and which of its two backends a machine has. */
import { VideoloomError } from '../../proto/errors.ts';

/** What an encoder gets. Time stamps are integer ticks, so that irregular frame times stay exact. */
export interface ClipMedia {
  readonly width: number;
  readonly height: number;
  readonly ticksPerSecond: number;
  /** Ascending, from 0; one entry a frame. */
  readonly ptsTicks: readonly number[];
  readonly durationTicks: number;
  /** Whether frames come at one fixed distance. */
  readonly isConstantRate: boolean;
  /** Key frames at most this many frames apart; cuts get one of their own. */
  readonly gopSize: number;
  /** yuv420p, the three planes one after the other; BT.601, limited range. A buffer may be used again for the next. */
  readonly frames: Iterable<Uint8Array>;
  readonly sampleRate: number;
  /** Two channels in [-1, 1]. */
  readonly samples: readonly [left: Float32Array, right: Float32Array];
}

export type EncoderName = 'node-av' | 'ffmpeg';

/** H.264 with B frames and stereo AAC; the same media give the same bytes wherever `version` is the same. */
export interface Encoder {
  readonly name: EncoderName;
  readonly version: string;
  /** Writes (over) the file at `path`. */
  encode(media: ClipMedia, path: string): Promise<void>;
}

/** Settings that both backends share. */
export const X264_OPTIONS = {
  preset: 'ultrafast',
  crf: '24',
  // What the fastest preset leaves out and a data set of H.264 needs: B frames, a key frame at each cut, CABAC.
  'x264-params': 'bframes=2:b-adapt=0:scenecut=40:ref=1:cabac=1:deblock=0,0',
} as const;
/** The searching coder and the joint-stereo tools cost more time than the picture, and blur which side a tone is on. */
export const AAC_OPTIONS = {
  aac_coder: 'fast',
  aac_tns: '0',
  aac_pns: '0',
  aac_is: '0',
  aac_ms: '0',
} as const;
export const AAC_BITS_PER_SECOND = 32_000;

/**
 * The named backend, or else node-av where it is installed and the machine's `ffmpeg` where not.
 *
 * @throws VideoloomError `ENCODER_MISSING` if there is none.
 */
export async function openEncoder(name?: EncoderName): Promise<Encoder> {
  const missing: string[] = [];
  if (name !== 'ffmpeg') {
    const { openNodeAvEncoder } = await import('./encode-node-av.ts');
    const opened = await openNodeAvEncoder();
    if (typeof opened !== 'string') return opened;
    missing.push(opened);
  }
  if (name !== 'node-av') {
    const { openFfmpegEncoder } = await import('./encode-ffmpeg.ts');
    const opened = await openFfmpegEncoder();
    if (typeof opened !== 'string') return opened;
    missing.push(opened);
  }
  throw new VideoloomError(
    'ENCODER_MISSING',
    `no H.264 encoder on this machine: ${missing.join('; ')}. Run \`npm install node-av\`, or install ffmpeg ` +
      '(with libx264) so that it is found in PATH.',
  );
}
