/**
 * The system's `ffmpeg` and `ffprobe`, for machines without node-av. The same frames and, for the same FFmpeg, the same
 * bytes; slower, for each request starts two programs and decodes every frame from the key frame before the first time.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import {
  CONTAINERS,
  MAX_KEY_FRAMES,
  MAX_PICTURE,
  SOUND_CONTAINERS,
  TIME_SLACK_SECONDS,
  audioSpan,
  quarterTurns,
  type AudioRequest,
  type DecodedFrames,
  type DecodeRequest,
  type DecoderBackend,
  type VideoInfo,
} from './decoder-backend.ts';
import { DecodeError, type DecodeErrorCode } from './decode-error.ts';
import { placePicture, planFrame, type FramePlan } from './framing.ts';
import { ffmpegInput, placeName, type MediaPlace } from './media-place.ts';

const run = promisify(execFile);
/** A first time later than this is reached by seeking. */
const SEEK_FROM_SECONDS = 5;
/** How far before the first time a seek goes, so that the frame shown at that time is behind it. */
const SEEK_MARGIN_SECONDS = 2;
/** How far behind the last time packets are looked at first. */
const MARGIN_SECONDS = 1;
/** How much earlier than declared the sound may end: the last packets' padding. */
const AUDIO_END_SLACK_SECONDS = 0.2;

/** @throws if `ffmpeg` or `ffprobe` cannot be started, or if the device is not the CPU. */
export async function openFfmpegBackend(device: 'cpu' | 'cuda'): Promise<DecoderBackend> {
  if (device !== 'cpu') throw new Error(`device ${device}: decodes on the CPU alone`);
  await Promise.all([run('ffmpeg', ['-version']), run('ffprobe', ['-version'])]);
  return {
    name: 'ffmpeg',
    decode,
    probe: async (place) => {
      const file = await probeVideo(place);
      return infoOf(file, await keyFrameSeconds(file));
    },
    decodeAudio,
  };
}

interface ProbedStream {
  index: number;
  codec_type?: string;
  codec_name?: string;
  width?: number;
  height?: number;
  avg_frame_rate?: string;
  sample_aspect_ratio?: string;
  time_base: string;
  start_time?: string;
  duration?: string;
  side_data_list?: { rotation?: number }[];
  disposition?: { attached_pic?: number; default?: number };
}
interface ProbedFile {
  place: MediaPlace;
  streams: ProbedStream[];
  format: { start_time?: string; duration?: string };
  /** Where the presentation starts on the file's own clock: the earliest of its audio and video streams. */
  startSeconds: number;
}
interface ProbedVideo extends ProbedFile {
  video: ProbedStream;
  turns: 0 | 1 | 2 | 3;
  durationSeconds: number;
}

async function probeFile(place: MediaPlace, containers: string): Promise<ProbedFile> {
  const entries = ['-show_streams', '-show_format', '-of', 'json'];
  const text = await ffprobe(place, entries, containers);
  const { streams = [], format = {} } = JSON.parse(text) as Partial<ProbedFile>;
  const starts = streams
    .filter(({ codec_type, start_time }) => /video|audio/.test(codec_type ?? '') && start_time)
    .map(({ start_time }) => Number(start_time));
  return { place, streams, format, startSeconds: starts.length > 0 ? Math.min(...starts) : 0 };
}

async function probeVideo(place: MediaPlace): Promise<ProbedVideo> {
  const file = await probeFile(place, CONTAINERS);
  const video = file.streams.find(
    ({ codec_type, disposition }) => codec_type === 'video' && disposition?.attached_pic !== 1,
  );
  if (!video) throw errorAt(place, 'VIDEO_NO_STREAM', 'holds no video stream');
  const { width = 0, height = 0 } = video;
  if (width > MAX_PICTURE.width || height > MAX_PICTURE.height) {
    throw errorAt(place, 'VIDEO_TOO_LARGE', `has pictures of ${width}x${height}`);
  }
  const rotation = video.side_data_list?.find((data) => data.rotation !== undefined)?.rotation ?? 0;
  return {
    ...file,
    video,
    turns: quarterTurns(-rotation),
    durationSeconds: video.duration
      ? Number(video.start_time ?? 0) + Number(video.duration) - file.startSeconds
      : Number(file.format.duration ?? 0),
  };
}

