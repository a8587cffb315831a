/** Opening files with FFmpeg's libraries through node-av: what pictures and sound have in common. */
import type { FormatContext, HardwareDeviceContext } from 'node-av/lib';
import { DecodeError, type DecodeErrorCode } from './decode-error.ts';
import { ffmpegInput, placeName, type MediaPlace } from './media-place.ts';

export interface NodeAv {
  readonly lib: typeof import('node-av/lib');
  readonly constants: typeof import('node-av/constants');
  /** Where NVDEC decodes; absent: on the CPU. */
  readonly gpu?: HardwareDeviceContext;
}

/** An error that names the place. */
export function errorAt(place: MediaPlace, code: DecodeErrorCode, what: string): DecodeError {
  return new DecodeError(code, place.path, `${placeName(place)} ${what}`);
}

/**
 * A container, to be closed with `closeInputSync`.
 * @throws DecodeError VIDEO_NOT_FOUND; VIDEO_UNREADABLE if FFmpeg does not take it for one of `containers`.
 */
export function openFormat({ lib }: NodeAv, place: MediaPlace, containers: string): FormatContext {
  const { url, protocols } = ffmpegInput(place);
  const format = new lib.FormatContext();
  const options = lib.Dictionary.fromObject({
    protocol_whitelist: protocols,
    format_whitelist: containers,
  });
  const opened = format.openInputSync(url, null, options);
  if (opened >= 0) return format;
  const reason = new lib.FFmpegError(opened);
  if (reason.isENOENT) throw errorAt(place, 'VIDEO_NOT_FOUND', 'does not exist');
  throw errorAt(place, 'VIDEO_UNREADABLE', `cannot be opened as a video: ${reason.message}`);
}

/** Where the presentation starts on the file's own clock: the earliest of its audio and video streams. */
export function startSecondsOf({ constants }: NodeAv, format: FormatContext): number {
  const starts = format.streams
    .filter(
      ({ codecpar, startTime }) =>
        startTime !== constants.AV_NOPTS_VALUE &&
        (codecpar.codecType === constants.AVMEDIA_TYPE_VIDEO ||
          codecpar.codecType === constants.AVMEDIA_TYPE_AUDIO),
    )
    .map(({ startTime, timeBase }) => (Number(startTime) * timeBase.num) / timeBase.den);
  return starts.length > 0 ? Math.min(...starts) : 0;
}
