import { parseArgs } from 'node:util';
import { join } from 'node:path';
import { reportFatal, UsageError } from '../proto/errors.ts';

/**
 * `prepare` makes a run folder and prints what to start as one JSON line; `train` is one worker of a run.
 * People use the `videoloom` command, which starts both.
 */
async function main(argv: readonly string[]): Promise<void> {
  const [verb, ...rest] = argv;
  if (verb === 'prepare') await runPrepare(rest);
  else if (verb === 'train') await runTrain(rest);
  else throw new UsageError('USAGE', `worker/main.ts prepare|train, not ${verb ?? 'nothing'}`);
}

async function runPrepare(argv: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      preset: { type: 'string' },
      out: { type: 'string' },
      set: { type: 'string', multiple: true },
    },
  });
  const { defaultCacheDir, prepare } = await import('./prepare.ts');
  const overrides = [...(values.set ?? [])];
  const pluginPath = process.env['PJRT_PLUGIN_PATH'];
  if (pluginPath !== undefined && pluginPath !== '')
    overrides.push(`engine.pluginPath=${JSON.stringify(pluginPath)}`);
  const prepared = await prepare({
    recipe: positionals[0] ?? 'videobert',
    preset: values.preset,
    overrides,
    out: values.out,
    cacheDir: defaultCacheDir(process.env),
    say: (line) => process.stderr.write(`${line}\n`),
  });
  process.stdout.write(`${JSON.stringify(prepared)}\n`);
}

async function runTrain(argv: string[]): Promise<void> {
  const { values } = parseArgs({
    args: argv,
    options: {
      run: { type: 'string' },
      coordinator: { type: 'string' },
      id: { type: 'string' },
      plugin: { type: 'string', default: '' },
      engine: { type: 'string', default: 'xla' },
      listen: { type: 'string', default: '127.0.0.1' },
      metrics: { type: 'string', default: '127.0.0.1:0' },
    },
  });
  const { run: folder, coordinator, id } = values;
  if (folder === undefined || coordinator === undefined || id === undefined) {
    throw new UsageError(
      'USAGE',
      'worker/main.ts train --run DIR --coordinator HOST:PORT --id NAME',
    );
  }
  const { runWorker } = await import('./worker.ts');
  const { defaultCacheDir } = await import('./prepare.ts');
  await runWorker({
    folder,
    coordinatorAddress: coordinator,
    workerId: id,
    engine: values.engine === 'cpu' ? 'cpu' : 'xla',
    pluginPath: values.plugin,
    listenHost: values.listen,
    metricsAddress: values.metrics,
    cacheDir: defaultCacheDir(process.env),
    logFile: join(folder, 'logs', `${id}.jsonl`),
  });
}

main(process.argv.slice(2)).then(
  () => process.exit(0),
  (error: unknown) => process.exit(reportFatal(error)),
);
