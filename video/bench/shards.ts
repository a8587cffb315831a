/**
 * Reading pictures out of shards beside WebDataset and MosaicML Streaming, by turns in one run: 5,000 JPEGs of 224x224
 * with captions, shuffled, in batches of 64, as they are stored (bytes) and decoded (RGB), by one and two workers. All
 * must give the same samples with the same pixels. Run:
 * node --import tsx video/bench/shards.ts --rounds N --only bytes,rgb --workers 1,2 --cache FOLDER
 */
import { execFile, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import sharp from 'sharp';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { ensurePeer, TORCH } from '../../worker/bench/peer-venv.ts';
import { median, report } from '../../worker/bench/report.ts';
import { cpuSeconds } from './cpu-seconds.ts';
import { openShardWriter } from '../curation/shard-writer.ts';
import { openDecoderPool } from '../decode/decoder.ts';
import { readPictures } from '../loading/picture-reader.ts';
import { readSamples } from '../loading/shard-reader.ts';
import {
  digestOf,
  INDEX_FILE,
  readIndex,
  writeIndex,
  type SampleIndex,
} from '../index/sample-index.ts';
import type { MediaFile, Sample } from '../index/sample.ts';
import { openMediaCache } from '../storage/media-cache.ts';
import { openStore } from '../storage/open.ts';
import { realFilms } from '../test/films.ts';

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    only: { type: 'string', default: 'bytes,rgb' },
    workers: { type: 'string', default: '1,2' },
    cache: { type: 'string', default: join(userCacheDir(process.env), 'bench') },
  },
});

const NUM_SAMPLES = 5000;
const SAMPLES_PER_SHARD = 500;
const SIZE = 224;
const BATCH = 64;
/** A pass goes over the samples this often, so that its start is a small part of it. */
const EPOCHS = { bytes: 8, rgb: 2 } as const;

const SCRIPT = fileURLToPath(new URL('peers/shards.py', import.meta.url));
const PACKAGES = [
  ...['webdataset==1.0.2', TORCH, 'numpy==2.4.6', 'pillow==13.0.0', 'xxhash==4.1.0'],
  ...[
    'zstd==1.5.7.2',
    'python-snappy==0.7.3',
    'brotli==1.2.1',
    'catalogue==2.0.10',
    'tqdm==4.70.1',
  ],
] as [string, ...string[]];
/** Without what it says it needs: clients of clouds, torchvision. */
const STREAMING = 'mosaicml-streaming==0.13.0';

type Mode = keyof typeof EPOCHS;

/** What a pass gave. */
interface Pass {
  readonly seconds: number;
  /** Of all processes. */
  readonly cpuSeconds: number;
  readonly count: number;
  /** SHA-256 of the sorted captions. */
  readonly captions: string;
  /** Of all bytes, or all pixels. */
  readonly sum: number;
}

interface Runner {
  readonly name: string;
  /** With `isCheck` captions and sums are taken, which costs time. */
  pass(isCheck?: boolean): Promise<Pass>;
  close(): Promise<void>;
}

const folder = await ensureShards(join(flags.cache, 'shards'));
const python = await ensurePython();
const mds = join(folder, 'mds');
if (!existsSync(join(mds, 'index.json'))) {
  await rm(mds, { recursive: true, force: true });
  await promisify(execFile)(python, [SCRIPT, 'convert', folder, mds]);
}
for (const mode of flags.only.split(',') as Mode[]) {
  for (const workers of flags.workers.split(',')) await bench(mode, Number(workers));
}

