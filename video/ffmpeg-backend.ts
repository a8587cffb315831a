/**
 * The system's `ffmpeg` and `ffprobe`, for machines without node-av. The same frames and, for the same FFmpeg, the same
 * bytes; slower, for each request starts two programs and decodes every frame from the key frame before the first time.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import {
  CONTAINERS,
  MAX_PICTURE,
  TIME_SLACK_SECONDS,
  quarterTurns,
  rotatePicture,
  type DecodedFrames,
  type DecodeRequest,
  type DecoderBackend,
  type VideoInfo,
} from './decoder-backend.ts';
import { DecodeError } from './decode-error.ts';

const run = promisify(execFile);
const INPUT = ['-protocol_whitelist', 'file,pipe', '-format_whitelist', CONTAINERS];
/** A first time later than this is reached by seeking. */
const SEEK_FROM_SECONDS = 5;
/** How far before the first time a seek goes, so that the frame shown at that time is behind it. */
const SEEK_MARGIN_SECONDS = 2;

/** @throws if `ffmpeg` or `ffprobe` cannot be started. */
export async function openFfmpegBackend(): Promise<DecoderBackend> {
  await Promise.all([run('ffmpeg', ['-version']), run('ffprobe', ['-version'])]);
  return { name: 'ffmpeg', decode, probe: async (path) => infoOf(await probeFile(path)) };
}

interface ProbedStream {
  index: number;
  codec_type?: string;
  codec_name?: string;
  width?: number;
  height?: number;
  avg_frame_rate?: string;
  time_base: string;
  start_time?: string;
  duration?: string;
  side_data_list?: { rotation?: number }[];
  disposition?: { attached_pic?: number };
}
interface ProbedFile {
  path: string;
  streams: ProbedStream[];
  video: ProbedStream;
  turns: 0 | 1 | 2 | 3;
  startSeconds: number;
  durationSeconds: number;
}

async function probeFile(path: string): Promise<ProbedFile> {
  const args = ['-show_streams', '-show_format', '-of', 'json', `file:${path}`];
  const text = await ffprobe(path, args);
  const { streams = [], format = {} } = JSON.parse(text) as {
    streams?: ProbedStream[];
    format?: { duration?: string };
  };
  const video = streams.find(
    ({ codec_type, disposition }) => codec_type === 'video' && disposition?.attached_pic !== 1,
  );
  if (!video) throw new DecodeError('VIDEO_NO_STREAM', path, `${path} holds no video stream`);
  const { width = 0, height = 0 } = video;
  if (width > MAX_PICTURE.width || height > MAX_PICTURE.height) {
    throw new DecodeError('VIDEO_TOO_LARGE', path, `${path} has pictures of ${width}x${height}`);
  }
  const starts = streams
    .filter(({ codec_type, start_time }) => /video|audio/.test(codec_type ?? '') && start_time)
    .map(({ start_time }) => Number(start_time));
  const startSeconds = starts.length > 0 ? Math.min(...starts) : 0;
  const rotation = video.side_data_list?.find((data) => data.rotation !== undefined)?.rotation ?? 0;
  return {
    path,
    streams,
    video,
    turns: quarterTurns(-rotation),
    startSeconds,
    durationSeconds: video.duration
      ? Number(video.start_time ?? 0) + Number(video.duration) - startSeconds
      : Number(format.duration ?? 0),
  };
}

function infoOf({ streams, video, turns, durationSeconds }: ProbedFile): VideoInfo {
  const { width = 0, height = 0 } = video;
  return {
    durationSeconds,
    framesPerSecond: ratio(video.avg_frame_rate ?? '0/1'),
    width: turns % 2 === 0 ? width : height,
    height: turns % 2 === 0 ? height : width,
    codec: video.codec_name ?? 'unknown',
    numStreams: streams.length,
    hasAudio: streams.some(({ codec_type }) => codec_type === 'audio'),
  };
}

async function decode(request: DecodeRequest): Promise<DecodedFrames> {
  const { path, timesSeconds, width, height } = request;
  const file = await probeFile(path);
  const tick = ratio(file.video.time_base);
  const zero = Math.round(file.startSeconds / tick);
  const lastSeconds = timesSeconds.at(-1) ?? 0;

  const shown = await shownFrames(file, zero * tick + lastSeconds + 1);
  if (shown.length === 0)
    throw new DecodeError('VIDEO_DAMAGED', path, `${path} holds no timed frame`);
  const ends = shown.at(-1)!;
  const endSeconds = (ends.pts + ends.duration - zero) * tick;
  if (lastSeconds >= endSeconds && file.durationSeconds - endSeconds > 0.1 && file.video.duration) {
    throw new DecodeError(
      'VIDEO_TRUNCATED',
      path,
      `${path} ends at ${endSeconds.toFixed(2)} s although its header says ${file.durationSeconds.toFixed(2)} s`,
    );
  }
  const wanted = timesSeconds.map((seconds) => {
    const limit = Math.floor((seconds + TIME_SLACK_SECONDS) / tick) + zero;
    return shown.findLast(({ pts }) => pts <= limit) ?? shown[0]!;
  });
  const distinct = [...new Set(wanted)];

  const size = width * height * 3;
  const seekTo = zero * tick + timesSeconds[0]! - SEEK_MARGIN_SECONDS;
  let pictures: Buffer = Buffer.alloc(0);
  const isFar =
    timesSeconds[0]! > SEEK_FROM_SECONDS &&
    distinct.every(({ selector }) => selector.startsWith('eq(pts'));
  for (const seek of isFar ? [seekTo, undefined] : [undefined]) {
    pictures = await pick(file, distinct, { width, height, seek });
    if (pictures.length === distinct.length * size) break;
  }
  if (pictures.length !== distinct.length * size) {
    const numFound = Math.floor(pictures.length / size);
    throw new DecodeError(
      'VIDEO_DAMAGED',
      path,
      `${path} is damaged: only ${numFound} of ${distinct.length} frames could be decoded`,
    );
  }
  const frames = new Uint8Array(timesSeconds.length * size);
  for (const [slot, frame] of wanted.entries()) {
    const from = distinct.indexOf(frame) * size;
    const target = frames.subarray(slot * size, (slot + 1) * size);
    rotatePicture(pictures.subarray(from, from + size), target, {
      width,
      height,
      turns: file.turns,
    });
  }
  const ptsSeconds = Float64Array.from(wanted, ({ pts }) => (pts - zero) * tick);
  return { frames, ptsSeconds, width, height, numDecoded: shown.length };
}

