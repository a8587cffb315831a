/**
 * Samples to frames: decodes a batch's clips side by side over the pool, keeps decoded frames in memory within a bound,
 * and puts a substitute where a clip does not decode, so that one bad file never stops a run.
 */
import { createHash } from 'node:crypto';
import { VideoloomError } from '../../proto/errors.ts';
import type { DecoderPool } from '../decode/decoder.ts';
import { CLIP_SOUND_RATE, clipLogMel, type ClipSound } from '../audio/clip-sound.ts';
import {
  isFixedView,
  viewFraming,
  viewSpan,
  viewTimes,
  type ViewedClip,
  type ViewOptions,
} from '../sampling/clip-view.ts';
import { isFileFault } from './file-fault.ts';
import type { FrameDisk } from './frame-disk.ts';
import { fixedRateTimes } from '../sampling/frame-sampler.ts';
import type { MediaPlace } from '../decode/media-place.ts';
import { sceneCuts } from '../sampling/scene-cuts.ts';
import type { SampleIndex } from '../index/sample-index.ts';
import type { MediaFile, Sample } from '../index/sample.ts';
import type { MediaCache } from '../storage/media-cache.ts';
import { packClip, sizeOfClip, unpackClip, type ShownClip } from './shown-clip.ts';

/** One place of a batch: a row of the split, and the rows to take in its stead, in this order. */
export interface ClipRequest {
  readonly sample: number;
  /** How often the split was gone through before; part of the key of what is random. */
  readonly epoch: number;
  /** Where there are none, a row that fails is an error. */
  readonly substitutes: readonly number[];
  /** What was decided about this place before: its substitute is taken, and the row itself is not tried. */
  readonly recorded?: SubstitutedClip | undefined;
}

/** A sample that did not decode, and what stands in its place. */
export interface SubstitutedClip {
  readonly sample: number;
  readonly substitute: number;
  /** Code of the error. */
  readonly reason: string;
  readonly message: string;
}

export interface Clip extends ShownClip {
  /** The row whose frames these are: the one asked for, or its substitute. */
  readonly sample: number;
  readonly skipped?: SubstitutedClip;
}

export interface ClipLoaderOptions {
  readonly index: SampleIndex;
  /** Gives the bytes of the index's files, wherever they are. */
  readonly media: MediaCache;
  readonly split?: 'train' | 'heldOut';
  readonly pool: DecoderPool;
  /** Width and height of the frames. */
  readonly frameSize: number;
  readonly numWindows: number;
  readonly framesPerWindow: number;
  /** How clips are looked at; frames spread evenly and stretched, without changes, by default. */
  readonly view?: Partial<Omit<ViewOptions, 'numFrames' | 'isTraining'>>;
  /** The sound that comes with the frames; none by default. What has no sound is silent. */
  readonly audio?: ClipSound | undefined;
  /** Where decoded frames are kept beyond memory; only of clips that every epoch sees alike. */
  readonly frames?: FrameDisk | undefined;
  /** Bound of the decoded frames kept in memory, in bytes; 0 keeps none. */
  readonly cacheBytes: number;
  /** Places at work at once; as many as the pool has processes and one waiting for each by default. */
  readonly maxConcurrent?: number;
}

/** What a loader has done so far; numbers only grow. */
export interface ClipLoaderStats {
  numClips: number;
  numCacheHits: number;
  /** Clips whose frames were on disk. */
  numDiskHits: number;
  numFramesDecoded: number;
  /** Waiting for the pool, summed over clips. */
  decodeSeconds: number;
  numSubstituted: number;
  readonly errorsByCode: Record<string, number>;
}

export interface ClipLoader {
  readonly stats: Readonly<ClipLoaderStats>;
  /** Bytes of decoded frames in memory. */
  readonly cachedBytes: number;
  /** Rows known not to decode. */
  readonly quarantined: ReadonlySet<number>;
  /**
   * Clips in the order of the requests. The same requests give the same clips wherever and whenever they are loaded.
   * @throws ClipsExhaustedError if a sample and all its substitutes fail; the DecodeError or StorageError if it has
   * none, and if the pool or the way to the store itself fails.
   */
  load(requests: readonly ClipRequest[], signal?: AbortSignal): Promise<Clip[]>;
}

