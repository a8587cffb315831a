/** Which frames of which file, and at what size. */
export interface DecodeRequest {
  readonly path: string;
  /**
   * Ascending, in seconds from the start of the presentation. The frame of a time is the last one that is shown at or
   * before it (with a microsecond of slack), or the first one of the file.
   */
  readonly timesSeconds: readonly number[];
  /** Size of the frames that come back; the picture is stretched to it, after rotation. */
  readonly width: number;
  readonly height: number;
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
}

/** Something that reads video files; both calls throw DecodeError. */
export interface DecoderBackend {
  readonly name: 'node-av' | 'ffmpeg';
  decode(request: DecodeRequest): Promise<DecodedFrames>;
  probe(path: string): Promise<VideoInfo>;
}

/** Slack when a frame's time is compared with the time asked for: both went through floating point. */
export const TIME_SLACK_SECONDS = 1e-6;

/** Larger pictures are refused: one of them would take the memory of a whole batch. */
export const MAX_PICTURE = { width: 8192, height: 4320 } as const;

/** Containers that are opened; playlists and anything else that can name other files are not among them. */
export const CONTAINERS =
  'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,wmv,gif,ivf,h264,hevc,m4v,mpegvideo,nut';

/** Quarter turns clockwise that a display matrix asks for. Source: ISO/IEC 14496-12, sec. 6.2.2. */
export function quarterTurns(degreesClockwise: number): 0 | 1 | 2 | 3 {
  return (((Math.round(degreesClockwise / 90) % 4) + 4) % 4) as 0 | 1 | 2 | 3;
}

/** Turns a picture clockwise: source [h, w, 3] into target [H, W, 3] (H, W = w, h for odd turns). */
export function rotatePicture(
  source: Uint8Array,
  target: Uint8Array,
  { width, height, turns }: { width: number; height: number; turns: 0 | 1 | 2 | 3 },
): void {
  if (turns === 0) {
    target.set(source);
    return;
  }
  const sourceWidth = turns === 2 ? width : height;
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 3) {
      const [row, column] =
        turns === 1
          ? [width - 1 - x, y]
          : turns === 2
            ? [height - 1 - y, width - 1 - x]
            : [x, height - 1 - y];
      const from = (row * sourceWidth + column) * 3;
      target[at] = source[from]!;
      target[at + 1] = source[from + 1]!;
      target[at + 2] = source[from + 2]!;
    }
  }
}
