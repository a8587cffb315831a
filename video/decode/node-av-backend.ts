/**
 * FFmpeg's libraries through node-av. Two ways to the same frames:
 *
 * - sparse: reads packets ahead without decoding them, so it knows which frame each time wants, starts at the last key
 *   frame before it, and leaves out H.264 and HEVC pictures that nothing refers to and nobody wants;
 * - linear: decodes from the first packet on. It is what "the frame of a time" means.
 *
 * Sparse checks itself: it knows the timestamp of each wanted frame beforehand, and when one does not come out
 * (timestamps missing, a key frame that is none, fields in packets of their own) linear takes over.
 */
import type {
  Codec,
  CodecContext,
  FormatContext,
  Frame,
  HardwareDeviceContext,
  Packet,
  Stream,
} from 'node-av/lib';
import {
  CONTAINERS,
  MAX_PICTURE,
  TIME_SLACK_SECONDS,
  quarterTurns,
  type DecodedFrames,
  type DecodeRequest,
  type DecoderBackend,
  type VideoInfo,
} from './decoder-backend.ts';
import type { DecodeError, DecodeErrorCode } from './decode-error.ts';
import { placePicture, planFrame, type FramePlan } from './framing.ts';
import type { MediaPlace } from './media-place.ts';
import { decodeAudio } from './node-av-audio.ts';
import { Cropper } from './node-av-cropper.ts';
import { errorAt, openFormat, startSecondsOf, type NodeAv } from './node-av-format.ts';
import { keyFrameSeconds } from './node-av-key-frames.ts';
import { h264Unreferenced, hevcUnreferenced } from './unreferenced.ts';

/** Gaps between wanted times above this are crossed by seeking, smaller ones by reading packets. */
const SEEK_GAP_SECONDS = 8;
/** Frames that may be decoded before one that is shown before them. Source: ITU-T H.264, sec. E.2.1; H.265, sec. A.4. */
const MAX_REORDERED_FRAMES = 16;
/** Compressed bytes held while reading ahead; beyond it they go to the decoder. */
const MAX_QUEUED_BYTES = 64 * 2 ** 20;

/**
 * @throws if node-av, an optional dependency, is not installed or has no binary for this machine, or if there is no
 * such device.
 */
export async function openNodeAvBackend(device: 'cpu' | 'cuda'): Promise<DecoderBackend> {
  const [lib, constants] = await Promise.all([import('node-av/lib'), import('node-av/constants')]);
  lib.Log.setLevel(constants.AV_LOG_QUIET);
  const av: NodeAv = { lib, constants, ...(device === 'cuda' && { gpu: openGpu(lib, constants) }) };
  return {
    name: 'node-av',
    decode: (request) => Promise.resolve().then(() => decode(av, request)),
    probe: (place) => Promise.resolve().then(() => probe(av, place)),
    decodeAudio: (request) => Promise.resolve().then(() => decodeAudio(av, request)),
  };
}

function probe(av: NodeAv, place: MediaPlace): VideoInfo {
  const source = openSource(av, place, { analyze: true });
  try {
    const { format, stream, turns } = source;
    const { width, height, codecId } = stream.codecpar;
    const audio = format.findBestStream(av.constants.AVMEDIA_TYPE_AUDIO);
    const rate = stream.avgFrameRate;
    return {
      durationSeconds: durationOf(av, source),
      framesPerSecond: rate.den > 0 ? rate.num / rate.den : 0,
      width: turns % 2 === 0 ? width : height,
      height: turns % 2 === 0 ? height : width,
      codec: av.lib.avGetCodecName(codecId) ?? 'unknown',
      numStreams: format.nbStreams,
      hasAudio: audio >= 0,
      keyFrameSeconds: keyFrameSeconds(av, format, stream, source.secondsOf),
    };
  } finally {
    source.close();
  }
}

function decode(av: NodeAv, request: DecodeRequest): DecodedFrames {
  for (const [analyze, decodeFrom] of [
    [false, decodeSparse],
    [true, decodeLinear],
  ] as const) {
    // NVDEC is asked only for pixel formats that it has, and headers do not tell these.
    const source = openSource(av, request, { analyze: analyze || av.gpu !== undefined });
    try {
      const decoded = decodeFrom(av, source, request);
      if (decoded) return decoded;
    } finally {
      source.close();
    }
  }
  throw new Error('decodeLinear gives frames or throws');
}

