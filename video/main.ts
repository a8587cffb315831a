import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { Command, Option } from 'commander';
import { reportFatal, UsageError } from '../proto/errors.ts';
import { checkOutputFile } from '../proto/output-path.ts';
import { onLauncherGone, outliveTerminal } from '../proto/parent-process.ts';
import { openProgress } from '../proto/progress.ts';
import { userCacheDir } from '../proto/user-cache.mjs';
import { addCurationCommands } from './curation/commands.ts';
import type { DataAccess } from './loading/data-access.ts';
import type { SampleIndex } from './index/sample-index.ts';
import { SOURCE_NAMES, type SourceName } from './sources/names.ts';
import { isUrl } from './storage/paths.ts';
import { WORLD_KINDS, type WorldKind } from './world/world-kinds.ts';

/** `videoloom data`: from files to what can be trained on. */
const program = new Command('videoloom data').description('make and look through data');

program
  .command('demo')
  .description('make a demo world: H.264 with sound, captions, subtitles and ground truth')
  .requiredOption('--out <folder>', 'where to')
  .addOption(
    new Option(
      '--kind <kind>',
      'stories of several shots; one object that moves, with questions; slides in random order; still pictures with questions about boxes',
    )
      .choices(WORLD_KINDS)
      .default('stories'),
  )
  .option('--train <n>', 'clips to train on', wholeNumber, 512)
  .option('--held-out <n>', 'clips to evaluate on', wholeNumber, 128)
  .option('--seed <n>', 'same seed, same bytes', wholeNumber, 7)
  .option('--processes <n>', 'processes that draw and encode', wholeNumber, 2)
  .addHelpText(
    'after',
    '\nExamples:\n  videoloom data demo --out data/demo --train 64 --held-out 16' +
      '\n  videoloom data demo --out data/moves --kind moves',
  )
  .action(
    async (
      options: Record<'train' | 'heldOut' | 'seed' | 'processes', number> & {
        out: string;
        kind: WorldKind;
      },
    ) => {
      const { generateWorld } = await import('./world/generate.ts');
      const progress = openProgress('demo world (H.264)', options.train + options.heldOut);
      const summary = await generateWorld({
        dir: resolve(options.out),
        kind: options.kind,
        seed: options.seed,
        trainClips: options.train,
        heldOutClips: options.heldOut,
        numProcesses: options.processes,
        onProgress: (done) => {
          progress.update(done);
        },
      });
      progress.done(
        `${summary.numClips} clips, ${(summary.sizeBytes / 2 ** 20).toFixed(1)} MiB in ${options.out}`,
      );
    },
  );

/** What `index` and `look` take to read data that no one has indexed yet. */
interface ReadingOptions {
  readonly source?: SourceName;
  readonly clipSeconds: number;
  readonly heldOut: number;
  readonly allowPrivateHosts?: boolean;
}

const DATA =
  'a folder or s3:// of videos or pictures with their words, in any of the forms of --source';

function reading(command: Command): Command {
  return command
    .addOption(
      new Option('--source <form>', 'form of the data; found out by default').choices(SOURCE_NAMES),
    )
    .option('--clip-seconds <s>', 'longest sample cut out of a video', Number, 8)
    .option(
      '--held-out <share>',
      'share of files held out, where nothing else says it',
      Number,
      0.1,
    )
    .option('--allow-private-hosts', 'fetch from addresses of private networks too');
}

/** The index of `data`, which is opened for it, handed to `use`. */
async function withIndex(
  data: string,
  options: ReadingOptions,
  use: (index: SampleIndex, access: DataAccess) => Promise<void>,
): Promise<void> {
  const { openDataAccess } = await import('./loading/data-access.ts');
  const { findIndex, makeIndex } = await import('./index/make-index.ts');
  const known = isUrl(data) ? undefined : await findIndex(resolve(data));
  const access = await openDataAccess({
    root: known?.root ?? (isUrl(data) ? data : resolve(data)),
    decoders: 2,
    allowPrivateHosts: options.allowPrivateHosts ?? false,
    cacheDir: userCacheDir(process.env),
  });
  try {
    if (known !== undefined) {
      await use(known, access);
      return;
    }
    const progress = openProgress('index', 1);
    const index = await makeIndex({
      ...access,
      source: options.source,
      clipSeconds: options.clipSeconds,
      heldOutFraction: options.heldOut,
      onProgress: ({ numDone, numFiles }) => {
        progress.update(numDone / numFiles, `${numDone} of ${numFiles} files`);
      },
    });
    progress.done();
    await use(index, access);
  } finally {
    await access.close();
  }
}

reading(program.command('index'))
  .description('look at data once: list samples, lengths, sizes, key frames, sound, words, hashes')
  .argument('<data>', DATA)
  .option('--out <file>', 'write the index as JSON Lines')
  .addHelpText(
    'after',
    '\nExamples:\n  videoloom data index ~/films --clip-seconds 10 --out films.jsonl' +
      '\n  videoloom data index s3://bucket/shards --source webdataset',
  )
  .action(async (data: string, options: ReadingOptions & { out?: string }) => {
    if (options.out !== undefined) await checkOutputFile(options.out);
    await withIndex(data, options, async (index) => {
      const { summaryOf } = await import('./index/index-summary.ts');
      for (const line of summaryOf(index)) process.stdout.write(`${line}\n`);
      if (options.out !== undefined) {
        const { writeIndex } = await import('./index/sample-index.ts');
        await writeIndex(index, options.out);
      }
    });
  });

reading(program.command('look'))
  .description('draw samples, in the terminal and as a page: frames with their times, and words')
  .argument('<data>', `${DATA}; an index file; or a run folder`)
  .option('--samples <n>', 'samples drawn, spread over all', wholeNumber, 12)
  .option('--frames <n>', 'frames of each', wholeNumber, 6)
  .option(
    '--out <file>',
    'page to write; its ending says how: .svg, .html or .png',
    'data-look.svg',
  )
  .addHelpText('after', '\nExample:\n  videoloom data look ~/films --samples 20 --out films.png')
  .action(
    async (
      data: string,
      options: ReadingOptions & Record<'samples' | 'frames', number> & { out: string },
    ) => {
      const { samples: numSamples, frames: framesPerSample, out } = options;
      if (numSamples < 1 || framesPerSample < 1)
        throw new UsageError('USAGE', '--samples and --frames must be at least 1');
      await checkOutputFile(out);
      await withIndex(data, options, async (index, access) => {
        const { openContactSheet } = await import('./look/contact-sheet.ts');
        const { drawPage } = await import('./look/contact-sheet-page.ts');
        const { drawTerminal } = await import('./look/contact-sheet-terminal.ts');
        const sheet = await openContactSheet({ index, ...access, numSamples, framesPerSample });
        const { columns, isTTY } = process.stdout;
        if (isTTY)
          for (const line of drawTerminal(sheet, columns)) process.stdout.write(`${line}\n`);
        await writeFile(out, await drawPage(sheet, out));
        process.stdout.write(`${out}\n`);
      });
    },
  );

addCurationCommands(program);

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) {
    throw new UsageError('USAGE', `${text} is not a whole number`);
  }
  return value;
}

outliveTerminal();
onLauncherGone(() => process.exit(1));
program.parseAsync(process.argv).catch((error: unknown) => {
  process.exitCode = reportFatal(error);
});