function infoOf(
  { streams, video, turns, durationSeconds }: ProbedVideo,
  keyFrameSeconds: readonly number[],
): VideoInfo {
  const { width = 0, height = 0 } = video;
  return {
    durationSeconds,
    framesPerSecond: ratio(video.avg_frame_rate ?? '0/1'),
    width: turns % 2 === 0 ? width : height,
    height: turns % 2 === 0 ? height : width,
    codec: video.codec_name ?? 'unknown',
    numStreams: streams.length,
    hasAudio: streams.some(({ codec_type }) => codec_type === 'audio'),
    keyFrameSeconds,
  };
}

async function keyFrameSeconds({ place, video, startSeconds }: ProbedVideo): Promise<number[]> {
  const tick = ratio(video.time_base);
  const zero = Math.round(startSeconds / tick);
  const entries = ['-show_entries', 'packet=pts,flags', '-of', 'compact=p=0'];
  const text = await ffprobe(place, ['-select_streams', String(video.index), ...entries]);
  return rowsOf(text)
    .filter(({ flags = '' }) => flags.includes('K') && !flags.includes('D'))
    .map(({ pts }) => (Number(pts) - zero) * tick)
    .filter((seconds) => !Number.isNaN(seconds))
    .slice(0, MAX_KEY_FRAMES)
    .sort((a, b) => a - b);
}

async function decode(request: DecodeRequest): Promise<DecodedFrames> {
  const { timesSeconds, width, height } = request;
  const file = await probeVideo(request);
  const plan = planFrame(pictureOf(file), request);
  const tick = ratio(file.video.time_base);
  const zero = Math.round(file.startSeconds / tick);
  const lastSeconds = timesSeconds.at(-1) ?? 0;

  const shown = await shownFrames(file, zero * tick + lastSeconds);
  if (shown.length === 0) throw errorAt(request, 'VIDEO_DAMAGED', 'holds no timed frame');
  const ends = shown.at(-1)!;
  const endSeconds = (ends.pts + ends.duration - zero) * tick;
  if (lastSeconds >= endSeconds && file.durationSeconds - endSeconds > 0.1 && file.video.duration) {
    throw errorAt(
      request,
      'VIDEO_TRUNCATED',
      `ends at ${endSeconds.toFixed(2)} s although its header says ${file.durationSeconds.toFixed(2)} s`,
    );
  }
  const wanted = timesSeconds.map((seconds) => {
    const limit = Math.floor((seconds + TIME_SLACK_SECONDS) / tick) + zero;
    return shown.findLast(({ pts }) => pts <= limit) ?? shown[0]!;
  });
  const distinct = [...new Set(wanted)];

  const size = plan.scaledWidth * plan.scaledHeight * 3;
  const seekTo = zero * tick + timesSeconds[0]! - SEEK_MARGIN_SECONDS;
  let pictures: Buffer = Buffer.alloc(0);
  const isFar =
    timesSeconds[0]! > SEEK_FROM_SECONDS &&
    distinct.every(({ selector }) => selector.startsWith('eq(pts'));
  for (const seek of isFar ? [seekTo, undefined] : [undefined]) {
    pictures = await pick(file, distinct, { plan, seek });
    if (pictures.length === distinct.length * size) break;
  }
  if (pictures.length !== distinct.length * size) {
    const numFound = Math.floor(pictures.length / size);
    throw errorAt(
      request,
      'VIDEO_DAMAGED',
      `is damaged: only ${numFound} of ${distinct.length} frames could be decoded`,
    );
  }
  const frameSize = width * height * 3;
  const frames = new Uint8Array(timesSeconds.length * frameSize);
  for (const [slot, frame] of wanted.entries()) {
    const from = distinct.indexOf(frame) * size;
    const target = frames.subarray(slot * frameSize, (slot + 1) * frameSize);
    placePicture(pictures.subarray(from, from + size), target, plan);
  }
  const ptsSeconds = Float64Array.from(wanted, ({ pts }) => (pts - zero) * tick);
  return { frames, ptsSeconds, width, height, numDecoded: shown.length };
}

function pictureOf({ video, turns }: ProbedVideo): Parameters<typeof planFrame>[0] {
  const { width = 0, height = 0, sample_aspect_ratio = '1:1' } = video;
  const pixelAspect = ratio(sample_aspect_ratio.replace(':', '/')) || 1;
  return { width, height, turns, pixelAspect, grid: 2 };
}

interface ShownFrame {
  readonly pts: number;
  readonly duration: number;
  /** How `select` knows it: by timestamp, or by its number where packets bear no timestamps. */
  readonly selector: string;
}