function decodeLinear(av: NodeAv, source: Source, request: DecodeRequest): DecodedFrames {
  const output = new Output(av, source, request);
  const { timesSeconds } = request;
  let previous: Frame | undefined;
  let next = 0;
  const decoder = new Decoder(av, source, (frame) => {
    const seconds = source.secondsOf(frame.bestEffortTimestamp);
    while (next < timesSeconds.length && timesSeconds[next]! + TIME_SLACK_SECONDS < seconds) {
      output.put(previous ?? frame, next++);
    }
    previous?.free();
    previous = frame.clone() ?? undefined;
  });
  try {
    const reader = new PacketReader(av, source);
    while (next < timesSeconds.length) {
      const packet = reader.read();
      if (!packet) break;
      decoder.feed(packet);
      packet.free();
    }
    if (next < timesSeconds.length) {
      decoder.drain();
      if (reader.isEnded) {
        source.checkReaches(timesSeconds.at(-1)!, Math.max(0, reader.endSeconds), reader.isCut);
      }
      if (!previous) throw source.error('VIDEO_DAMAGED', 'holds no frame that can be decoded');
      while (next < timesSeconds.length) output.put(previous, next++);
    }
    return output.result(decoder.numDecoded);
  } finally {
    previous?.free();
    decoder.close();
    output.close();
  }
}

/** Undefined where this way cannot vouch for the frames. */
function decodeSparse(
  av: NodeAv,
  source: Source,
  request: DecodeRequest,
): DecodedFrames | undefined {
  const output = new Output(av, source, request);
  const slots = new Map<number, number[]>(); // timestamp of a wanted frame: where in the output it goes
  const pending = new Set<number>(); // timestamps of wanted frames whose packets are still in the queue
  const isUnreferenced = unreferencedOf(av, source);
  const decoder = new Decoder(av, source, (frame) => {
    const pts = Number(frame.pts);
    for (const slot of slots.get(pts) ?? []) output.put(frame, slot);
    slots.delete(pts);
  });
  const reader = new PacketReader(av, source);
  const queue = new PacketQueue();
  try {
    const ahead: number[] = []; // shown after the time looked at
    let [best, first] = [-Infinity, Infinity];
    const take = (packet: Packet): boolean => {
      const pts = Number(packet.pts);
      if (packet.pts === av.constants.AV_NOPTS_VALUE) {
        packet.free();
        return false;
      }
      if (!queue.push({ packet, pts, isKey: packet.isKeyframe })) return false;
      if (((packet.flags as number) & (av.constants.AV_PKT_FLAG_DISCARD as number)) === 0) {
        ahead.push(pts);
        first = Math.min(first, pts);
      }
      return true;
    };
    const feedFirst = (): void => {
      const { packet, pts } = queue.shift();
      const isWanted = pending.delete(pts);
      // Asked of every packet, because parameter sets may come in any.
      const canDrop = isUnreferenced?.(packet) ?? false;
      if (isWanted || !canDrop) decoder.feed(packet);
      packet.free();
    };
    // Only once all times of a group of pictures are known: a frame may be decoded before one that is shown before it.
    const feedPending = (): void => {
      while (pending.size > 0) feedFirst();
    };
    // Whether every frame that is shown at a tick or before it has been read.
    const isPast = (tick: number): boolean =>
      reader.dts > tick &&
      (source.hasDecodingTimes || ahead.filter((pts) => pts > tick).length > MAX_REORDERED_FRAMES);
    for (const [slot, seconds] of request.timesSeconds.entries()) {
      const limit = source.ticksOf(seconds);
      if (source.secondsOf(BigInt(limit)) - reader.dtsSeconds > SEEK_GAP_SECONDS) {
        const jumped = reader.seek(limit);
        if (jumped === 'lost') return undefined;
        if (jumped === 'ahead') {
          feedPending();
          decoder.drain();
          queue.clear(); // what lies between the two key frames is never decoded
        }
      }
      let wanted = -Infinity;
      for (;;) {
        const reach = wanted === -Infinity && first < Infinity ? Math.max(limit, first) : limit;
        while (!reader.isEnded && !isPast(reach)) {
          const packet = reader.read();
          if (packet && !take(packet)) return undefined;
          while (queue.sizeBytes > MAX_QUEUED_BYTES) feedFirst();
        }
        for (let i = ahead.length - 1; i >= 0; i--) {
          if (ahead[i]! <= limit) best = Math.max(best, ahead.splice(i, 1)[0]!);
        }
        wanted = best > -Infinity ? best : first;
        if (reader.isEnded || (wanted !== Infinity && isPast(Math.max(limit, wanted)))) break;
      }
      if (wanted === Infinity) return undefined;
      if (reader.isEnded) source.checkReaches(seconds, reader.endSeconds, reader.isCut);
      const start = queue.lastKeyAtOrBefore(limit);
      if (start > 0) {
        feedPending();
        decoder.drain();
        queue.drop(queue.lastKeyAtOrBefore(limit));
      }
      const wantedSlots = slots.get(wanted);
      if (wantedSlots) wantedSlots.push(slot);
      else if (queue.has(wanted)) {
        slots.set(wanted, [slot]);
        pending.add(wanted);
      } else if (!output.copy(slot - 1, slot, source.secondsOf(BigInt(wanted)))) return undefined;
    }
    feedPending();
    decoder.drain();
    return slots.size === 0 ? output.result(decoder.numDecoded) : undefined;
  } finally {
    queue.clear();
    decoder.close();
    output.close();
  }
}