/** Neither a sample nor any of its substitutes could be decoded. */
export class ClipsExhaustedError extends VideoloomError {
  constructor(failures: readonly VideoloomError[]) {
    super(
      'CLIPS_EXHAUSTED',
      `a clip and all of its ${failures.length - 1} substitutes failed to decode: ` +
        `${failures.map(({ code, message }) => `${code} ${message}`).join('; ')}. ` +
        'Remove or replace these files and index the folder again',
      { cause: failures[0] },
    );
  }
}

/** A loader over one split of an index. It borrows the pool and holds nothing that must be closed. */
export function openClipLoader(options: ClipLoaderOptions): ClipLoader {
  return new PoolClipLoader(options);
}

/** Where a clip's frames are kept on disk. */
interface DiskPlace {
  readonly frames: FrameDisk;
  readonly key: string;
  /** Of the file. */
  readonly version: string;
}

class PoolClipLoader implements ClipLoader {
  readonly stats: ClipLoaderStats = {
    numClips: 0,
    numCacheHits: 0,
    numDiskHits: 0,
    numFramesDecoded: 0,
    decodeSeconds: 0,
    numSubstituted: 0,
    errorsByCode: {},
  };
  readonly #options: ClipLoaderOptions;
  readonly #samples: readonly Sample[];
  readonly #cache: ClipCache;
  readonly #view: ViewOptions;
  /** Bad clips and what is wrong with them: not tried again, still reported. */
  readonly #failures = new Map<string, VideoloomError>();
  readonly #quarantined = new Set<number>();
  /** Clips being decoded: two places that want the same one wait for one decode. */
  readonly #underWay = new Map<string, Promise<ShownClip>>();
  /** Where scenes begin, by file; for the policy that asks. */
  readonly #cuts = new Map<number, Promise<number[]>>();
  readonly #slots: Slots;

