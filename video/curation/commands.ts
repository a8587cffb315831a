/** `videoloom data transcode | filter | pack`: from raw films to what is trained on. */
import { resolve } from 'node:path';
import { InvalidArgumentError, Option, type Command } from 'commander';
import { UsageError, VideoloomError } from '../../proto/errors.ts';
import { formatDuration, openProgress } from '../../proto/progress.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import type { DataAccess } from '../loading/data-access.ts';
import type { SkippedRecord } from '../index/sample.ts';
import type { SampleIndex } from '../index/sample-index.ts';
import { parseRule, RULE_FIELDS, RULE_SETS } from './filter-rules.ts';
import type { Dedup } from './filter.ts';
import { DEFAULT_SETTINGS, X264_PRESETS, type X264Preset } from './h264-options.ts';
import type { PackForm } from './pack-media.ts';

/** Files named one by one; more are counted. */
const MAX_TOLD = 20;

/** Adds the sub-commands to `videoloom data`. */
export function addCurationCommands(program: Command): void {
  addTranscode(program);
  addFilter(program);
  addPack(program);
}

function addTranscode(program: Command): void {
  const { height, fps, crf, gop, preset } = DEFAULT_SETTINGS;
  program
    .command('transcode')
    .description(
      'make H.264/AAC training files out of anything FFmpeg reads; run it again to resume',
    )
    .argument('<source>', 'a folder of films, or one film')
    .argument('<out>', 'folder of the training files; captions are copied beside them')
    .option('--height <pixels>', 'largest shorter side, as in 360p', within(16, 4320), height)
    .option('--fps <n>', 'highest frame rate', within(1, 240), fps)
    .option('--crf <n>', 'quality of x264; lower is better and larger', within(1, 51), crf)
    .option('--gop <frames>', 'most frames from key frame to key frame', within(1, 10_000), gop)
    .addOption(new Option('--preset <name>', 'speed of x264').choices(X264_PRESETS).default(preset))
    .option('--jobs <n>', 'ffmpeg processes, of one thread each', within(1, 256), 2)
    .option('--audio', 'keep the sound (default)', true)
    .option('--no-audio', 'leave the sound out')
    .addHelpText(
      'after',
      '\nExample:\n  videoloom data transcode ~/raw ~/films --height 256 --jobs 8',
    )
    .action(
      async (
        source: string,
        out: string,
        options: Record<'height' | 'fps' | 'crf' | 'gop' | 'jobs', number> & {
          preset: X264Preset;
          audio: boolean;
        },
      ) => {
        const { transcode, TRANSCODE_REPORT } = await import('./transcode.ts');
        const { jobs: numJobs, audio: hasAudio, ...rest } = options;
        let progress: ReturnType<typeof openProgress> | undefined;
        const summary = await transcode({
          source: resolve(source),
          out: resolve(out),
          settings: { ...rest, hasAudio },
          numJobs,
          onProgress: ({ numDone, numFiles, numFailed, secondsDone }) => {
            progress ??= openProgress('transcode', numFiles);
            const failures = numFailed === 0 ? '' : `, ${numFailed} failed`;
            progress.update(numDone, `${formatDuration(secondsDone)} of film made${failures}`);
          },
        });
        const { numFiles, numMade, numKept, secondsMade, failed, damaged } = summary;
        progress?.done(
          `${numMade} of ${numFiles} files made (${formatDuration(secondsMade)} of film), ${numKept} were there`,
        );
        tell('no file', failed);
        tell('made in spite of faults', damaged);
        if (failed.length > 0)
          say(`${failed.length} of ${numFiles} failed; all in ${TRANSCODE_REPORT}`);
        if (numMade + numKept === 0) process.exitCode = 1;
      },
    );
}