interface Source {
  readonly format: FormatContext;
  readonly stream: Stream;
  /** Quarter turns clockwise from the coded to the shown picture. */
  readonly turns: 0 | 1 | 2 | 3;
  /** Whether the container stores when packets are decoded. Matroska does not; FFmpeg guesses it then. */
  readonly hasDecodingTimes: boolean;
  readonly secondsOf: (pts: bigint) => number;
  /** The last tick that is not after a time. */
  ticksOf(seconds: number): number;
  /** @throws DecodeError if `seconds` lies in a part that the file declares but does not hold. */
  checkReaches(seconds: number, endSeconds: number, isCut: boolean): void;
  error(code: DecodeErrorCode, what: string): DecodeError;
  close(): void;
}

/** Opens a file and its best video stream. `analyze` lets FFmpeg decode a little to learn what headers do not tell. */
function openSource(av: NodeAv, place: MediaPlace, { analyze }: { analyze: boolean }): Source {
  const { lib, constants } = av;
  const error = (code: DecodeErrorCode, what: string): DecodeError => errorAt(place, code, what);
  const format = openFormat(av, place, CONTAINERS);
  try {
    let index = format.findBestStream(constants.AVMEDIA_TYPE_VIDEO);
    const isKnown = (stream: Stream | undefined): boolean =>
      stream !== undefined &&
      stream.codecpar.width > 0 &&
      stream.startTime !== constants.AV_NOPTS_VALUE;
    if (analyze || !isKnown(format.streams[index])) {
      const found = format.findStreamInfoSync(null);
      if (found < 0) {
        throw error('VIDEO_UNREADABLE', `cannot be read: ${new lib.FFmpegError(found).message}`);
      }
      index = format.findBestStream(constants.AVMEDIA_TYPE_VIDEO);
    }
    const stream = index < 0 ? undefined : format.streams[index];
    if (!stream) throw error('VIDEO_NO_STREAM', 'holds no video stream');
    const { width, height } = stream.codecpar;
    if (width > MAX_PICTURE.width || height > MAX_PICTURE.height) {
      throw error(
        'VIDEO_TOO_LARGE',
        `has pictures of ${width}x${height}; at most ${MAX_PICTURE.width}x${MAX_PICTURE.height} are decoded`,
      );
    }
    const tick = stream.timeBase.num / stream.timeBase.den;
    const zero = Math.round(startSecondsOf(av, format) / tick);
    const source: Source = {
      format,
      stream,
      turns: turnsOf(av, stream),
      hasDecodingTimes: !/matroska/.test(format.iformat?.name ?? 'matroska'),
      secondsOf: (pts) => (Number(pts) - zero) * tick,
      ticksOf: (seconds) => Math.floor((seconds + TIME_SLACK_SECONDS) / tick) + zero,
      checkReaches(seconds, endSeconds, isCut) {
        const declared = declaredEndOf(av, source);
        const { avgFrameRate: rate } = stream;
        const slack = declared.isOfStream
          ? Math.max(0.1, (2 * rate.den) / Math.max(rate.num, 1))
          : 1;
        if (seconds < endSeconds || (!isCut && declared.seconds - endSeconds <= slack)) return;
        throw error(
          'VIDEO_TRUNCATED',
          `ends at ${endSeconds.toFixed(2)} s although its header says ${declared.seconds.toFixed(2)} s; ` +
            `the frame at ${seconds.toFixed(2)} s is missing: copy the file again`,
        );
      },
      error,
      close: () => {
        format.closeInputSync();
      },
    };
    return source;
  } catch (cause) {
    format.closeInputSync();
    throw cause;
  }
}

