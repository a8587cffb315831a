import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { Command } from 'commander';
import { reportFatal, UsageError } from '../proto/errors.ts';
import { onLauncherGone } from '../proto/parent-process.ts';
import { openProgress } from '../proto/progress.ts';

/** `videoloom data`: makes the demo world and shows what a folder gives to train on. */
const program = new Command('videoloom data').description('make and look through data');

program
  .command('demo')
  .description('make the demo world: H.264 with sound, captions, subtitles and ground truth')
  .requiredOption('--out <folder>', 'where to')
  .option('--train <n>', 'clips to train on', wholeNumber, 512)
  .option('--held-out <n>', 'clips to evaluate on', wholeNumber, 128)
  .option('--seed <n>', 'same seed, same bytes', wholeNumber, 7)
  .option('--processes <n>', 'processes that draw and encode', wholeNumber, 2)
  .addHelpText(
    'after',
    '\nExample:\n  videoloom data demo --out data/demo --train 64 --held-out 16',
  )
  .action(
    async (
      options: Record<'train' | 'heldOut' | 'seed' | 'processes', number> & { out: string },
    ) => {
      const { generateWorld } = await import('./world/generate.ts');
      const progress = openProgress('demo world (H.264)', options.train + options.heldOut);
      const summary = await generateWorld({
        dir: resolve(options.out),
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

program
  .command('index')
  .description('show the samples of a folder of videos with .txt, .vtt or .srt beside them')
  .argument('<folder>')
  .option('--clip-seconds <s>', 'longest sample', Number, 8)
  .option(
    '--held-out <share>',
    'share of files held out where there is no held-out/ folder',
    Number,
    0.1,
  )
  .option('--out <file>', 'write the index as JSON Lines')
  .addHelpText(
    'after',
    '\nExample:\n  videoloom data index ~/films --clip-seconds 10 --out films.jsonl',
  )
  .action(
    async (folder: string, options: { clipSeconds: number; heldOut: number; out?: string }) => {
      const { indexFolder, writeIndex } = await import('./sample-index.ts');
      const progress = openProgress('index', 1);
      const index = await indexFolder({
        root: resolve(folder),
        clipSeconds: options.clipSeconds,
        heldOutFraction: options.heldOut,
        onProgress: ({ numDone, numFiles }) => {
          progress.update(numDone / numFiles, `${numDone} of ${numFiles} files`);
        },
      });
      progress.done();
      const { train, heldOut, skipped } = index;
      const seconds = [...train, ...heldOut].reduce(
        (sum, s) => sum + s.endSeconds - s.startSeconds,
        0,
      );
      const say = (line: string): boolean => process.stdout.write(`${line}\n`);
      say(
        `${train.length} samples to train on, ${heldOut.length} held out, ${seconds.toFixed(1)} s in all`,
      );
      for (const { id, startSeconds, endSeconds, text } of [...train, ...heldOut].slice(0, 8)) {
        say(
          `  ${id}  ${startSeconds.toFixed(2)}-${endSeconds.toFixed(2)} s  ${text === '' ? '(no words)' : text}`,
        );
      }
      for (const { path, code, message } of skipped) say(`  skipped ${path}: ${code}: ${message}`);
      if (options.out !== undefined) await writeIndex(index, options.out);
    },
  );

program
  .command('look')
  .description('draw samples as an SVG page: frames with their times, and the words of each')
  .argument(
    '<folder>',
    'videos with .txt, .vtt or .srt beside them, an index file, or a run folder',
  )
  .option('--samples <n>', 'samples drawn, spread over all', wholeNumber, 12)
  .option('--frames <n>', 'frames of each', wholeNumber, 6)
  .option('--clip-seconds <s>', 'longest sample', Number, 8)
  .option('--out <file>', 'page to write', 'data-look.svg')
  .addHelpText('after', '\nExample:\n  videoloom data look ~/films --samples 20 --out films.svg')
  .action(
    async (
      folder: string,
      options: Record<'samples' | 'frames' | 'clipSeconds', number> & { out: string },
    ) => {
      const { samples: numSamples, frames: framesPerSample, clipSeconds, out } = options;
      if (numSamples < 1 || framesPerSample < 1)
        throw new UsageError('USAGE', '--samples and --frames must be at least 1');
      const { openDecoderPool } = await import('./decoder.ts');
      const { findIndex } = await import('./sample-index.ts');
      const { contactSheet } = await import('./contact-sheet.ts');
      const pool = await openDecoderPool({ numProcesses: 2 });
      try {
        const index = await findIndex(resolve(folder), { clipSeconds, pool });
        await writeFile(out, await contactSheet({ index, pool, numSamples, framesPerSample }));
      } finally {
        await pool.close();
      }
      process.stdout.write(`${out}\n`);
    },
  );

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) {
    throw new UsageError('USAGE', `${text} is not a whole number`);
  }
  return value;
}

onLauncherGone(() => process.exit(1));
program.parseAsync(process.argv).catch((error: unknown) => {
  process.exitCode = reportFatal(error);
});