/**
 * The frames shown up to a time of the file's own clock, ascending, without those an edit list hides. Some that are shown
 * later are among them.
 */
async function shownFrames(file: ProbedVideo, untilSeconds: number): Promise<ShownFrame[]> {
  const query = (entries: string, marginSeconds: number): Promise<string> =>
    ffprobe(file.place, [
      ...[
        '-select_streams',
        String(file.video.index),
        '-show_entries',
        entries,
        '-of',
        'compact=p=0',
      ],
      ...['-read_intervals', `%${(untilSeconds + marginSeconds).toFixed(3)}`],
    ]);
  const packets = await packetsUntil(file, untilSeconds, query);
  const hasTimes = packets.every(({ pts }) => pts !== undefined && pts !== 'N/A');
  const frames = hasTimes
    ? packets
        .filter(({ flags }) => !flags?.includes('D'))
        .map(({ pts, duration }) => ({ pts, duration, selector: `eq(pts\\,${pts!})` }))
    : rowsOf(await query('frame=best_effort_timestamp,pkt_duration', MARGIN_SECONDS)).map(
        (row, number) => ({
          pts: row['best_effort_timestamp'],
          duration: row['pkt_duration'],
          selector: `eq(n\\,${number})`,
        }),
      );
  return frames
    .map(({ pts, duration, selector }) => ({
      pts: Number(pts),
      duration: Number(duration) || 0,
      selector,
    }))
    .filter(({ pts }) => !Number.isNaN(pts))
    .sort((a, b) => a.pts - b.pts);
}

/**
 * The packets of all frames shown up to a time, and some more. ffprobe stops at the first one that is shown behind the
 * margin, and of B pictures those come before others that are shown sooner, by however much they are reordered. None is
 * shown before it is decoded: behind a packet that is decoded later than the time, nothing of it is missing.
 */
async function packetsUntil(
  { video, startSeconds, durationSeconds }: ProbedVideo,
  untilSeconds: number,
  query: (entries: string, marginSeconds: number) => Promise<string>,
): Promise<Record<string, string>[]> {
  const tick = ratio(video.time_base);
  for (let marginSeconds = MARGIN_SECONDS; ; marginSeconds *= 8) {
    const packets = rowsOf(await query('packet=pts,dts,duration,flags', marginSeconds));
    const isBehind = packets.some(({ dts }) => Number(dts) * tick > untilSeconds);
    const hasMore = untilSeconds + marginSeconds < startSeconds + durationSeconds;
    if (isBehind || !hasMore) return packets;
  }
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
  { place, video }: ProbedVideo,
  frames: readonly ShownFrame[],
  { plan, seek }: { plan: FramePlan; seek: number | undefined },
): Promise<Buffer> {
  const { source, scaledWidth, scaledHeight } = plan;
  const select = frames.map(({ selector }) => selector).join('+');
  const { x, y, width, height } = source;
  const crop = plan.isWhole ? '' : `crop=${width}:${height}:${x}:${y}:exact=1,`;
  const flags = 'bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp';
  const { url, input } = inputArgs(place);
  const args = [
    ...['-v', 'error', '-nostdin', '-threads', '1', '-copyts', '-noautorotate', ...input],
    ...(seek === undefined ? [] : ['-ss', seek.toFixed(6)]),
    ...['-i', url, '-map', `0:${video.index}`, '-frames:v', String(frames.length)],
    ...[
      '-vf',
      `select=${select},${crop}scale=${scaledWidth}:${scaledHeight}:flags=${flags},format=rgb24`,
    ],
    ...['-vsync', 'passthrough', '-f', 'rawvideo', 'pipe:1'],
  ];
  const maxBuffer = (frames.length + 1) * scaledWidth * scaledHeight * 3;
  try {
    const { stdout } = await run('ffmpeg', args, { encoding: 'buffer', maxBuffer });
    return stdout;
  } catch (cause) {
    throw errorAt(place, 'VIDEO_DAMAGED', `cannot be decoded: ${lastLine(cause)}`, cause);
  }
}

