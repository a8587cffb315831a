/**
 * Sound through FFmpeg's libraries: a span of a file as one channel at the rate asked for. Samples lie on one grid for
 * the whole file (sample n is the one of n / sampleRate seconds), whichever span is asked for, so that spans that overlap
 * agree where they do. What the resampler's filter reaches is decoded too, before and behind the span.
 */
import type { CodecContext, FormatContext, Frame, Packet, Stream } from 'node-av/lib';
import { SOUND_CONTAINERS, audioSpan, type AudioRequest } from './decoder-backend.ts';
import type { DecodeError, DecodeErrorCode } from './decode-error.ts';
import { errorAt, openFormat, startSecondsOf, type NodeAv } from './node-av-format.ts';

/** Starts later than this are reached by seeking. */
const SEEK_FROM_SECONDS = 3;
/** Decoded before the span, so that a codec that builds on what came before (AAC, Opus, MP3) is in its stride. */
const PREROLL_SECONDS = 1;
/** Of decoded sound on either side of the span that the resampler gets: more than its filter reaches. */
const MARGIN_SECONDS = 0.1;
/** How far timestamps may stray from the count of samples: coarse time bases round to a millisecond. */
const JITTER_SECONDS = 0.01;
/** Longer gaps are not fed to the resampler as silence; it starts anew behind them. */
const MAX_FED_GAP_SECONDS = 1;
/** How much earlier than declared the sound may end: the last packets' padding. */
const END_SLACK_SECONDS = 0.2;

export function decodeAudio(av: NodeAv, request: AudioRequest): Float32Array {
  for (const isSeeking of request.startSeconds > SEEK_FROM_SECONDS ? [true, false] : [false]) {
    const source = openAudio(av, request);
    try {
      if (isSeeking && !source.seek(request.startSeconds - PREROLL_SECONDS)) continue;
      const samples = decodeSpan(av, source, request, isSeeking);
      if (samples) return samples;
    } finally {
      source.close();
    }
  }
  throw new Error('decoding from the start gives samples or throws');
}

/** Undefined if a seek has not led to before the span. */
function decodeSpan(
  av: NodeAv,
  source: AudioSource,
  request: AudioRequest,
  isSeeking: boolean,
): Float32Array | undefined {
  const { startSeconds, endSeconds, sampleRate } = request;
  const { first, count } = audioSpan(request);
  const samples = new Float32Array(count);
  const mixer = new Mixer(av, source);
  const resampler = new Resampler(av, sampleRate, (block, at) => {
    const from = Math.max(0, first - at);
    const to = Math.min(block.length, first + count - at);
    if (from < to) samples.set(block.subarray(from, to), at + from - first);
  });
  const clock = new SampleClock(source.tickSeconds);
  let [isLost, isFed] = [false, false];
  const decoder = new AudioDecoder(av, source, startSeconds, (frame) => {
    const { sampleRate: rate, nbSamples, bestEffortTimestamp: pts } = frame;
    const seconds = pts === av.constants.AV_NOPTS_VALUE ? undefined : source.secondsOf(pts);
    const isFirst = clock.endSeconds === undefined;
    const { position, numCovered, isJump } = clock.place(seconds, nbSamples, rate, !isFed);
    // Decoding from the start is what a time means; where timestamps disagree behind a seek, they are not trusted.
    const isLate = isFirst && position / rate > startSeconds - MARGIN_SECONDS;
    if (isSeeking && (isJump || isLate)) isLost = true;
    const isNear =
      clock.endSeconds! > startSeconds - MARGIN_SECONDS &&
      position / rate < endSeconds + MARGIN_SECONDS;
    if (!isNear || isLost) return;
    isFed = true;
    resampler.feed(mixer.mix(frame).subarray(numCovered), position + numCovered, rate);
  });
  try {
    const ended = source.read((packet, packetSeconds) => {
      decoder.feed(packet);
      return !isLost && packetSeconds < endSeconds + 2 * MARGIN_SECONDS;
    });
    decoder.feed(null);
    if (isSeeking && (isLost || clock.endSeconds === undefined)) return undefined;
    resampler.finish();
    if (ended) source.checkReaches(endSeconds, clock.endSeconds ?? 0, ended.isCut);
    return samples;
  } finally {
    decoder.close();
    mixer.close();
    resampler.close();
  }
}

/**
 * Which samples a frame holds, counted at its rate from the start of the presentation: by count from the frame before,
 * by its timestamp where that tells of a gap. A clock that is coarser than the samples (Matroska's, of a millisecond)
 * rounds each timestamp differently: together they tell the place more exactly than the first one does.
 */
class SampleClock {
  readonly #tickSeconds: number;
  #next: { readonly position: number; readonly rate: number } | undefined;
  /** How far from the count the place may be, as all timestamps since the last gap have it. */
  #lowest = 0;
  #highest = 0;

