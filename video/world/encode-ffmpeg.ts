/** The encoder backend that spawns the machine's `ffmpeg` and feeds it through pipes. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import {
  AAC_BITS_PER_SECOND,
  AAC_OPTIONS,
  X264_OPTIONS,
  type ClipMedia,
  type Encoder,
} from './encode.ts';

const PROBE_TIMEOUT_MS = 10_000;
const ENCODE_TIMEOUT_MS = 60_000;

/** The backend, or in one clause why there is none. */
export async function openFfmpegEncoder(): Promise<Encoder | string> {
  let output: string;
  try {
    output = await runProbe();
  } catch (error) {
    return `ffmpeg does not start (${messageOf(error)})`;
  }
  const version = /^ffmpeg version (\S+)/.exec(output)?.[1] ?? 'unknown';
  return {
    name: 'ffmpeg',
    version,
    encode: encodeClip,
  };
}

async function runProbe(): Promise<string> {
  const child = spawn('ffmpeg', ['-version'], {
    stdio: ['ignore', 'pipe', 'ignore'],
    timeout: PROBE_TIMEOUT_MS,
  });
  const closed = once(child, 'close');
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  const [code] = (await closed) as [number | null];
  if (code !== 0) throw new Error(`exit status ${code ?? 'none'}`);
  return output;
}

async function encodeClip(media: ClipMedia, path: string): Promise<void> {
  const child = spawn('ffmpeg', argumentsFor(media, path), {
    stdio: ['pipe', 'ignore', 'pipe', 'pipe'],
    timeout: ENCODE_TIMEOUT_MS,
    killSignal: 'SIGKILL',
  });
  let complaint = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(-2000);
  });
  const closed = once(child, 'close') as Promise<[number | null]>;
  try {
    const [, , [code]] = await Promise.all([
      feed(child.stdin!, media.frames),
      feed(child.stdio[3] as Writable, [interleaved(media.samples)]),
      closed,
    ]);
    if (code !== 0) throw new Error(`exit status ${code ?? 'none'}`);
  } catch (error) {
    // A pipe that breaks is a consequence; what ffmpeg says is the reason.
    child.kill('SIGKILL');
    await closed.catch(() => undefined);
    throw new VideoloomError(
      'ENCODE_FAILED',
      `ffmpeg cannot write ${path}: ${complaint.trim() || messageOf(error)}. Check that its build has libx264 ` +
        '(`ffmpeg -encoders`) and that the folder can be written and has room.',
      { cause: error },
    );
  }
}

function argumentsFor(media: ClipMedia, path: string): string[] {
  const { ticksPerSecond, ptsTicks } = media;
  const rate = media.isConstantRate ? `${ticksPerSecond}/${ptsTicks[1] ?? 1}` : `${ticksPerSecond}`;
  return [
    ...['-v', 'error', '-nostdin', '-y'],
    ...['-f', 'rawvideo', '-pix_fmt', 'yuv420p', '-s', `${media.width}x${media.height}`],
    ...['-framerate', rate, '-i', 'pipe:0'],
    ...['-f', 'f32le', '-ar', `${media.sampleRate}`, '-ac', '2', '-i', 'pipe:3'],
    ...(media.isConstantRate
      ? []
      : ['-vf', retime(ptsTicks), '-enc_time_base', `1:${ticksPerSecond}`]),
    ...['-fps_mode', 'passthrough', '-c:v', 'libx264', '-threads', '1', '-g', `${media.gopSize}`],
    ...Object.entries(X264_OPTIONS).flatMap(([name, value]) => [`-${name}`, value]),
    ...['-color_range', 'tv', '-colorspace', 'smpte170m'],
    ...['-color_primaries', 'smpte170m', '-color_trc', 'smpte170m'],
    ...['-c:a', 'aac', '-b:a', `${AAC_BITS_PER_SECOND}`],
    ...Object.entries(AAC_OPTIONS).flatMap(([name, value]) => [`-${name}`, value]),
    ...['-fflags', '+bitexact', '-flags:v', '+bitexact', '-flags:a', '+bitexact'],
    ...['-map_metadata', '-1', '-movflags', '+faststart', '-f', 'mp4', path],
  ];
}

/** FFmpeg's expressions hold a hundred terms at one level. */
const TERMS_PER_GROUP = 40;

/** Raw frames carry no times: a filter that gives each its own by its number. */
function retime(ptsTicks: readonly number[]): string {
  const groups: string[] = [];
  for (let i = 0; i < ptsTicks.length; i += TERMS_PER_GROUP) {
    const group = ptsTicks.slice(i, i + TERMS_PER_GROUP);
    groups.push(`(${group.map((tick, k) => `${tick}*eq(N,${i + k})`).join('+')})`);
  }
  return `setpts='${groups.join('+')}'`;
}

async function feed(pipe: Writable, chunks: Iterable<Uint8Array>): Promise<void> {
  const done = finished(pipe);
  done.catch(() => undefined); // awaited below; an earlier failure rejects the waits for `drain` too
  for (const chunk of chunks) {
    // The frames share one buffer, and a pipe may read it later.
    if (!pipe.write(Buffer.from(chunk))) await Promise.race([once(pipe, 'drain'), done]);
    if (pipe.destroyed) break;
  }
  pipe.end();
  await done;
}

function interleaved([left, right]: ClipMedia['samples']): Uint8Array {
  const mixed = new Float32Array(2 * left.length);
  left.forEach((value, i) => (mixed[2 * i] = value));
  right.forEach((value, i) => (mixed[2 * i + 1] = value));
  return new Uint8Array(mixed.buffer);
}