async function bench(mode: Mode, numWorkers: number): Promise<void> {
  const runners = [
    await openOurs(mode, numWorkers),
    await openPeer('webdataset', folder, mode, numWorkers),
    await openPeer('mds', mds, mode, numWorkers),
  ];
  try {
    const [ours, ...peers] = runners;
    const expected = await ours!.pass(true);
    for (const runner of peers) {
      const { count, captions, sum } = await runner.pass(true);
      const isSame = count === expected.count && captions === expected.captions;
      if (!isSame || sum !== expected.sum) {
        throw new Error(
          `${runner.name} gave ${count} other samples (sum ${sum}), not ${expected.sum}`,
        );
      }
    }
    const passes = new Map(runners.map((runner) => [runner, [] as Pass[]]));
    for (let round = 0; round < Number(flags.rounds); round++) {
      for (let turn = 0; turn < runners.length; turn++) {
        const runner = runners[(turn + round) % runners.length]!;
        const pass = await runner.pass();
        if (pass.count !== expected.count) throw new Error(`${runner.name} lost samples`);
        passes.get(runner)!.push(pass);
      }
    }
    const name = `shards/${mode}, ${numWorkers} worker${numWorkers > 1 ? 's' : ''}`;
    const show = (
      metric: string,
      unit: string,
      better: 'higher' | 'lower',
      valueOf: (passes: readonly Pass[]) => number,
    ): void => {
      const values = runners.map((runner) => valueOf(passes.get(runner)!));
      report(
        { name, metric, value: values[0]!, unit, better },
        peers.map((peer, i) => ({ name: peer.name, value: values[i + 1]! })),
      );
    };
    const rates = (of: readonly Pass[]): number[] =>
      of.map(({ count, seconds }) => count / seconds);
    const costs = (of: readonly Pass[]): number[] =>
      of.map(({ count, cpuSeconds }) => (cpuSeconds * 1e6) / count);
    show('samples, best', 'samples/s', 'higher', (of) => Math.max(...rates(of)));
    show('samples, median', 'samples/s', 'higher', (of) => median(rates(of)));
    show('CPU time a sample, least', 'us', 'lower', (of) => Math.min(...costs(of)));
    show('CPU time a sample, median', 'us', 'lower', (of) => median(costs(of)));
    report({ name, metric: 'load of the machine', value: loadavg()[0]!, unit: 'processes' });
  } finally {
    for (const runner of runners) await runner.close();
  }
}

/** Bytes are read by threads of this process, however many workers the others have. */
async function openOurs(mode: Mode, numWorkers: number): Promise<Runner> {
  const index = await readIndex(join(folder, INDEX_FILE));
  const store = openStore(folder);
  const media = openMediaCache({ folder: join(flags.cache, 'media'), maxBytes: 2 ** 30, store });
  const pool = mode === 'rgb' ? await openDecoderPool({ numProcesses: numWorkers }) : undefined;
  let seed = 1;
  return {
    name: 'videoloom',
    async pass(isCheck = false) {
      const started = performance.now();
      const cpu = cpuSeconds(pool?.pids ?? []);
      const captions: string[] = [];
      let [count, sum] = [0, 0];
      const take = (samples: readonly Sample[], bytes: readonly Uint8Array[]): void => {
        count += samples.length;
        if (!isCheck) return;
        for (const { text } of samples) captions.push(text);
        for (const some of bytes) for (const byte of some) sum += byte;
      };
      const rows = shuffledRows(EPOCHS[mode], seed++);
      if (pool === undefined) {
        for await (const batch of readSamples(rows, { index, media, batchSize: BATCH })) {
          for (const { fault } of batch) if (fault) throw fault;
          take(
            batch.map(({ sample }) => sample),
            batch.flatMap((sample) => sample.media),
          );
        }
      } else {
        const framing = { width: SIZE, height: SIZE };
        const options = { index, media, pool, framing, batchSize: BATCH };
        for await (const { samples, frames, faults } of readPictures(rows, options)) {
          for (const fault of faults.values()) throw fault;
          take(samples, [frames]);
        }
      }
      return {
        seconds: (performance.now() - started) / 1000,
        cpuSeconds: cpuSeconds(pool?.pids ?? []) - cpu,
        ...{ count, captions: digest(captions), sum },
      };
    },
    async close() {
      await Promise.all([pool?.close(), media.close()]);
    },
  };
}