  constructor(options: ClipLoaderOptions) {
    this.#options = options;
    this.#samples = options.index[options.split ?? 'train'];
    this.#view = {
      ...{ sampling: { policy: 'even' }, fit: 'stretch', seed: 0 },
      augment: { crop: false, flip: false },
      ...options.view,
      numFrames: options.numWindows * options.framesPerWindow,
      isTraining: (options.split ?? 'train') === 'train',
    };
    // What is looked at in another way each time is not asked for again.
    this.#cache = new ClipCache(isFixedView(this.#view) ? options.cacheBytes : 0);
    this.#slots = new Slots(options.maxConcurrent ?? 2 * Math.max(1, options.pool.pids.length));
  }

  get cachedBytes(): number {
    return this.#cache.sizeBytes;
  }

  get quarantined(): ReadonlySet<number> {
    return this.#quarantined;
  }

  async load(requests: readonly ClipRequest[], signal?: AbortSignal): Promise<Clip[]> {
    // A place keeps its turn until it has its clip: a substitute does not queue behind the places of later steps, one of
    // which may wait for a file that never comes.
    return Promise.all(
      requests.map((request) => this.#slots.run(() => this.#loadOne(request, signal), signal)),
    );
  }

  async #loadOne(request: ClipRequest, signal?: AbortSignal): Promise<Clip> {
    const { sample, epoch, substitutes, recorded } = request;
    if (recorded !== undefined) {
      const shown = await this.#shownOf(recorded.substitute, epoch, signal);
      this.stats.numClips++;
      this.stats.numSubstituted++;
      return { ...shown, sample: recorded.substitute, skipped: recorded };
    }
    const failures: VideoloomError[] = [];
    for (const candidate of [sample, ...substitutes]) {
      signal?.throwIfAborted();
      try {
        const shown = await this.#shownOf(candidate, epoch, signal);
        this.stats.numClips++;
        if (candidate === sample) return { ...shown, sample };
        this.stats.numSubstituted++;
        const { code: reason, message } = failures[0]!;
        return {
          ...shown,
          sample: candidate,
          skipped: { sample, substitute: candidate, reason, message },
        };
      } catch (error) {
        if (!isFileFault(error)) throw error;
        if (substitutes.length === 0) throw error;
        failures.push(error);
      }
    }
    throw new ClipsExhaustedError(failures);
  }

  async #shownOf(row: number, epoch: number, signal?: AbortSignal): Promise<ShownClip> {
    if (this.#samples[row]!.media.length === 0) return this.#nothingShown();
    // A file may be bad in one part alone: another view of it is another clip.
    const key = isFixedView(this.#view) ? String(row) : `${row}/${epoch}`;
    const known = this.#failures.get(key);
    if (known) throw known;
    const cached = this.#cache.get(key);
    if (cached) {
      this.stats.numCacheHits++;
      return cached;
    }
    // Not tied to one caller's signal: another may be waiting for the same clip.
    let decoding = this.#underWay.get(key);
    if (!decoding) {
      decoding = this.#decode(key, row, epoch).finally(() => this.#underWay.delete(key));
      decoding.catch(() => undefined); // every caller may have been aborted by then
      this.#underWay.set(key, decoding);
    }
    return signal ? await untilAborted(decoding, signal) : await decoding;
  }

  /** Of a text alone: black frames and silence. */
  #nothingShown(): ShownClip {
    const { frameSize, audio } = this.#options;
    const { numFrames } = this.#view;
    return {
      frames: new Uint8Array(numFrames * frameSize * frameSize * 3),
      timesSeconds: new Array<number>(numFrames).fill(0),
      ...(audio === undefined ? {} : { audio: clipLogMel(new Float32Array(0), audio) }),
    };
  }

  async #decode(key: string, row: number, epoch: number): Promise<ShownClip> {
    const { index, media } = this.#options;
    const sample = this.#samples[row]!;
    const { file: fileRow } = sample.media[0]!;
    const file = index.files[fileRow]!;
    const started = performance.now();
    try {
      const disk = await this.#diskPlace(sample, file);
      const stored = await this.#stored(disk);
      if (stored !== undefined) {
        this.stats.numDiskHits++;
        this.#cache.set(key, stored);
        return stored;
      }
      const local = await media.acquire(file);
      try {
        const place = { path: local.path, range: local.range };
        const needsCuts = file.kind === 'video' && this.#view.sampling.policy === 'scenes';
        const clip = {
          ...{ sample, file, row, epoch },
          ...(needsCuts ? { cuts: await this.#cutsOf(fileRow, place) } : {}),
        };
        const [pictures, audio] = await Promise.all([
          this.#pictures(place, clip),
          this.#sound(place, clip),
        ]);
        const made = { ...pictures, ...(audio === undefined ? {} : { audio }) };
        this.#cache.set(key, made);
        // Beside the caller: what is not kept this time is kept another time.
        const version = disk && (await media.versionOf(file).catch(() => undefined));
        if (disk !== undefined && version === disk.version)
          void disk.frames.put(disk.key, packClip(made));
        return made;
      } finally {
        local.release();
      }
    } catch (error) {
      if (isFileFault(error)) {
        this.#failures.set(key, error);
        this.#quarantined.add(row);
        this.stats.errorsByCode[error.code] = (this.stats.errorsByCode[error.code] ?? 0) + 1;
      }
      throw error;
    } finally {
      this.stats.decodeSeconds += (performance.now() - started) / 1000;
    }
  }

  async #pictures(place: MediaPlace, clip: ViewedClip): Promise<ShownClip> {
    const { pool, frameSize } = this.#options;
    const framing = viewFraming(this.#view, clip);
    const request = { ...place, ...framing, width: frameSize, height: frameSize };
    const { numFrames } = this.#view;
    if (clip.file.kind === 'image') {
      const { frames, numDecoded } = await pool.decodeImage(request);
      this.stats.numFramesDecoded += numDecoded;
      return {
        frames: repeated(frames, numFrames),
        timesSeconds: new Array<number>(numFrames).fill(0),
      };
    }
    const timesSeconds = viewTimes(this.#view, clip);
    const { frames, ptsSeconds, numDecoded } = await pool.decode({ ...request, timesSeconds });
    this.stats.numFramesDecoded += numDecoded;
    return { frames, timesSeconds: [...ptsSeconds] };
  }

  async #sound(place: MediaPlace, clip: ViewedClip): Promise<Float32Array | undefined> {
    const { pool, audio } = this.#options;
    if (audio === undefined) return undefined;
    if (!clip.file.hasAudio) return clipLogMel(new Float32Array(0), audio);
    const { startSeconds, endSeconds } = viewSpan(this.#view, clip);
    const samples = await pool.decodeAudio({
      ...{ ...place, startSeconds, endSeconds },
      ...{ sampleRate: CLIP_SOUND_RATE, channels: 1 },
    });
    return clipLogMel(samples, audio);
  }

  async #stored(disk: DiskPlace | undefined): Promise<ShownClip | undefined> {
    const packed = await disk?.frames.get(disk.key);
    if (packed === undefined) return undefined;
    const { frameSize, audio } = this.#options;
    return unpackClip(packed, {
      frameBytes: frameSize * frameSize * 3,
      numFrames: this.#view.numFrames,
      audioValues: audio === undefined ? 0 : audio.numMels * audio.numFrames,
    });
  }

  /**
   * Where frames that every epoch sees alike are kept on disk, under all that they are a function of. A file of a folder
   * may be another one than was indexed: its version is part of that.
   */
  async #diskPlace(
    { media: [span], cues }: Sample,
    file: MediaFile,
  ): Promise<DiskPlace | undefined> {
    const { frames, frameSize, pool, audio, media } = this.#options;
    if (frames === undefined || !isFixedView(this.#view)) return undefined;
    const { numFrames, sampling, fit, isTraining } = this.#view;
    const { startSeconds, endSeconds } = span!;
    const version = await media.versionOf(file);
    const clip = [
      file.sha256,
      version,
      startSeconds,
      endSeconds,
      sampling.policy === 'cues' ? cues : [],
    ];
    const view = [numFrames, frameSize, sampling, fit, isTraining, pool.backend, audio ?? null];
    const key = createHash('sha256')
      .update(JSON.stringify([PACKING, clip, view]))
      .digest('hex');
    return { frames, key, version };
  }

  /** Where the scenes of a file begin; found once, in small frames. */
  #cutsOf(row: number, place: MediaPlace): Promise<number[]> {
    const { perSecond, width, height } = CUT_FRAMES;
    const { durationSeconds } = this.#options.index.files[row]!;
    const span = { startSeconds: 0, endSeconds: durationSeconds };
    const timesSeconds = fixedRateTimes(span, { framesPerSecond: perSecond, maxFrames: 2 ** 16 });
    let cuts = this.#cuts.get(row);
    if (!cuts) {
      cuts = this.#options.pool.decode({ ...place, timesSeconds, width, height }).then(sceneCuts);
      this.#cuts.set(row, cuts);
      cuts.catch(() => this.#cuts.delete(row));
    }
    return cuts;
  }
}

/** Goes up when clips are packed in another way. */
const PACKING = 2;

const CUT_FRAMES = { perSecond: 4, width: 48, height: 27 };

/** A picture as a film in which nothing moves. */
function repeated(frame: Uint8Array, count: number): Uint8Array {
  const frames = new Uint8Array(frame.length * count);
  for (let i = 0; i < count; i++) frames.set(frame, i * frame.length);
  return frames;
}

async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  let onAbort: (() => void) | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        onAbort = () => {
          reject(signal.reason as Error);
        };
        signal.addEventListener('abort', onAbort, { once: true });
      }),
    ]);
  } finally {
    if (onAbort) signal.removeEventListener('abort', onAbort);
  }
}

/** Lets so many tasks run at once; the others wait their turn. */
class Slots {
  #numFree: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#numFree = count;
  }

  async run<T>(task: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (this.#numFree > 0) this.#numFree--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      signal?.throwIfAborted();
      return await task();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#numFree++;
    }
  }
}

/** Clips as they were shown, the least recently used dropped first. */
class ClipCache {
  sizeBytes = 0;
  readonly #maxBytes: number;
  readonly #entries = new Map<string, ShownClip>(); // in order of last use

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  get(key: string): ShownClip | undefined {
    const clip = this.#entries.get(key);
    if (!clip) return undefined;
    this.#entries.delete(key);
    this.#entries.set(key, clip);
    return clip;
  }

  set(key: string, clip: ShownClip): void {
    const size = sizeOfClip(clip);
    if (size > this.#maxBytes || this.#entries.has(key)) return;
    this.#entries.set(key, clip);
    this.sizeBytes += size;
    for (const [oldest, dropped] of this.#entries) {
      if (this.sizeBytes <= this.#maxBytes) return;
      this.#entries.delete(oldest);
      this.sizeBytes -= sizeOfClip(dropped);
    }
  }
}