function addFilter(program: Command): void {
  const list = (value: string, before: string[]): string[] => [...before, value];
  program
    .command('filter')
    .description('write a smaller index: by rules, and without what is there twice')
    .argument('<index>', 'an index file, or a folder with one in it')
    .requiredOption('--out <file>', 'the smaller index')
    .option('--where <rule>', `keep what meets it; fields: ${RULE_FIELDS.join(', ')}`, list, [])
    .option('--rules <set>', `${Object.keys(RULE_SETS).join(', ')}, as listed below`, list, [])
    .option('--dedup <kind>', `${DEDUPS.join(', ')} (repeat it for several)`, list, [])
    .option('--text-threshold <share>', 'least Jaccard index of near texts', Number, 0.8)
    .option('--hash-bits <n>', 'most bits in which near pictures differ, of 64', within(0, 32), 8)
    .option('--report <file>', 'what is left out and why (default: <out>.report.jsonl)')
    .option('--jobs <n>', 'decoder processes', within(1, 64), 2)
    .option('--allow-private-hosts', 'fetch from addresses of private networks too')
    .addHelpText(
      'after',
      `\nRule sets:\n${Object.entries(RULE_SETS)
        .map(([name, rules]) => `  ${name}: ${rules.join('; ')}`)
        .join('\n')}\n\nExample:\n  videoloom data filter films.jsonl --out good.jsonl ` +
        "--where 'duration in 2..30' --where 'short-side >= 224' --dedup exact --dedup near",
    )
    .action(
      async (
        path: string,
        options: Record<'where' | 'rules' | 'dedup', string[]> & {
          out: string;
          report?: string;
          textThreshold: number;
          hashBits: number;
          jobs: number;
          allowPrivateHosts?: boolean;
        },
      ) => {
        const { countReasons, filterIndex, writeReport } = await import('./filter.ts');
        const { writeIndex } = await import('../index/sample-index.ts');
        const { textThreshold, hashBits: maxHashBits, out } = options;
        if (!(textThreshold > 0 && textThreshold <= 1)) {
          throw new UsageError('USAGE', '--text-threshold must be above 0 and at most 1');
        }
        const rules = [...options.rules.flatMap((set) => ruleSet(set)), ...options.where].map(
          parseRule,
        );
        const dedup = options.dedup.map(dedupOf);
        const run = async (index: SampleIndex, access?: DataAccess): Promise<void> => {
          let progress: ReturnType<typeof openProgress> | undefined;
          const result = await filterIndex({
            ...{ index, rules, dedup, textThreshold, maxHashBits },
            ...(access === undefined ? {} : { media: access.media, pool: access.pool }),
            onProgress: ({ numDone, numSamples }) => {
              progress ??= openProgress('compare pictures', numSamples);
              progress.update(numDone);
            },
          });
          progress?.done();
          const report = options.report ?? `${out}.report.jsonl`;
          await writeReport(result, index, report);
          const { train, heldOut } = result.index;
          if (train.length + heldOut.length > 0) await writeIndex(result.index, out);
          say(
            `${train.length} of ${index.train.length} samples to train on and ${heldOut.length} of ` +
              `${index.heldOut.length} held out are kept`,
          );
          for (const [reason, count] of Object.entries(countReasons(result.dropped))) {
            say(`  ${count} left out by ${reason}`);
          }
          if (train.length + heldOut.length === 0) {
            throw new VideoloomError(
              'NOTHING_LEFT',
              `no sample is left, so ${out} is not written; ${report} says of each which rule it does not meet`,
            );
          }
        };
        const looks = dedup.some((kind) => kind === 'near' || kind === 'near-media');
        await (looks ? withIndex(path, options, run) : run(await readIndexAt(path)));
      },
    );
}

const DEDUPS: readonly Dedup[] = ['exact', 'near', 'near-text', 'near-media'];

function dedupOf(text: string): Dedup {
  const kind = DEDUPS.find((known) => known === text);
  if (kind !== undefined) return kind;
  throw new UsageError('USAGE', `--dedup ${text} is not one of ${DEDUPS.join(', ')}`);
}

function ruleSet(name: string): readonly string[] {
  const rules = RULE_SETS[name];
  if (rules !== undefined) return rules;
  throw new UsageError(
    'USAGE',
    `--rules ${name} is not one of ${Object.keys(RULE_SETS).join(', ')}`,
  );
}