async function openPeer(
  name: 'webdataset' | 'mds',
  shards: string,
  mode: Mode,
  numWorkers: number,
): Promise<Runner> {
  const args = [SCRIPT, name, shards, mode, String(numWorkers), String(EPOCHS[mode])];
  const child = spawn(python, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async (): Promise<Pass> => {
    const { value, done } = (await lines.next()) as IteratorResult<string, undefined>;
    if (done) throw new Error(`${name} ended`);
    return JSON.parse(value) as Pass;
  };
  await answer();
  return {
    name: name === 'mds' ? 'mosaicml-streaming' : name,
    pass(isCheck = false) {
      child.stdin.write(isCheck ? 'check\n' : 'pass\n');
      return answer();
    },
    async close() {
      child.stdin.end();
      await new Promise((resolve) => child.once('close', resolve));
    },
  };
}

/** Shards that our own writer makes, and their index: cuts of real films, each with a caption. */
async function ensureShards(wanted: string): Promise<string> {
  if (existsSync(join(wanted, INDEX_FILE))) return wanted;
  process.stderr.write(`packing ${NUM_SAMPLES} pictures into ${wanted}\n`);
  const part = `${wanted}.part`;
  await rm(part, { recursive: true, force: true });
  await mkdir(part, { recursive: true });
  const [width, height] = [640, 360];
  const frames = await filmFrames(width, height);
  const random = numbersFrom(1);
  const files: MediaFile[] = [];
  const train: Sample[] = [];
  for (let shard = 0; shard * SAMPLES_PER_SHARD < NUM_SAMPLES; shard++) {
    const path = `${String(shard).padStart(6, '0')}.tar`;
    const writer = await openShardWriter(join(part, path));
    for (let i = shard * SAMPLES_PER_SHARD; i < (shard + 1) * SAMPLES_PER_SHARD; i++) {
      const jpeg = await sharp(frames[random(frames.length)], {
        raw: { width, height, channels: 3 },
      })
        .extract({
          ...{ left: random(width - SIZE + 1), top: random(height - SIZE + 1) },
          ...{ width: SIZE, height: SIZE },
        })
        .jpeg({ quality: 90 })
        .toBuffer();
      const words = Array.from({ length: 12 }, () => random(4096)).join(' ');
      const text = `sample ${i}: ${words}`;
      const key = String(i).padStart(6, '0');
      const range = await writer.add(`${key}.jpg`, jpeg);
      await writer.add(`${key}.txt`, Buffer.from(text));
      files.push({
        ...{ kind: 'image', path, range, sizeBytes: jpeg.length, width: SIZE, height: SIZE },
        sha256: createHash('sha256').update(jpeg).digest('hex'),
        ...{ durationSeconds: 0, framesPerSecond: 0, codec: 'jpeg', hasAudio: false },
        keyFrameSeconds: [],
      });
      const media = [{ file: i, startSeconds: 0, endSeconds: 0 }];
      train.push({ id: key, media, text, cues: [], decodeMegapixels: SIZE ** 2 / 1e6 });
    }
    await writer.finish();
  }
  const content = { files, train, heldOut: [] };
  const about = { root: wanted, digest: digestOf(content), skipped: [], numCaptionWarnings: 0 };
  const index: SampleIndex = { ...about, ...content };
  await writeIndex(index, join(part, INDEX_FILE));
  await rename(part, wanted);
  return wanted;
}

/** Every fifth of a second of two films, RGB. */
async function filmFrames(width: number, height: number): Promise<Buffer[]> {
  const films = await realFilms();
  if ('skip' in films) throw new Error(films.skip);
  const frames: Buffer[] = [];
  for (const name of ['bigbuckbunny', 'bikes']) {
    const filter = `scale=${width}:${height},fps=5`;
    const input = ['-v', 'error', '-i', join(films.folder, `${name}.mp4`), '-vf', filter];
    const output = ['-f', 'rawvideo', '-pix_fmt', 'rgb24', '-'];
    const pixels = execFileSync('ffmpeg', [...input, ...output], { maxBuffer: 2 ** 30 });
    const size = width * height * 3;
    for (let at = 0; at + size <= pixels.length; at += size)
      frames.push(pixels.subarray(at, at + size));
  }
  return frames;
}

async function ensurePython(): Promise<string> {
  const peer = await ensurePeer(flags.cache, {
    ...{ label: 'webdataset', packages: PACKAGES, script: SCRIPT, args: [] },
  });
  const mark = join(flags.cache, 'webdataset-venv', 'complete-streaming');
  if (!existsSync(mark)) {
    await promisify(execFile)(peer, ['-m', 'pip', 'install', '--quiet', '--no-deps', STREAMING]);
    await writeFile(mark, '');
  }
  return peer;
}

/** All rows so many times over, each time in another order. */
function* shuffledRows(numEpochs: number, seed: number): Generator<number> {
  const random = numbersFrom(seed);
  for (let epoch = 0; epoch < numEpochs; epoch++) {
    const rows = Uint32Array.from({ length: NUM_SAMPLES }, (_, row) => row);
    for (let i = rows.length - 1; i > 0; i--) {
      const other = random(i + 1);
      [rows[i], rows[other]] = [rows[other]!, rows[i]!];
    }
    yield* rows;
  }
}

/** Whole numbers below a bound: for benches, where any will do. */
function numbersFrom(seed: number): (bound: number) => number {
  let state = seed;
  return (bound) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
}

function digest(captions: string[]): string {
  return createHash('sha256').update(captions.sort().join('\n')).digest('hex');
}