/** When the video ends according to the header: precise if the stream says so, else the longest stream's end. */
function declaredEndOf(
  { constants }: NodeAv,
  source: Source,
): { seconds: number; isOfStream: boolean } {
  const { format, stream } = source;
  if (stream.duration !== constants.AV_NOPTS_VALUE && stream.duration > 0n) {
    const start = stream.startTime === constants.AV_NOPTS_VALUE ? 0n : stream.startTime;
    return { seconds: source.secondsOf(start + stream.duration), isOfStream: true };
  }
  const duration = format.duration;
  return { seconds: duration > 0n ? Number(duration) / 1e6 : 0, isOfStream: false };
}

function durationOf(av: NodeAv, source: Source): number {
  return declaredEndOf(av, source).seconds;
}

function turnsOf({ constants }: NodeAv, stream: Stream): 0 | 1 | 2 | 3 {
  const matrix = stream.codecpar.getCodedSideData(constants.AV_PKT_DATA_DISPLAYMATRIX);
  if (!matrix || matrix.length < 36) return 0;
  // Host byte order; every platform that node-av is built for is little-endian.
  const [a, b] = [matrix.readInt32LE(0), matrix.readInt32LE(4)];
  return a === 0 && b === 0 ? 0 : quarterTurns((Math.atan2(b, a) * 180) / Math.PI);
}

/** The packets of the video stream, in decoding order. */
class PacketReader {
  /** Decoding time of the last packet read that has one. */
  dts = -Infinity;
  isEnded = false;
  /** The end came in the middle of a packet. */
  isCut = false;
  /** When the last shown frame among the packets read ends. */
  endSeconds = -Infinity;
  readonly #av: NodeAv;
  readonly #source: Source;
  #kept: Packet | undefined;
  #lastPts: bigint | undefined;

  constructor(av: NodeAv, source: Source) {
    this.#av = av;
    this.#source = source;
  }

  get dtsSeconds(): number {
    return this.dts === -Infinity ? 0 : this.#source.secondsOf(BigInt(this.dts));
  }

  /** The caller frees it. Undefined at the end of the file. */
  read(): Packet | undefined {
    const packet = this.#kept ?? this.#next();
    this.#kept = undefined;
    if (!packet) return undefined;
    if (packet.dts !== this.#av.constants.AV_NOPTS_VALUE) this.dts = Number(packet.dts);
    this.#lastPts = packet.pts;
    if (packet.pts !== this.#av.constants.AV_NOPTS_VALUE) {
      const end = this.#source.secondsOf(packet.pts + packet.duration);
      this.endSeconds = Math.max(this.endSeconds, end);
    }
    return packet;
  }

  /**
   * Goes to the key frame at or before a tick. `ahead`: packets were skipped; `here`: that key frame has already been
   * read, reading goes on where it was; `lost`: the container did not lead to such a key frame.
   */
  seek(tick: number): 'ahead' | 'here' | 'lost' {
    const { format, stream } = this.#source;
    const { AVSEEK_FLAG_BACKWARD } = this.#av.constants;
    if (format.seekFrameSync(stream.index, BigInt(tick), AVSEEK_FLAG_BACKWARD) < 0) return 'lost';
    let packet = this.#next();
    if (!packet) return 'lost';
    const { hasDecodingTimes } = this.#source;
    const isAhead = hasDecodingTimes
      ? Number(packet.dts) > this.dts
      : this.#source.secondsOf(packet.pts) >= this.endSeconds;
    if (isAhead && (!packet.isKeyframe || Number(packet.pts) > tick)) {
      packet.free();
      return 'lost';
    }
    for (let isRead = !isAhead; packet && isRead;) {
      isRead = hasDecodingTimes ? Number(packet.dts) < this.dts : packet.pts !== this.#lastPts;
      packet.free();
      packet = this.#next();
    }
    this.#kept = packet;
    return isAhead ? 'ahead' : 'here';
  }

  #next(): Packet | undefined {
    const { lib, constants } = this.#av;
    const packet = new lib.Packet();
    packet.alloc();
    let wasCorrupt = false;
    for (;;) {
      const read: number = this.#source.format.readFrameSync(packet);
      if (read < 0) {
        packet.free();
        this.isEnded = true;
        this.isCut = wasCorrupt || read !== (constants.AVERROR_EOF as number);
        return undefined;
      }
      if (packet.streamIndex === this.#source.stream.index) {
        wasCorrupt = ((packet.flags as number) & (constants.AV_PKT_FLAG_CORRUPT as number)) !== 0;
        if (!wasCorrupt) return packet;
      }
      packet.unref();
    }
  }
}

