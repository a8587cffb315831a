/** FFmpeg's programs as child processes that end with this one, are watched, and tell why they failed. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import fluent from 'fluent-ffmpeg';
import { messageOf } from '../../proto/errors.ts';
import { CONTAINERS, MAX_PICTURE } from '../decode/decoder-backend.ts';
import { ffmpegInput, type MediaPlace } from '../decode/media-place.ts';
import { CurationError } from './curation-error.ts';

const run = promisify(execFile);
const CHILD = fileURLToPath(new URL('ffmpeg-child.sh', import.meta.url));
const PROBE_TIMEOUT_MS = 30_000;
const MAX_PROBE_BYTES = 2 ** 24;
const MAX_KEPT_COMPLAINTS = 50;

/** More than decoding opens, for this is where foreign formats come in; still nothing that can name other files. */
const DEMUXERS = `${CONTAINERS},mxf,mxf_opatom,dv,rm,ivr,wtv,gxf,nsv,roq,amv,yuv4mpegpipe,mjpeg,h261,h263,vc1,av1,obu,dirac,swf,bink,smk,apng,webp_pipe`;

/** Options in front of an input that may be damaged or hostile. */
export const GUARDED_INPUT: readonly string[] = [
  ...['-protocol_whitelist', 'subfile,file,pipe', '-format_whitelist', DEMUXERS],
  ...['-max_pixels', `${MAX_PICTURE.width * MAX_PICTURE.height}`],
];

/** What went wrong with one job; `reason` is FFmpeg's own last word where there is one. */
export class FfmpegFailure extends Error {
  readonly kind: 'input' | 'disk' | 'stalled' | 'stopped';
  readonly reason: string;

  constructor(kind: FfmpegFailure['kind'], reason: string) {
    super(reason);
    this.kind = kind;
    this.reason = reason;
  }
}

