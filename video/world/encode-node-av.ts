/** The encoder backend inside the process: FFmpeg's libraries through node-av's low-level API. */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import {
  AAC_BITS_PER_SECOND,
  AAC_OPTIONS,
  X264_OPTIONS,
  type ClipMedia,
  type Encoder,
} from './encode.ts';

type Av = typeof import('node-av/lib') & typeof import('node-av/constants');

const AUDIO_FRAME_SAMPLES = 1024;

/** The backend, or in one clause why there is none. */
export async function openNodeAvEncoder(): Promise<Encoder | string> {
  let av: Av;
  try {
    av = { ...(await import('node-av/lib')), ...(await import('node-av/constants')) };
  } catch (error) {
    return `node-av does not load (${messageOf(error).split('\n')[0]!})`;
  }
  av.Log.setLevel(av.AV_LOG_ERROR);
  const main = createRequire(import.meta.url).resolve('node-av');
  const { version } = JSON.parse(
    await readFile(new URL('../package.json', `file://${main}`), 'utf8'),
  ) as { version: string };
  return {
    name: 'node-av',
    version,
    // Clips are tens of milliseconds of work: synchronous calls skip a thread hop per frame.
    async encode(media, path) {
      encodeClip(av, media, path);
      return Promise.resolve();
    },
  };
}

function encodeClip(av: Av, media: ClipMedia, path: string): void {
  const format = new av.FormatContext();
  const video = new av.CodecContext();
  const audio = new av.CodecContext();
  const packet = new av.Packet();
  try {
    check(av, format.allocOutputContext2(null, 'mp4', path), path, 'choose the mp4 format');
    // No encoder version and no creation time in the file: equal input, equal bytes.
    format.flags = (format.flags | av.AVFMT_FLAG_BITEXACT) as typeof format.flags;
    openVideo(av, video, media, path);
    openAudio(av, audio, media, path);
    const streams = [video, audio].map((codec) => {
      const stream = format.newStream(null);
      check(av, stream.codecpar.fromContext(codec), path, 'describe a stream');
      stream.timeBase = codec.timeBase;
      return stream;
    });
    packet.alloc();
    check(av, format.openOutputSync(), path, 'create the file');
    setOptions(av, format, { movflags: '+faststart' }, path);
    check(av, format.writeHeaderSync(), path, 'write the header');

    /** Encodes one frame (null: the rest that the encoder holds back) and writes what comes out. */
    const send = (index: 0 | 1, frame: InstanceType<Av['Frame']> | null): void => {
      const codec = index === 0 ? video : audio;
      check(av, codec.sendFrameSync(frame), path, 'encode a frame');
      frame?.free();
      for (;;) {
        const result = codec.receivePacketSync(packet);
        if (result === av.AVERROR_EOF || result === av.AVERROR_EAGAIN) return;
        check(av, result, path, 'take an encoded packet');
        packet.streamIndex = index;
        packet.rescaleTs(codec.timeBase, streams[index]!.timeBase);
        check(av, format.interleavedWriteFrameSync(packet), path, 'write a packet');
      }
    };
    let [index, sample] = [0, 0];
    const numSamples = media.samples[0].length;
    for (const pixels of media.frames) {
      const pts = media.ptsTicks[index++]!;
      // Audio up to this frame first, so that the muxer has nothing to hold back.
      while (sample < numSamples && sample / media.sampleRate <= pts / media.ticksPerSecond) {
        send(1, audioFrame(av, media, sample));
        sample += AUDIO_FRAME_SAMPLES;
      }
      send(0, videoFrame(av, media, pixels, index - 1));
    }
    for (; sample < numSamples; sample += AUDIO_FRAME_SAMPLES) {
      send(1, audioFrame(av, media, sample));
    }
    send(0, null);
    send(1, null);
    check(av, format.writeTrailerSync(), path, 'finish the file');
  } finally {
    format.closeOutputSync();
    packet.free();
    video.freeContext();
    audio.freeContext();
    format.freeContext();
  }
}

