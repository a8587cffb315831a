/**
 * Damaged media through index, decode and pack, as training would take them: nothing may end the run or hang it, every loss
 * has a name and a reason, and the same data give the same batches, also when decoder processes are killed meanwhile.
 *
 *     npm run fuzz:media -- --seed N --files N
 */
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { substitutesAt } from '../../proto/sample-order.ts';
import { openDataAccess } from '../loading/data-access.ts';
import { openClipLoader } from '../loading/loader.ts';
import { makeIndex } from '../index/make-index.ts';
import { packShards } from '../curation/pack.ts';
import { INDEX_FILE, readIndex, type SampleIndex } from '../index/sample-index.ts';
import { makeCorpus } from './corpus.ts';

/** What became of the files below one root. */
export interface FuzzFindings {
  readonly index: SampleIndex;
  /** SHA-256 over the index and over every frame and substitute of one pass. */
  readonly digest: string;
  readonly numClips: number;
  /** Clips that another one stood in for, by the reason. */
  readonly substitutedByReason: Readonly<Record<string, number>>;
  /** Media that are not in the index, by the reason. */
  readonly skippedByReason: Readonly<Record<string, number>>;
  /** Samples that were packed, and media that could not be, by the reason. */
  readonly numPacked: number;
  readonly unpackedByReason: Readonly<Record<string, number>>;
  readonly numKilled: number;
  readonly numReplaced: number;
  readonly seconds: number;
}

export interface FuzzOptions {
  readonly root: string;
  readonly source: 'folder' | 'webdataset';
  /** For files of this call. */
  readonly workDir: string;
  /** Kill a decoder process at once and then this often; 0: never. */
  readonly killEveryMs: number;
}

const DECODE_TIMEOUT_SECONDS = 20;
const NUM_SUBSTITUTES = 24;
const CLIPS_AT_ONCE = 16;
const KILLER_LOOKS_MS = 10;

/** Indexes everything below a root and takes every sample once. */
export async function fuzz(options: FuzzOptions): Promise<FuzzFindings> {
  const { root, source, workDir, killEveryMs } = options;
  const started = performance.now();
  const data = await openDataAccess({
    ...{ root, cacheDir: workDir, decoders: 2 },
    decodeTimeoutSeconds: DECODE_TIMEOUT_SECONDS,
  });
  let numKilled = 0;
  let nextKill = killEveryMs > 0 ? started : Infinity;
  // Looks often and counts from the start, so that work shorter than `killEveryMs` loses a process too.
  const killer = setInterval(() => {
    const { pids } = data.pool;
    const pid = pids[numKilled % pids.length];
    // A clip that loses its process twice is given up: the one that lost the last process must be through by now.
    const isReplaced = data.pool.stats.numReplaced >= numKilled;
    if (performance.now() < nextKill || pid === undefined) return;
    if (data.pool.numBusy === 0 || !isReplaced) return;
    process.kill(pid, 'SIGKILL');
    numKilled++;
    nextKill = performance.now() + killEveryMs;
  }, KILLER_LOOKS_MS);
  try {
    const index = await makeIndex({ ...data, source, clipSeconds: 4, heldOutFraction: 0 });
    const hash = createHash('sha256').update(index.digest);
    const loader = openClipLoader({
      ...data,
      ...{ index, frameSize: 32, numWindows: 2, framesPerWindow: 2, cacheBytes: 0 },
    });
    const numSamples = index.train.length;
    const substitutedByReason: Record<string, number> = {};
    for (let first = 0; first < numSamples; first += CLIPS_AT_ONCE) {
      const rows = Array.from(
        { length: Math.min(CLIPS_AT_ONCE, numSamples - first) },
        (_, i) => first + i,
      );
      const clips = await loader.load(
        rows.map((sample) => ({
          sample,
          epoch: 0,
          substitutes: substitutesAt({ seed: 1, numSamples }, sample, NUM_SUBSTITUTES),
        })),
      );
      for (const { frames, sample, skipped } of clips) {
        hash
          .update(`${sample} ${skipped?.sample ?? '-'} ${skipped?.reason ?? '-'}\n`)
          .update(frames);
        if (skipped !== undefined) count(substitutedByReason, skipped.reason);
      }
    }
    const skippedByReason: Record<string, number> = {};
    for (const { code } of index.skipped) count(skippedByReason, code);

    const out = await mkdtemp(join(workDir, 'packed-'));
    const form = { kind: 'frames', numFrames: 2, size: 32 } as const;
    const packed = await packShards({ ...data, index, out, form, shardBytes: 2 ** 20 });
    for (const { sha256, name } of packed.shards) hash.update(`${name} ${sha256}\n`);
    const unpackedByReason: Record<string, number> = {};
    for (const { code } of packed.skipped) count(unpackedByReason, code);
    const again = await readIndex(join(out, INDEX_FILE));
    if (again.train.length !== packed.numTrain) throw new Error('the packed index is not whole');
    return {
      ...{ index, digest: hash.digest('hex'), numClips: numSamples, numKilled },
      ...{ substitutedByReason, skippedByReason, unpackedByReason },
      numPacked: packed.numTrain,
      numReplaced: data.pool.stats.numReplaced,
      seconds: (performance.now() - started) / 1000,
    };
  } finally {
    clearInterval(killer);
    await data.close();
  }
}

function count(counts: Record<string, number>, name: string): void {
  counts[name] = (counts[name] ?? 0) + 1;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string', default: '1' },
      files: { type: 'string', default: '500' },
    },
  });
  const [seed, numFiles] = [Number(values.seed), Number(values.files)];
  const dir = await mkdtemp(join(tmpdir(), 'videoloom-fuzz-'));
  try {
    const corpus = await makeCorpus({ dir, seed, numFiles });
    const numMutations = Object.keys(corpus.countByMutation).length;
    process.stdout.write(`seed ${seed}: ${numFiles} files of ${numMutations} kinds\n`);
    for (const [source, root] of [
      ['folder', corpus.folder],
      ['webdataset', corpus.shards],
    ] as const) {
      const calm = await fuzz({ root, source, workDir: dir, killEveryMs: 0 });
      const disturbed = await fuzz({ root, source, workDir: dir, killEveryMs: 1500 });
      const { index, digest, substitutedByReason, skippedByReason, seconds } = calm;
      process.stdout.write(
        `${source}: ${index.train.length} clips of ${index.files.length} files in ${seconds.toFixed(1)} s, ` +
          `${calm.numReplaced} decoders replaced\n` +
          `  not in the index: ${JSON.stringify(skippedByReason)}\n` +
          `  substituted: ${JSON.stringify(substitutedByReason)}\n` +
          `  packed: ${calm.numPacked} samples; not: ${JSON.stringify(calm.unpackedByReason)}\n` +
          `  again, with ${disturbed.numKilled} decoders killed: ` +
          `${disturbed.digest === digest ? 'the same batches and shards' : 'OTHER BATCHES OR SHARDS'} in ${disturbed.seconds.toFixed(1)} s\n`,
      );
      if (disturbed.digest !== digest) process.exitCode = 1;
    }
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