/** On the grid of samples as far as the input's rate allows: the resampler starts with a sample of the input. */
async function decodeAudio(request: AudioRequest): Promise<Float32Array> {
  const { startSeconds, endSeconds, sampleRate } = request;
  const { first, count } = audioSpan(request);
  const { streams, format, startSeconds: zero } = await probeFile(request, SOUND_CONTAINERS);
  const sounds = streams.filter(({ codec_type }) => codec_type === 'audio');
  const audio = sounds.find(({ disposition }) => disposition?.default === 1) ?? sounds[0];
  if (!audio) throw errorAt(request, 'AUDIO_NO_STREAM', 'holds no sound');
  if (count === 0) return new Float32Array();

  // ffmpeg counts from the start of the container, which may lie before that of sound and pictures.
  const offset = Math.round((zero - Number(format.start_time ?? zero)) * sampleRate);
  const seek = Math.max(0, Math.floor(startSeconds - SEEK_MARGIN_SECONDS));
  const from = first + offset - seek * sampleRate;
  const filters = [
    `aresample=${sampleRate}:async=1:min_hard_comp=0.01:first_pts=0:internal_sample_fmt=fltp:rematrix_maxval=1`,
    'aformat=sample_fmts=flt:channel_layouts=mono',
    ...(from < 0 ? [`adelay=delays=${-from}S`] : []),
    `atrim=start_sample=${Math.max(0, from)}:end_sample=${Math.max(0, from) + count}`,
  ];
  const { url, input } = inputArgs(request, SOUND_CONTAINERS);
  const args = [
    ...['-v', 'error', '-nostdin', '-threads', '1', '-vn', '-sn', '-dn', ...input],
    ...(seek === 0 ? [] : ['-ss', String(seek)]),
    ...['-i', url, '-map', `0:${audio.index}`, '-af', filters.join(',')],
    ...['-f', 'f32le', 'pipe:1'],
  ];
  let bytes: Buffer;
  let complaint: string;
  try {
    const done = await run('ffmpeg', args, { encoding: 'buffer', maxBuffer: (count + 1) * 4 });
    [bytes, complaint] = [done.stdout, done.stderr.toString()];
  } catch (cause) {
    const what = `has sound that cannot be decoded: ${lastLine(cause)}`;
    throw errorAt(request, 'AUDIO_DAMAGED', what, cause);
  }
  const numFound = bytes.length / 4;
  const soundEnd = startSeconds + numFound / sampleRate;
  const declaredEnd = Number(audio.start_time ?? 0) - zero + Number(audio.duration ?? 0);
  if (Math.min(declaredEnd, endSeconds) - soundEnd > AUDIO_END_SLACK_SECONDS) {
    throw errorAt(
      request,
      'AUDIO_TRUNCATED',
      `has sound to ${soundEnd.toFixed(2)} s only although its header says ${declaredEnd.toFixed(2)} s`,
    );
  }
  if (/Error while decoding|Invalid data found/.test(complaint)) {
    const [what = ''] = complaint.split('\n');
    throw errorAt(request, 'AUDIO_DAMAGED', `has damaged sound: ${what}`);
  }
  const samples = new Float32Array(count);
  new Uint8Array(samples.buffer).set(bytes);
  return samples;
}

async function ffprobe(
  place: MediaPlace,
  args: readonly string[],
  containers = CONTAINERS,
): Promise<string> {
  const { url, input } = inputArgs(place, containers);
  try {
    const { stdout } = await run('ffprobe', ['-v', 'error', ...input, ...args, url], {
      maxBuffer: 256 * 2 ** 20,
    });
    return stdout;
  } catch (cause) {
    const reason = lastLine(cause);
    if (reason.includes('No such file')) {
      throw errorAt(place, 'VIDEO_NOT_FOUND', 'does not exist', cause);
    }
    throw errorAt(place, 'VIDEO_UNREADABLE', `cannot be opened as a video: ${reason}`, cause);
  }
}

function inputArgs(
  place: MediaPlace,
  containers = CONTAINERS,
): { url: string; input: readonly string[] } {
  const { url, protocols } = ffmpegInput(place);
  return { url, input: ['-protocol_whitelist', protocols, '-format_whitelist', containers] };
}

function errorAt(
  place: MediaPlace,
  code: DecodeErrorCode,
  what: string,
  cause?: unknown,
): DecodeError {
  return new DecodeError(code, place.path, `${placeName(place)} ${what}`, cause);
}

function lastLine(error: unknown): string {
  const stderr = String((error as { stderr?: string | Buffer }).stderr ?? '');
  return stderr.trim().split('\n').at(-1) ?? '';
}

function ratio(text: string): number {
  const [numerator = 0, denominator = 1] = text.split('/').map(Number);
  return denominator === 0 ? 0 : numerator / denominator;
}
