import type { Framing } from './framing.ts';
import { DecodeError } from './decode-error.ts';
import { placeName, type MediaPlace } from './media-place.ts';

/** Which frames of which file, and what they are to be like; the picture is turned upright first. */
export interface DecodeRequest extends MediaPlace, Framing {
  /**
   * Ascending, in seconds from the start of the presentation. The frame of a time is the last one that is shown at or
   * before it (with a microsecond of slack), or the first one of the file.
   */
  readonly timesSeconds: readonly number[];
}

/** A picture file (JPEG, PNG, WebP, GIF), and what it is to be like; it is turned as its EXIF data say first. */
export interface ImageRequest extends MediaPlace, Framing {}

/** Many pictures, all to be framed alike. */
export interface ImageBatchRequest {
  readonly places: readonly MediaPlace[];
  readonly framing: Framing;
}

/** What a picture file says of itself. */
export interface ImageInfo {
  /** Size as shown, after EXIF orientation. */
  readonly width: number;
  readonly height: number;
  readonly format: 'jpeg' | 'png' | 'webp' | 'gif';
}

/** A span of a file's sound. */
export interface AudioRequest extends MediaPlace {
  /** In seconds from the start of the presentation; times outside of the file are silence. */
  readonly startSeconds: number;
  readonly endSeconds: number;
  /** Of the samples that come back, in hertz. */
  readonly sampleRate: number;
  /** Several channels are mixed to one, each as loud as the others. */
  readonly channels: 1;
}

/** Longest span of sound in one request, in samples: a quarter of the memory that a process may take. */
const MAX_AUDIO_SAMPLES = 2 ** 26;

/**
 * Which samples a span is, on the grid where sample n is that of n / sampleRate seconds.
 * @throws RangeError if it ends before it starts; DecodeError AUDIO_TOO_LONG if it is longer than can be held
 */
export function audioSpan(request: AudioRequest): {
  readonly first: number;
  readonly count: number;
} {
  const { startSeconds, endSeconds, sampleRate } = request;
  const count = Math.round((endSeconds - startSeconds) * sampleRate);
  if (!(count >= 0))
    throw new RangeError(`a span of sound from ${startSeconds} to ${endSeconds} s`);
  if (count > MAX_AUDIO_SAMPLES) {
    const longest = Math.floor(MAX_AUDIO_SAMPLES / sampleRate);
    throw new DecodeError(
      'AUDIO_TOO_LONG',
      request.path,
      `${placeName(request)} is to give its sound from ${startSeconds} to ${endSeconds} s at once, and at most ` +
        `${longest} s are held: cut it up, or index it in shorter clips (data.clipSeconds)`,
    );
  }
  return { first: Math.round(startSeconds * sampleRate), count };
}

/** Decoded frames, in the order of the times asked for. */
export interface DecodedFrames {
  /** RGB, 8 bits, [T, H, W, 3]. */
  readonly frames: Uint8Array;
  /** When each of them is shown, in seconds from the start of the presentation, [T]. */
  readonly ptsSeconds: Float64Array;
  readonly width: number;
  readonly height: number;
  /** Frames that the decoder had to output to get at these. */
  readonly numDecoded: number;
}

/** What a file says of itself. */
export interface VideoInfo {
  readonly durationSeconds: number;
  /** Average rate; 0 where the file does not say. */
  readonly framesPerSecond: number;
  /** Size as shown, after rotation. */
  readonly width: number;
  readonly height: number;
  readonly codec: string;
  readonly numStreams: number;
  readonly hasAudio: boolean;
  /** When the key frames are shown, in seconds from the start of the presentation, ascending; `MAX_KEY_FRAMES` at most. */
  readonly keyFrameSeconds: readonly number[];
}

/** Something that reads video files; both calls throw DecodeError. */
export interface DecoderBackend {
  readonly name: 'node-av' | 'ffmpeg';
  decode(request: DecodeRequest): Promise<DecodedFrames>;
  probe(place: MediaPlace): Promise<VideoInfo>;
  /** round((endSeconds - startSeconds) * sampleRate) samples; the first is that of the time nearest to the start. */
  decodeAudio(request: AudioRequest): Promise<Float32Array>;
}

/** Slack when a frame's time is compared with the time asked for: both went through floating point. */
export const TIME_SLACK_SECONDS = 1e-6;

/** Of a film with more key frames, the first ones are listed. */
export const MAX_KEY_FRAMES = 100_000;

/** A film longer than this is a faulty time stamp or belongs cut up first. */
export const MAX_FILM_SECONDS = 24 * 3600;

/** Larger pictures are refused: one of them would take the memory of a whole batch. */
export const MAX_PICTURE = { width: 8192, height: 4320 } as const;

/** Containers that are opened; playlists and anything else that can name other files are not among them. */
export const CONTAINERS =
  'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,wmv,gif,ivf,h264,hevc,m4v,mpegvideo,nut';

/** The same for sound, which may come without pictures. */
export const SOUND_CONTAINERS = `${CONTAINERS},wav,flac,mp3,aac`;

/** Quarter turns clockwise that a display matrix asks for. Source: ISO/IEC 14496-12, sec. 6.2.2. */
export function quarterTurns(degreesClockwise: number): 0 | 1 | 2 | 3 {
  return (((Math.round(degreesClockwise / 90) % 4) + 4) % 4) as 0 | 1 | 2 | 3;
}