function addPack(program: Command): void {
  program
    .command('pack')
    .description('write the samples of an index as WebDataset tar shards; run it again to resume')
    .argument('<index>', 'an index file, or a folder with one in it')
    .argument('<out>', 'folder of the shards; what it holds can be trained on at once')
    .option('--shard-size <bytes>', 'most bytes of a shard, as 256MiB', byteSize, 256 * 2 ** 20)
    .option('--frames <n>', 'store n frames of each span instead of the film', within(1, 4096))
    .option('--size <pixels>', 'side of the frames', within(8, 4096), 224)
    .option('--cut', 'encode each span as a film of its own instead of storing whole files')
    .option('--jobs <n>', 'decoder processes, and records made ready at a time', within(1, 64), 2)
    .option('--allow-private-hosts', 'fetch from addresses of private networks too')
    .addHelpText(
      'after',
      '\nExamples:\n  videoloom data pack films.jsonl shards' +
        '\n  videoloom data pack films.jsonl frames --frames 8 --size 224',
    )
    .action(
      async (
        index: string,
        out: string,
        options: { shardSize: number; frames?: number; size: number; cut?: true; jobs: number } & {
          allowPrivateHosts?: true;
        },
      ) => {
        const { packShards, SHARDS_FILE } = await import('./pack.ts');
        const { frames: numFrames, size, cut, jobs } = options;
        if (numFrames !== undefined && cut === true) {
          throw new UsageError('USAGE', '--frames and --cut do not go together');
        }
        const form: PackForm =
          numFrames !== undefined
            ? { kind: 'frames', numFrames, size }
            : { kind: cut === true ? 'cut' : 'files' };
        await withIndex(index, options, async (read, access) => {
          let progress: ReturnType<typeof openProgress> | undefined;
          const summary = await packShards({
            ...{ index: read, out: resolve(out), form, shardBytes: options.shardSize },
            ...{ media: access.media, pool: access.pool, numAhead: jobs + 1 },
            onProgress: ({ numDone, numRecords, bytesWritten }) => {
              progress ??= openProgress('pack', numRecords);
              progress.update(numDone, `${(bytesWritten / 2 ** 20).toFixed(1)} MiB`);
            },
          });
          const { shards, numKept, numTrain, numHeldOut, skipped } = summary;
          const bytes = shards.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
          progress?.done();
          say(
            `${numTrain} samples to train on and ${numHeldOut} held out in ${shards.length} shards ` +
              `(${(bytes / 2 ** 20).toFixed(1)} MiB, ${numKept} were there); list in ${SHARDS_FILE}`,
          );
          tell('left out', skipped);
          if (numTrain + numHeldOut === 0) process.exitCode = 1;
        });
      },
    );
}

/** The index of a file or folder, and what reads its media. */
async function withIndex(
  path: string,
  { jobs, allowPrivateHosts = false }: { jobs: number; allowPrivateHosts?: boolean },
  use: (index: SampleIndex, access: DataAccess) => Promise<void>,
): Promise<void> {
  const index = await readIndexAt(path);
  const { openDataAccess } = await import('../loading/data-access.ts');
  const access = await openDataAccess({
    ...{ root: index.root, decoders: jobs, allowPrivateHosts },
    cacheDir: userCacheDir(process.env),
  });
  try {
    await use(index, access);
  } finally {
    await access.close();
  }
}

async function readIndexAt(path: string): Promise<SampleIndex> {
  const { findIndex } = await import('../index/make-index.ts');
  const index = await findIndex(resolve(path));
  if (index !== undefined) return index;
  const cure = `make one by \`videoloom data index ${path} --out index.jsonl\``;
  throw new UsageError('USAGE', `${path} is no index and holds none; ${cure}`);
}

function tell(what: string, records: readonly SkippedRecord[]): void {
  for (const { path, code, message } of records.slice(0, MAX_TOLD)) {
    say(`  ${what}: ${path}: ${code}: ${message}`);
  }
  if (records.length > MAX_TOLD) say(`  ${what}: ${records.length - MAX_TOLD} more`);
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** A whole number of a range, as an option's argument. */
function within(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isInteger(value) || value < low || value > high) {
      throw new InvalidArgumentError(`It must be a whole number from ${low} to ${high}.`);
    }
    return value;
  };
}

/** `256MiB`, `1GiB`, `64MB` or a plain number of bytes. */
function byteSize(text: string): number {
  const units: Record<string, number> = {
    ...{ '': 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, KB: 1e3, MB: 1e6, GB: 1e9 },
  };
  const match = /^(\d+(?:\.\d+)?)(|[KMG]i?B)$/.exec(text);
  const value = match === null ? NaN : Math.floor(Number(match[1]) * units[match[2]!]!);
  if (!(value >= 1024)) {
    throw new InvalidArgumentError('It must be at least 1KiB and look like 256MiB, 1GiB or 500MB.');
  }
  return value;
}
