/** How a film of any kind becomes a training file. Pure: what ffprobe says and the settings to ffmpeg's options. */
import { MAX_FILM_SECONDS, quarterTurns } from '../decode/decoder-backend.ts';
import { FfmpegFailure, GUARDED_INPUT, type ProbedMedia, type ProbedStream } from './ffmpeg-job.ts';

/** What a training file is to be. */
export interface TranscodeSettings {
  /** Largest shorter side, as in `360p`; nothing is enlarged. */
  readonly height: number;
  /** Highest frame rate; a film of fewer frames keeps its own times. */
  readonly fps: number;
  /** Quality of x264, 1 to 51; lower is better and larger. */
  readonly crf: number;
  /** Most frames from one key frame to the next. */
  readonly gop: number;
  readonly preset: X264Preset;
  readonly hasAudio: boolean;
}

export const X264_PRESETS = [
  'ultrafast',
  'superfast',
  'veryfast',
  'faster',
  'fast',
  'medium',
  'slow',
  'slower',
  'veryslow',
] as const;
export type X264Preset = (typeof X264_PRESETS)[number];

export const DEFAULT_SETTINGS: TranscodeSettings = {
  height: 360,
  fps: 30,
  crf: 23,
  // A clip costs the decoding from the key frame before it on: half the time of 48 frames, for a quarter more bytes.
  gop: 12,
  preset: 'veryfast',
  hasAudio: true,
};

/** Changes whenever the same settings would give other bytes, so that files of an older recipe are made anew. */
export const RECIPE_VERSION = 2;

/** Ticks a second that hold the usual rates exactly, 30000/1001 too. */
const TICKS_PER_SECOND = 90_000;
const HDR_TRANSFERS = ['smpte2084', 'arib-std-b67'];
const INTERLACED = ['tt', 'bb', 'tb', 'bt'];

/** The options of one film. @throws FfmpegFailure if it has no picture. */
export function optionsFor(
  media: ProbedMedia,
  settings: TranscodeSettings,
): { input: string[]; output: string[] } {
  const video = videoOf(media);
  const audio = media.streams.find(({ codec_type }) => codec_type === 'audio');
  const hasAudio = settings.hasAudio && audio !== undefined;
  return {
    input: [...GUARDED_INPUT, '-threads', '1'],
    output: [
      ...['-map', `0:${video.index}`, ...(hasAudio ? ['-map', `0:${audio.index}`] : [])],
      ...['-sn', '-dn', '-map_metadata', '-1', '-map_chapters', '-1'],
      ...['-filter_threads', '1', '-vf', filtersFor(video, settings).join(',')],
      ...['-fps_mode', 'vfr', '-enc_time_base', `1:${TICKS_PER_SECOND}`],
      ...['-c:v', 'libx264', '-profile:v', 'high', '-preset', settings.preset],
      ...['-crf', `${settings.crf}`, '-g', `${settings.gop}`, '-flags:v', '+cgop+bitexact'],
      // B frames that nothing refers to are left out when they are not wanted.
      ...['-x264-params', 'b-pyramid=none'],
      ...(hasAudio
        ? [
            // Sound that begins late or has gaps is filled up, so that it stays with the picture.
            ...['-af', 'aresample=async=1:min_hard_comp=0.1:first_pts=0'],
            ...['-c:a', 'aac', '-b:a', '96k', '-ac', '2', '-ar', '48000', '-flags:a', '+bitexact'],
          ]
        : []),
      ...['-threads', '1', '-fflags', '+bitexact', '-movflags', '+faststart'],
      ...['-t', `${MAX_FILM_SECONDS}`],
    ],
  };
}

/** The film's moving picture; covers and thumbnails are none. @throws FfmpegFailure */
export function videoOf({ streams }: ProbedMedia): ProbedStream {
  const video = streams.find(
    ({ codec_type, disposition }) => codec_type === 'video' && disposition?.attached_pic !== 1,
  );
  if (video === undefined) throw new FfmpegFailure('input', 'it holds no video stream');
  if (!(video.width! > 0 && video.height! > 0)) {
    throw new FfmpegFailure('input', 'it does not say how large its pictures are');
  }
  return video;
}

/** Even sides of square pixels, upright. */
export function sizeFor(video: ProbedStream, height: number): { width: number; height: number } {
  const rotation = video.side_data_list?.find((data) => data.rotation !== undefined)?.rotation ?? 0;
  const [across = 0, down = 0] = (video.sample_aspect_ratio ?? '').split(':').map(Number);
  const aspect = across > 0 && down > 0 ? across / down : 1;
  const stored = [video.width! * aspect, video.height!];
  const [shownWidth, shownHeight] = quarterTurns(rotation) % 2 === 1 ? stored.reverse() : stored;
  const scale = Math.min(1, height / Math.min(shownWidth!, shownHeight!));
  const even = (side: number): number => Math.max(2, 2 * Math.round((side * scale) / 2));
  return { width: even(shownWidth!), height: even(shownHeight!) };
}

function filtersFor(video: ProbedStream, settings: TranscodeSettings): string[] {
  const { width, height } = sizeFor(video, settings.height);
  const [frames = NaN, seconds = NaN] = (video.r_frame_rate ?? '').split('/').map(Number);
  const isSlowEnough = frames / seconds <= settings.fps;
  const isHdr = HDR_TRANSFERS.includes(video.color_transfer ?? '');
  return [
    ...(INTERLACED.includes(video.field_order ?? '') ? ['bwdif=mode=send_frame'] : []),
    ...(isSlowEnough ? [] : [`fps=${settings.fps}`]),
    `scale=${width}:${height}:flags=bicubic+accurate_rnd+full_chroma_int+bitexact` +
      (isHdr ? '' : ':out_color_matrix=bt709:out_range=tv'),
    // Linear light at the nominal peak of SDR, the wide gamut narrowed, the highlights rolled off.
    ...(isHdr
      ? [
          'zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0',
          'zscale=t=bt709:m=bt709:p=bt709:r=tv',
        ]
      : []),
    'setsar=1',
    'format=yuv420p',
    // Not every version of FFmpeg passes on what its scaler has made of the colours.
    'setparams=colorspace=bt709:range=tv',
  ];
}