/** Undefined for codecs whose packets do not tell. */
function unreferencedOf(
  { constants }: NodeAv,
  { stream }: Source,
): ((packet: Packet) => boolean) | undefined {
  const { codecId, extradata } = stream.codecpar;
  const isUnreferenced =
    codecId === constants.AV_CODEC_ID_H264
      ? h264Unreferenced(extradata)
      : codecId === constants.AV_CODEC_ID_HEVC
        ? hevcUnreferenced(extradata)
        : undefined;
  return isUnreferenced && (({ data }) => data !== null && isUnreferenced(data));
}

interface QueuedPacket {
  readonly packet: Packet;
  readonly pts: number;
  readonly isKey: boolean;
}

class PacketQueue {
  sizeBytes = 0;
  readonly #items: QueuedPacket[] = [];
  readonly #timestamps = new Set<number>();

  has(pts: number): boolean {
    return this.#timestamps.has(pts);
  }

  /** False if its timestamp is already there: fields in packets of their own, or a clock that stands still. */
  push(item: QueuedPacket): boolean {
    const isNew = !this.#timestamps.has(item.pts);
    this.#items.push(item);
    this.#timestamps.add(item.pts);
    this.sizeBytes += item.packet.size;
    return isNew;
  }

  shift(): QueuedPacket {
    const item = this.#items.shift()!;
    this.#timestamps.delete(item.pts);
    this.sizeBytes -= item.packet.size;
    return item;
  }

  /** Index of the last key frame shown at or before a tick; -1 if there is none. */
  lastKeyAtOrBefore(tick: number): number {
    return this.#items.findLastIndex(({ isKey, pts }) => isKey && pts <= tick);
  }

  drop(count: number): void {
    for (let i = 0; i < count; i++) this.shift().packet.free();
  }

  clear(): void {
    this.drop(this.#items.length);
  }
}

/** One decoder; `onFrame` sees each frame and must not keep it. */
class Decoder {
  numDecoded = 0;
  /** Whether it must begin with a key frame: at the start and after each drain. */
  needsStart = true;
  readonly #av: NodeAv;
  readonly #source: Source;
  readonly #onFrame: (frame: Frame) => void;
  readonly #context: CodecContext;
  readonly #frame: Frame;