  constructor(tickSeconds: number) {
    this.#tickSeconds = tickSeconds;
  }

  /** Where the last frame ends. */
  get endSeconds(): number | undefined {
    return this.#next && this.#next.position / this.#next.rate;
  }

  /** `numCovered` samples are those of frames before; the count is only moved while it `mayMove`. */
  place(
    seconds: number | undefined,
    numSamples: number,
    rate: number,
    mayMove: boolean,
  ): { readonly position: number; readonly numCovered: number; readonly isJump: boolean } {
    const next = this.#next;
    const counted = next && Math.round((next.position * rate) / next.rate);
    const told = seconds === undefined ? (counted ?? 0) : seconds * rate;
    const slack = (this.#tickSeconds * rate) / 2;
    if (counted === undefined || Math.abs(told - counted) > JITTER_SECONDS * rate) {
      const position = Math.round(told);
      this.#lowest = told - slack - position;
      this.#highest = told + slack - position;
      const end = Math.max(position + numSamples, counted ?? -Infinity);
      this.#next = { position: end, rate };
      const numCovered = Math.max(0, (counted ?? position) - position);
      return { position, numCovered, isJump: counted !== undefined };
    }
    this.#lowest = Math.max(this.#lowest, told - slack - counted);
    this.#highest = Math.min(this.#highest, told + slack - counted);
    const isAgreed = this.#lowest <= this.#highest;
    const shift = mayMove && isAgreed ? Math.round((this.#lowest + this.#highest) / 2) : 0;
    this.#lowest -= shift;
    this.#highest -= shift;
    this.#next = { position: counted + shift + numSamples, rate };
    return { position: counted + shift, numCovered: 0, isJump: false };
  }
}

interface AudioSource {
  readonly format: FormatContext;
  readonly stream: Stream;
  /** Of the timestamps' clock. */
  readonly tickSeconds: number;
  secondsOf(pts: bigint): number;
  /** Whether the container could go to before a time, and knows where it is then. */
  seek(seconds: number): boolean;
  /** Gives packets until told to stop (undefined) or the file ends. */
  read(
    onPacket: (packet: Packet, seconds: number) => boolean,
  ): { readonly isCut: boolean } | undefined;
  /** @throws DecodeError AUDIO_TRUNCATED if the span's end lies in a part that the file declares but does not hold. */
  checkReaches(seconds: number, endSeconds: number, isCut: boolean): void;
  error(code: DecodeErrorCode, what: string): DecodeError;
  close(): void;
}

function openAudio(av: NodeAv, request: AudioRequest): AudioSource {
  const { lib, constants } = av;
  const error = (code: DecodeErrorCode, what: string): DecodeError => errorAt(request, code, what);
  const format = openFormat(av, request, SOUND_CONTAINERS);
  try {
    const best = (): Stream | undefined =>
      format.streams[format.findBestStream(constants.AVMEDIA_TYPE_AUDIO)];
    const isKnown = (stream: Stream | undefined): boolean =>
      stream !== undefined &&
      stream.codecpar.sampleRate > 0 &&
      stream.startTime !== constants.AV_NOPTS_VALUE;
    if (!isKnown(best())) {
      const found = format.findStreamInfoSync(null);
      if (found < 0) {
        throw error('VIDEO_UNREADABLE', `cannot be read: ${new lib.FFmpegError(found).message}`);
      }
    }
    const stream = best();
    if (!stream) throw error('AUDIO_NO_STREAM', 'holds no sound');
    for (const other of format.streams) {
      if (other.index !== stream.index) other.discard = constants.AVDISCARD_ALL;
    }
    const tick = stream.timeBase.num / stream.timeBase.den;
    const zeroSeconds = startSecondsOf(av, format);
    const secondsOf = (pts: bigint): number => Number(pts) * tick - zeroSeconds;
    return {
      format,
      stream,
      tickSeconds: tick,
      secondsOf,
      seek(seconds) {
        // Ogg says where a page ends only, and FFmpeg guesses the times of what it finds first.
        if (format.iformat?.name === 'ogg') return false;
        const target = BigInt(Math.floor((seconds + zeroSeconds) / tick));
        return format.seekFrameSync(stream.index, target, constants.AVSEEK_FLAG_BACKWARD) >= 0;
      },
      read(onPacket) {
        const packet = new lib.Packet();
        packet.alloc();
        try {
          let isCut = false;
          for (;;) {
            const read: number = format.readFrameSync(packet);
            if (read < 0) return { isCut: isCut || read !== (constants.AVERROR_EOF as number) };
            if (packet.streamIndex === stream.index) {
              isCut = ((packet.flags as number) & (constants.AV_PKT_FLAG_CORRUPT as number)) !== 0;
              const isTimed = packet.pts !== constants.AV_NOPTS_VALUE;
              const seconds = isTimed ? secondsOf(packet.pts) : -Infinity;
              if (!isCut && !onPacket(packet, seconds)) return undefined;
            }
            packet.unref();
          }
        } finally {
          packet.free();
        }
      },
      checkReaches(seconds, endSeconds, isCut) {
        if (seconds <= endSeconds) return;
        const isDeclared = stream.duration !== constants.AV_NOPTS_VALUE && stream.duration > 0n;
        const start = stream.startTime === constants.AV_NOPTS_VALUE ? 0n : stream.startTime;
        const declared = isDeclared ? secondsOf(start + stream.duration) : endSeconds;
        if (!isCut && Math.min(seconds, declared) - endSeconds <= END_SLACK_SECONDS) return;
        throw error(
          'AUDIO_TRUNCATED',
          `has sound to ${endSeconds.toFixed(2)} s only although its header says ${declared.toFixed(2)} s: ` +
            'copy the file again',
        );
      },
      error,
      close: () => {
        format.closeInputSync();
      },
    };
  } catch (cause) {
    format.closeInputSync();
    throw cause;
  }
}

/** `onFrame` sees each frame and must not keep it. */
class AudioDecoder {
  readonly #av: NodeAv;
  readonly #source: AudioSource;
  readonly #startSeconds: number;
  readonly #onFrame: (frame: Frame) => void;
  readonly #context: CodecContext;
  readonly #frame: Frame;

  constructor(
    av: NodeAv,
    source: AudioSource,
    startSeconds: number,
    onFrame: (frame: Frame) => void,
  ) {
    const { lib } = av;
    [this.#av, this.#source, this.#startSeconds, this.#onFrame] = [
      av,
      source,
      startSeconds,
      onFrame,
    ];
    const { codecpar, timeBase } = source.stream;
    const codec = lib.Codec.findDecoder(codecpar.codecId);
    if (!codec) {
      const name = lib.avGetCodecName(codecpar.codecId) ?? 'unknown';
      throw source.error('AUDIO_UNREADABLE', `has sound in ${name}, for which there is no decoder`);
    }
    this.#context = new lib.CodecContext();
    this.#context.allocContext3(codec);
    this.#context.parametersToContext(codecpar);
    this.#context.pktTimebase = timeBase; // without it the samples that an encoder put in front shift all times
    this.#context.threadCount = 1;
    const opened = this.#context.open2Sync(codec, null);
    if (opened < 0) {
      const reason = new lib.FFmpegError(opened).message;
      throw source.error('AUDIO_UNREADABLE', `has sound that cannot be decoded: ${reason}`);
    }
    this.#frame = new lib.Frame();
    this.#frame.alloc();
  }

  /** Null gets out what is still inside. */
  feed(packet: Packet | null): void {
    const { lib, constants } = this.#av;
    for (;;) {
      const sent = this.#context.sendPacketSync(packet);
      const isFull = sent < 0 && new lib.FFmpegError(sent).isEAGAIN;
      if (sent < 0 && !isFull && packet) {
        // Behind a seek or a cut the first packets may have nothing to build on; they are not of the span.
        const seconds = this.#source.secondsOf(packet.pts);
        if (seconds < this.#startSeconds - MARGIN_SECONDS) return;
        const reason = new lib.FFmpegError(sent).message;
        throw this.#source.error(
          'AUDIO_DAMAGED',
          `has damaged sound at ${seconds.toFixed(2)} s: ${reason}`,
        );
      }
      while (this.#context.receiveFrameSync(this.#frame) >= 0) {
        if (
          this.#frame.decodeErrorFlags !== 0 ||
          this.#frame.hasFlags(constants.AV_FRAME_FLAG_CORRUPT)
        ) {
          const seconds = this.#source.secondsOf(this.#frame.bestEffortTimestamp).toFixed(2);
          throw this.#source.error('AUDIO_DAMAGED', `has damaged sound at ${seconds} s`);
        }
        this.#onFrame(this.#frame);
        this.#frame.unref();
      }
      if (!isFull) return;
    }
  }

  close(): void {
    this.#frame.free();
    this.#context.freeContext();
  }
}

type Swr = InstanceType<NodeAv['lib']['SoftwareResampleContext']>;

/** Frames of any sample format and channels to one channel of floats, at their own rate. */
class Mixer {
  readonly #av: NodeAv;
  readonly #source: AudioSource;
  #swr: Swr | undefined;
  /** What `#swr` was made for. */
  #shape = '';

  constructor(av: NodeAv, source: AudioSource) {
    [this.#av, this.#source] = [av, source];
  }

  mix(frame: Frame): Float32Array<ArrayBuffer> {
    const { nbSamples, channelLayout: layout, format, sampleRate } = frame;
    const shape = [layout.order, layout.nbChannels, layout.mask, format].join();
    if (shape !== this.#shape) {
      this.close();
      this.#swr = openSwr(this.#av, frame, sampleRate);
      this.#shape = shape;
    }
    const planes = frame.extendedData ?? frame.data;
    const mono = this.#swr && planes ? convert(this.#swr, planes, nbSamples, nbSamples) : undefined;
    if (!mono) throw this.#source.error('AUDIO_UNREADABLE', 'has sound that cannot be converted');
    return mono;
  }

  close(): void {
    this.#swr?.free();
    this.#swr = undefined;
  }
}

/** One channel of floats from any rate to one rate, on the grid of that rate. */
class Resampler {
  readonly #av: NodeAv;
  readonly #rate: number;
  readonly #onBlock: (samples: Float32Array, position: number) => void;
  #swr: Swr | undefined;
  #inputRate = 0;
  /** Of the next sample to be fed, counted at the input's rate, and to come out. */
  #input = 0;
  #output = 0;
  /** Samples below it have been given out. */
  #numDone = -Infinity;

  constructor(
    av: NodeAv,
    rate: number,
    onBlock: (samples: Float32Array, position: number) => void,
  ) {
    [this.#av, this.#rate, this.#onBlock] = [av, rate, onBlock];
  }

  /** `position` is counted in samples at the input's rate, and never lies before the end of the block fed last. */
  feed(samples: Float32Array<ArrayBuffer>, position: number, rate: number): void {
    if (rate === this.#rate) {
      this.finish();
      this.#give(samples, position);
      return;
    }
    const isFar = position - this.#input > MAX_FED_GAP_SECONDS * rate;
    if (this.#swr && (rate !== this.#inputRate || isFar)) this.finish();
    if (!this.#swr) {
      this.#swr = openSwr(this.#av, { sampleRate: rate }, this.#rate);
      this.#inputRate = rate;
      // The last place where a sample of the input and one of the grid fall together.
      const common = greatestCommonDivisor(rate, this.#rate);
      const block = Math.floor((position * common) / rate);
      this.#input = (block * rate) / common;
      this.#output = (block * this.#rate) / common;
    }
    this.#push(new Float32Array(position - this.#input));
    this.#push(samples);
  }

  /** Gives out what the filter still holds, as if silence followed. */
  finish(): void {
    if (!this.#swr) return;
    // The filter spans 32 samples of the lower rate.
    this.#push(new Float32Array(64 * Math.max(1, Math.ceil(this.#inputRate / this.#rate))));
    this.close();
  }

  close(): void {
    this.#swr?.free();
    this.#swr = undefined;
  }

  #push(samples: Float32Array<ArrayBuffer>): void {
    if (samples.length === 0) return;
    const { buffer, byteOffset, byteLength } = samples;
    const capacity = Math.ceil((samples.length * this.#rate) / this.#inputRate) + 256;
    const planes = [Buffer.from(buffer, byteOffset, byteLength)];
    const block = convert(this.#swr!, planes, samples.length, capacity)!;
    this.#input += samples.length;
    this.#give(block, this.#output);
    this.#output += block.length;
  }

  #give(samples: Float32Array, position: number): void {
    const numOld = Math.max(0, this.#numDone - position);
    if (numOld >= samples.length) return;
    this.#onBlock(samples.subarray(numOld), position + numOld);
    this.#numDone = position + samples.length;
  }
}

/** From a frame's form, or one channel of floats, to one channel of floats at a rate. */
function openSwr(
  { lib, constants }: NodeAv,
  from: Frame | { readonly sampleRate: number },
  rate: number,
): Swr {
  const mono = constants.AV_CHANNEL_LAYOUT_MONO;
  const floats = constants.AV_SAMPLE_FMT_FLTP;
  const [layout, format] =
    'channelLayout' in from ? [from.channelLayout, from.format as typeof floats] : [mono, floats];
  const swr = new lib.SoftwareResampleContext();
  swr.allocSetOpts2(mono, floats, rate, layout, format, from.sampleRate);
  swr.setOption('internal_sample_fmt', 'fltp');
  swr.setOption('rematrix_maxval', '1'); // channels' weights add up to one: nothing gets louder than full scale
  swr.init();
  return swr;
}

/** Undefined if libswresample refuses. */
function convert(
  swr: Swr,
  planes: Buffer[],
  count: number,
  capacity: number,
): Float32Array<ArrayBuffer> | undefined {
  const output = new Float32Array(capacity);
  const converted = swr.convertSync([Buffer.from(output.buffer)], capacity, planes, count);
  return converted < 0 ? undefined : output.subarray(0, converted);
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