function openVideo(
  av: Av,
  codec: InstanceType<Av['CodecContext']>,
  media: ClipMedia,
  path: string,
): void {
  const x264 = av.Codec.findEncoderByName(av.FF_ENCODER_LIBX264);
  if (x264 === null) throw failure(path, 'find libx264', 'this build of node-av has none');
  codec.allocContext3(x264);
  codec.width = media.width;
  codec.height = media.height;
  codec.pixelFormat = av.AV_PIX_FMT_YUV420P;
  codec.timeBase = new av.Rational(1, media.ticksPerSecond);
  if (media.isConstantRate) {
    codec.framerate = new av.Rational(media.ticksPerSecond, media.ptsTicks[1] ?? 1);
  }
  codec.gopSize = media.gopSize;
  codec.threadCount = 1; // the number of threads changes the bits
  codec.colorRange = av.AVCOL_RANGE_MPEG;
  codec.colorSpace = av.AVCOL_SPC_SMPTE170M;
  codec.colorPrimaries = av.AVCOL_PRI_SMPTE170M;
  codec.colorTrc = av.AVCOL_TRC_SMPTE170M;
  codec.setFlags(
    av.AV_CODEC_FLAG_BITEXACT,
    av.AV_CODEC_FLAG_GLOBAL_HEADER,
    av.AV_CODEC_FLAG_FRAME_DURATION,
  );
  setOptions(av, codec, X264_OPTIONS, path);
  check(av, codec.open2Sync(x264), path, 'open libx264');
}

function openAudio(
  av: Av,
  codec: InstanceType<Av['CodecContext']>,
  media: ClipMedia,
  path: string,
): void {
  const aac = av.Codec.findEncoderByName(av.FF_ENCODER_AAC);
  if (aac === null) throw failure(path, 'find an AAC encoder', 'this build of node-av has none');
  codec.allocContext3(aac);
  codec.sampleRate = media.sampleRate;
  codec.sampleFormat = av.AV_SAMPLE_FMT_FLTP;
  codec.channelLayout = av.AV_CHANNEL_LAYOUT_STEREO;
  codec.timeBase = new av.Rational(1, media.sampleRate);
  codec.bitRate = BigInt(AAC_BITS_PER_SECOND);
  codec.threadCount = 1;
  codec.setFlags(av.AV_CODEC_FLAG_BITEXACT, av.AV_CODEC_FLAG_GLOBAL_HEADER);
  setOptions(av, codec, AAC_OPTIONS, path);
  check(av, codec.open2Sync(aac), path, 'open the AAC encoder');
}

/** By name and not by the `Dictionary` argument of open2Sync and writeHeaderSync, which node-av 6.1.1 frees twice. */
function setOptions(
  av: Av,
  target: InstanceType<Av['CodecContext']> | InstanceType<Av['FormatContext']>,
  options: Readonly<Record<string, string>>,
  path: string,
): void {
  for (const [name, value] of Object.entries(options)) {
    const result = av.Option.set(target.getNative(), name, value, av.AV_OPT_SEARCH_CHILDREN);
    check(av, result, path, `set ${name}=${value}`);
  }
}

function videoFrame(
  av: Av,
  media: ClipMedia,
  pixels: Uint8Array,
  index: number,
): InstanceType<Av['Frame']> {
  const pts = media.ptsTicks[index]!;
  const frame = av.Frame.fromVideoBuffer(
    Buffer.from(pixels.buffer, pixels.byteOffset, pixels.length),
    {
      width: media.width,
      height: media.height,
      format: av.AV_PIX_FMT_YUV420P,
      timeBase: { num: 1, den: media.ticksPerSecond },
      pts: BigInt(pts),
    },
  );
  frame.duration = BigInt((media.ptsTicks[index + 1] ?? media.durationTicks) - pts);
  return frame;
}

function audioFrame(av: Av, media: ClipMedia, start: number): InstanceType<Av['Frame']> {
  const length = Math.min(AUDIO_FRAME_SAMPLES, media.samples[0].length - start);
  const planes = new Float32Array(2 * length);
  planes.set(media.samples[0].subarray(start, start + length), 0);
  planes.set(media.samples[1].subarray(start, start + length), length);
  return av.Frame.fromAudioBuffer(Buffer.from(planes.buffer), {
    nbSamples: length,
    format: av.AV_SAMPLE_FMT_FLTP,
    sampleRate: media.sampleRate,
    channelLayout: av.AV_CHANNEL_LAYOUT_STEREO,
    timeBase: { num: 1, den: media.sampleRate },
    pts: BigInt(start),
  });
}

function check(av: Av, result: number, path: string, what: string): void {
  if (result >= 0) return;
  throw failure(path, what, new av.FFmpegError(result).message);
}

function failure(path: string, what: string, why: string): VideoloomError {
  return new VideoloomError(
    'ENCODE_FAILED',
    `cannot ${what} for ${path}: ${why}. Check that the folder can be written and has room.`,
  );
}