  constructor(av: NodeAv, source: Source, onFrame: (frame: Frame) => void) {
    const { lib } = av;
    [this.#av, this.#source, this.#onFrame] = [av, source, onFrame];
    const { codecpar, timeBase } = source.stream;
    const name = lib.avGetCodecName(codecpar.codecId) ?? 'unknown';
    const gpuCodec = av.gpu && isFourTwoZero(av, codecpar) ? gpuDecoderOf(av, name) : null;
    const codec = gpuCodec ?? lib.Codec.findDecoder(codecpar.codecId);
    if (!codec) {
      throw source.error(
        'VIDEO_UNREADABLE',
        `uses the codec ${name}, for which there is no decoder`,
      );
    }
    this.#context = new lib.CodecContext();
    this.#context.allocContext3(codec);
    this.#context.parametersToContext(codecpar);
    this.#context.pktTimebase = timeBase;
    this.#context.threadCount = 1;
    if (gpuCodec) this.#context.hwDeviceCtx = av.gpu ?? null;
    const opened = this.#context.open2Sync(codec, null);
    if (opened < 0) {
      throw source.error(
        'VIDEO_UNREADABLE',
        `cannot be decoded: ${new lib.FFmpegError(opened).message}`,
      );
    }
    this.#frame = new lib.Frame();
    this.#frame.alloc();
  }

  feed(packet: Packet): void {
    this.needsStart = false;
    this.#send(packet);
  }

  /** Gets out what is still inside; the next packet must be a key frame. */
  drain(): void {
    if (this.needsStart) return;
    this.#send(null);
    this.#context.flushBuffers();
    this.needsStart = true;
  }

  close(): void {
    this.#frame.free();
    this.#context.freeContext();
  }

  #send(packet: Packet | null): void {
    const { lib } = this.#av;
    for (;;) {
      const sent = this.#context.sendPacketSync(packet);
      const isFull = sent < 0 && new lib.FFmpegError(sent).isEAGAIN;
      // A recording that was cut out of a longer one may begin with packets that have nothing to refer to.
      if (sent < 0 && !isFull && packet && this.numDecoded > 0) {
        const seconds = this.#source.secondsOf(packet.pts).toFixed(2);
        const reason = new lib.FFmpegError(sent).message;
        throw this.#source.error('VIDEO_DAMAGED', `is damaged at ${seconds} s: ${reason}`);
      }
      while (this.#context.receiveFrameSync(this.#frame) >= 0) {
        this.numDecoded++;
        const { decodeErrorFlags, flags } = this.#frame;
        if (
          decodeErrorFlags !== 0 ||
          (flags & (this.#av.constants.AV_FRAME_FLAG_CORRUPT as number)) !== 0
        ) {
          const seconds = this.#source.secondsOf(this.#frame.bestEffortTimestamp).toFixed(2);
          throw this.#source.error(
            'VIDEO_DAMAGED',
            `is damaged: the frame at ${seconds} s has errors`,
          );
        }
        this.#onFrame(this.#frame);
        this.#frame.unref();
      }
      if (!isFull) return;
    }
  }
}

function openGpu(lib: NodeAv['lib'], constants: NodeAv['constants']): HardwareDeviceContext {
  const gpu = new lib.HardwareDeviceContext();
  const opened = gpu.create(constants.AV_HWDEVICE_TYPE_CUDA);
  if (opened >= 0) return gpu;
  throw new Error('device cuda: no NVIDIA GPU, or no driver (libcuda.so.1, libnvcuvid.so.1)');
}

/** NVDEC's decoder of a codec, null if it has none; H.264, HEVC, VP9 and AV1 have. */
function gpuDecoderOf({ lib }: NodeAv, codec: string): Codec | null {
  return lib.Codec.findDecoderByName(
    `${codec}_cuvid` as Parameters<typeof Codec.findDecoderByName>[0],
  );
}

/** What every generation of NVDEC decodes; the rest is left to the CPU. */
function isFourTwoZero({ constants: k }: NodeAv, { format }: Stream['codecpar']): boolean {
  return format === k.AV_PIX_FMT_YUV420P || format === k.AV_PIX_FMT_YUVJ420P;
}

/** Collects frames as RGB at the size asked for. */
class Output {
  readonly #av: NodeAv;
  readonly #source: Source;
  readonly #request: DecodeRequest;
  readonly #frames: Uint8Array;
  readonly #ptsSeconds: Float64Array;
  readonly #scaler: InstanceType<NodeAv['lib']['SoftwareScaleContext']>;
  readonly #rgb: Frame;
  /** How the last picture became a frame, and what it was like. */
  #plan:
    | (Readonly<Pick<Frame, 'width' | 'height' | 'format'>> & { readonly plan: FramePlan })
    | undefined;
  #cropper: Cropper | undefined;

  constructor(av: NodeAv, source: Source, request: DecodeRequest) {
    [this.#av, this.#source, this.#request] = [av, source, request];
    const { width, height, timesSeconds } = request;
    this.#frames = new Uint8Array(timesSeconds.length * width * height * 3);
    this.#ptsSeconds = new Float64Array(timesSeconds.length).fill(NaN);
    this.#scaler = new av.lib.SoftwareScaleContext();
    this.#scaler.allocContext(); // takes colour space and range of each frame from the frame
    // Exact rounding and no shortcuts that depend on the CPU: the same bytes on every machine.
    this.#scaler.setOption(
      'sws_flags',
      'bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp',
    );
    this.#rgb = new av.lib.Frame();
    this.#rgb.alloc();
  }