/** One run of ffmpeg: one input, one output. */
export interface FfmpegJob {
  readonly input: MediaPlace;
  readonly inputOptions: readonly string[];
  readonly outputOptions: readonly string[];
  /** The ending tells the container. */
  readonly output: string;
  /** It is killed when it has made nothing for so long. */
  readonly stallMs: number;
  /** Seconds of output so far. */
  readonly onProgress?: ((seconds: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** The version line of the machine's ffmpeg. @throws CurationError FFMPEG_MISSING, FFMPEG_WITHOUT_X264 */
export async function ffmpegVersion(): Promise<string> {
  let version: string;
  try {
    [version] = (await Promise.all([
      run('ffmpeg', ['-version'], { timeout: PROBE_TIMEOUT_MS }).then(({ stdout }) => stdout),
      run('ffprobe', ['-version'], { timeout: PROBE_TIMEOUT_MS }),
    ])) as [string, unknown];
  } catch (cause) {
    throw new CurationError(
      'FFMPEG_MISSING',
      `ffmpeg and ffprobe do not start (${messageOf(cause).split('\n')[0]!}); install FFmpeg 5.1 or newer ` +
        '(Debian: apt-get install ffmpeg; macOS: brew install ffmpeg) and see that both are on the PATH',
      { cause },
    );
  }
  const { stdout } = await run('ffmpeg', ['-v', 'quiet', '-encoders']);
  if (!stdout.includes(' libx264 ')) {
    throw new CurationError(
      'FFMPEG_WITHOUT_X264',
      'the ffmpeg on the PATH is built without libx264; `ffmpeg -encoders` must list it',
    );
  }
  return version.split('\n')[0]!.replace(/ Copyright.*/, '');
}

/**
 * Runs one job to its end and gives what FFmpeg complained of on the way.
 * @throws FfmpegFailure
 */
export function runFfmpeg(job: FfmpegJob): Promise<readonly string[]> {
  const { input, output, stallMs, onProgress, signal } = job;
  return new Promise((resolve, reject) => {
    let failure: FfmpegFailure | undefined;
    const complaints: string[] = [];
    const command = fluent({ logger: undefined })
      .setFfmpegPath(CHILD)
      .input(ffmpegInput(input).url)
      .output(`file:${output}`);
    // As several arguments, for fluent-ffmpeg splits those of a list at their spaces.
    (command.inputOptions as (...options: string[]) => unknown)(
      ...['-nostdin', '-hide_banner', '-v', 'error', '-stats'],
      ...job.inputOptions,
    );
    (command.outputOptions as (...options: string[]) => unknown)(...job.outputOptions);

    const kill = (why?: FfmpegFailure): void => {
      failure ??= why;
      command.kill('SIGKILL');
    };
    const onExit = (): void => {
      kill();
    };
    const onAbort = (): void => {
      kill(new FfmpegFailure('stopped', 'it was stopped'));
    };
    const onStall = (): void => {
      kill(new FfmpegFailure('stalled', `it made nothing for ${stallMs / 1000} s`));
    };
    let stall = setTimeout(onStall, stallMs);
    let made = '';
    const finish = (settle: () => void): void => {
      clearTimeout(stall);
      process.removeListener('exit', onExit);
      signal?.removeEventListener('abort', onAbort);
      settle();
    };
    process.once('exit', onExit);
    signal?.addEventListener('abort', onAbort, { once: true });

    command
      .on('start', () => {
        if (signal?.aborted) onAbort();
      })
      // Its `progress` event would start an ffprobe that nobody watches.
      .on('stderr', (line: string) => {
        const progress = /^frame=\s*(\d+).*\btime=(\S+)/.exec(line);
        if (progress === null) {
          if (line.trim() !== '') complaints.push(line.trim());
          if (complaints.length > MAX_KEPT_COMPLAINTS) complaints.shift();
          return;
        }
        const now = `${progress[1]!} ${progress[2]!}`;
        if (now === made) return;
        made = now;
        clearTimeout(stall);
        stall = setTimeout(onStall, stallMs);
        onProgress?.(secondsOf(progress[2]!));
      })
      .on('error', (error: Error) => {
        finish(() => {
          const isFull = isDiskFault(error.message) || complaints.some(isDiskFault);
          const reason = complaints.at(-1) ?? error.message;
          reject(failure ?? new FfmpegFailure(isFull ? 'disk' : 'input', reason));
        });
      })
      .on('end', () => {
        finish(() => {
          // It ends well although it could not write the end of the file.
          const full = complaints.find(isDiskFault);
          if (failure === undefined && full === undefined) resolve(complaints);
          else reject(failure ?? new FfmpegFailure('disk', full!));
        });
      })
      .run();
  });
}

function isDiskFault(line: string): boolean {
  return /No space left on device|File too large|Disk quota exceeded|Read-only file system|SIGXFSZ/.test(
    line,
  );
}

/** `00:01:02.50`; 0 for `N/A`. */
function secondsOf(time: string): number {
  const [hours = NaN, minutes = NaN, seconds = NaN] = time.split(':').map(Number);
  const total = hours * 3600 + minutes * 60 + seconds;
  return Number.isFinite(total) ? total : 0;
}

/** One stream as `ffprobe -show_streams` tells it. */
export interface ProbedStream {
  readonly index: number;
  readonly codec_type?: string;
  readonly width?: number;
  readonly height?: number;
  readonly sample_aspect_ratio?: string;
  readonly r_frame_rate?: string;
  readonly field_order?: string;
  readonly color_transfer?: string;
  readonly duration?: string;
  readonly nb_frames?: string;
  readonly nb_read_packets?: string;
  readonly side_data_list?: readonly { readonly rotation?: number }[];
  readonly disposition?: { readonly attached_pic?: number };
}

/** What ffprobe says of a file. */
export interface ProbedMedia {
  readonly streams: readonly ProbedStream[];
  /** NaN where the file does not say. */
  readonly durationSeconds: number;
}

/** @throws FfmpegFailure */
export async function probeMedia(
  place: MediaPlace,
  { countsPackets = false }: { countsPackets?: boolean } = {},
): Promise<ProbedMedia> {
  const args = [
    ...['--probe', '-v', 'error', ...GUARDED_INPUT.slice(0, 4)],
    ...(countsPackets ? ['-count_packets'] : []),
    ...['-show_streams', '-show_format', '-of', 'json', ffmpegInput(place).url],
  ];
  try {
    const { stdout } = await run(CHILD, args, {
      timeout: PROBE_TIMEOUT_MS,
      killSignal: 'SIGKILL',
      maxBuffer: MAX_PROBE_BYTES,
    });
    const { streams = [], format } = JSON.parse(stdout) as {
      streams?: ProbedStream[];
      format?: { duration?: string };
    };
    return { streams, durationSeconds: Number(format?.duration ?? NaN) };
  } catch (error) {
    const { killed, stderr } = error as { killed?: boolean; stderr?: string };
    if (killed === true)
      throw new FfmpegFailure('stalled', `probing it took over ${PROBE_TIMEOUT_MS} ms`);
    const last = stderr?.trim().split('\n').at(-1) ?? '';
    throw new FfmpegFailure('input', last === '' ? messageOf(error) : last);
  }
}