interface ShownFrame {
  readonly pts: number;
  readonly duration: number;
  /** How `select` knows it: by timestamp, or by its number where packets bear no timestamps. */
  readonly selector: string;
}

/** The frames shown up to a time, ascending, without those an edit list hides. */
async function shownFrames(file: ProbedFile, untilSeconds: number): Promise<ShownFrame[]> {
  const query = (entries: string): Promise<string> =>
    ffprobe(file.path, [
      ...[
        '-select_streams',
        String(file.video.index),
        '-show_entries',
        entries,
        '-of',
        'compact=p=0',
      ],
      ...['-read_intervals', `%${untilSeconds.toFixed(3)}`, `file:${file.path}`],
    ]);
  const packets = rowsOf(await query('packet=pts,duration,flags'));
  const hasTimes = packets.every(({ pts }) => pts !== undefined && pts !== 'N/A');
  const frames = hasTimes
    ? packets
        .filter(({ flags }) => !flags?.includes('D'))
        .map(({ pts, duration }) => ({ pts, duration, selector: `eq(pts\\,${pts!})` }))
    : rowsOf(await query('frame=best_effort_timestamp,pkt_duration')).map((row, number) => ({
        pts: row['best_effort_timestamp'],
        duration: row['pkt_duration'],
        selector: `eq(n\\,${number})`,
      }));
  return frames
    .map(({ pts, duration, selector }) => ({
      pts: Number(pts),
      duration: Number(duration) || 0,
      selector,
    }))
    .filter(({ pts }) => !Number.isNaN(pts))
    .sort((a, b) => a.pts - b.pts);
}

/** Lines of `key=value|key=value`. */
function rowsOf(text: string): Record<string, string>[] {
  return text
    .split('\n')
    .filter((line) => line.includes('='))
    .map((line) =>
      Object.fromEntries(line.split('|').map((pair) => pair.split('=') as [string, string])),
    );
}

async function pick(
  { path, video, turns }: ProbedFile,
  frames: readonly ShownFrame[],
  { width, height, seek }: { width: number; height: number; seek: number | undefined },
): Promise<Buffer> {
  const [scaledWidth, scaledHeight] = turns % 2 === 0 ? [width, height] : [height, width];
  const select = frames.map(({ selector }) => selector).join('+');
  const flags = 'bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp';
  const args = [
    ...['-v', 'error', '-nostdin', '-threads', '1', '-copyts', '-noautorotate', ...INPUT],
    ...(seek === undefined ? [] : ['-ss', seek.toFixed(6)]),
    ...['-i', `file:${path}`, '-map', `0:${video.index}`, '-frames:v', String(frames.length)],
    ...['-vf', `select=${select},scale=${scaledWidth}:${scaledHeight}:flags=${flags},format=rgb24`],
    ...['-vsync', 'passthrough', '-f', 'rawvideo', 'pipe:1'],
  ];
  const maxBuffer = (frames.length + 1) * width * height * 3;
  try {
    const { stdout } = await run('ffmpeg', args, { encoding: 'buffer', maxBuffer });
    return stdout;
  } catch (cause) {
    throw new DecodeError(
      'VIDEO_DAMAGED',
      path,
      `${path} cannot be decoded: ${lastLine(cause)}`,
      cause,
    );
  }
}

async function ffprobe(path: string, args: readonly string[]): Promise<string> {
  try {
    const { stdout } = await run('ffprobe', ['-v', 'error', ...INPUT, ...args], {
      maxBuffer: 256 * 2 ** 20,
    });
    return stdout;
  } catch (cause) {
    const reason = lastLine(cause);
    if (reason.includes('No such file')) {
      throw new DecodeError('VIDEO_NOT_FOUND', path, `${path} does not exist`, cause);
    }
    throw new DecodeError(
      'VIDEO_UNREADABLE',
      path,
      `${path} cannot be opened as a video: ${reason}`,
      cause,
    );
  }
}

function lastLine(error: unknown): string {
  const stderr = String((error as { stderr?: string | Buffer }).stderr ?? '');
  return stderr.trim().split('\n').at(-1) ?? '';
}

function ratio(text: string): number {
  const [numerator = 0, denominator = 1] = text.split('/').map(Number);
  return denominator === 0 ? 0 : numerator / denominator;
}