  put(decoded: Frame, slot: number): void {
    const { constants } = this.#av;
    const frame = this.#av.gpu ? this.#fetch(decoded) : decoded;
    // As ffmpeg's own scale filter does in every version: chroma taken as centred, fields scaled as one picture.
    frame.chromaLocation = constants.AVCHROMA_LOC_UNSPECIFIED;
    frame.clearFlags(constants.AV_FRAME_FLAG_INTERLACED);
    const plan = this.#planFor(frame);
    const scaled = this.#scaler.scaleFrameSync(this.#rgb, this.#cropper?.cut(frame) ?? frame);
    if (scaled < 0)
      throw this.#source.error('VIDEO_UNREADABLE', 'has pictures that cannot be converted to RGB');
    const pixels = this.#rgb.toBuffer();
    const isPlanar = this.#rgb.format === constants.AV_PIX_FMT_GBRP;
    placePicture(isPlanar ? packPlanes(pixels) : pixels, this.#at(slot), plan);
    this.#ptsSeconds[slot] = this.#source.secondsOf(decoded.bestEffortTimestamp);
    if (frame !== decoded) frame.free();
  }

  /** A frame out of the GPU's memory. */
  #fetch(decoded: Frame): Frame {
    if (!decoded.isHwFrame()) return decoded;
    const frame = new this.#av.lib.Frame();
    frame.alloc();
    if (decoded.hwframeTransferDataSync(frame) < 0)
      throw this.#source.error('VIDEO_UNREADABLE', 'has pictures that the GPU does not hand out');
    frame.copyProps(decoded);
    return frame;
  }

  /** Repeats a frame that is already there, if it is the one of that time. */
  copy(from: number, to: number, ptsSeconds: number): boolean {
    if (from < 0 || this.#ptsSeconds[from] !== ptsSeconds) return false;
    this.#at(to).set(this.#at(from));
    this.#ptsSeconds[to] = ptsSeconds;
    return true;
  }

  result(numDecoded: number): DecodedFrames {
    const { width, height } = this.#request;
    return { frames: this.#frames, ptsSeconds: this.#ptsSeconds, width, height, numDecoded };
  }

  close(): void {
    this.#cropper?.close();
    this.#scaler.freeContext();
    this.#rgb.free();
  }

  #planFor(frame: Frame): FramePlan {
    const { width, height, format } = frame;
    const last = this.#plan;
    if (last?.width === width && last.height === height && last.format === format) return last.plan;
    const { turns, stream } = this.#source;
    const { num, den } = stream.sampleAspectRatio;
    const pixelAspect = num > 0 && den > 0 ? num / den : 1;
    const plan = planFrame({ width, height, turns, pixelAspect, grid: 2 }, this.#request);
    this.#plan = { width, height, format, plan };
    this.#cropper?.close();
    this.#cropper = plan.isWhole ? undefined : new Cropper(this.#av, frame, plan.source);
    this.#rgb.unref();
    [this.#rgb.width, this.#rgb.height] = [plan.scaledWidth, plan.scaledHeight];
    this.#rgb.format = isPlanar(this.#av, format)
      ? this.#av.constants.AV_PIX_FMT_GBRP
      : this.#av.constants.AV_PIX_FMT_RGB24;
    this.#rgb.getBuffer(1);
    return plan;
  }

  #at(slot: number): Uint8Array {
    const size = this.#request.width * this.#request.height * 3;
    return this.#frames.subarray(slot * size, (slot + 1) * size);
  }
}

/**
 * Whether swscale gives the same bytes as planes, which it writes two to three times as fast as packed RGB (the one has
 * vector code, the other has not).
 */
function isPlanar({ constants: k }: NodeAv, format: Frame['format']): boolean {
  return (
    format === k.AV_PIX_FMT_YUV420P ||
    format === k.AV_PIX_FMT_YUVJ420P ||
    format === k.AV_PIX_FMT_YUV422P ||
    format === k.AV_PIX_FMT_YUVJ422P ||
    format === k.AV_PIX_FMT_YUV444P ||
    format === k.AV_PIX_FMT_NV12 ||
    format === k.AV_PIX_FMT_YUV420P10LE
  );
}

/** Green, blue and red, one after the other, to RGB. */
function packPlanes(planes: Uint8Array): Uint8Array {
  const size = planes.length / 3;
  const packed = new Uint8Array(planes.length);
  for (let i = 0, at = 0; i < size; i++, at += 3) {
    packed[at] = planes[2 * size + i]!;
    packed[at + 1] = planes[i]!;
    packed[at + 2] = planes[size + i]!;
  }
  return packed;
}
