import { parseArgs } from 'node:util';
import { join } from 'node:path';
import { reportFatal, UsageError } from '../proto/errors.ts';

/**
 * `prepare` makes a run folder and prints what to start as one JSON line; `train` is one worker of a run; `schema`
 * prints the config's JSON Schema.
 * People use the `videoloom` command, which starts both.
 */
async function main(argv: readonly string[]): Promise<void> {
  const [verb, ...rest] = argv;
  if (verb === 'prepare') await runPrepare(rest);
  else if (verb === 'train') await runTrain(rest);
  else if (verb === 'look') await runLook(rest);
  else if (verb === 'schema') {
    const { configJsonSchema } = await import('./config.ts');
    process.stdout.write(`${JSON.stringify(configJsonSchema(), undefined, 2)}\n`);
  } else if (verb === 'engine') {
    const { engineCommand } = await import('./engine-command.ts');
    process.exitCode = await engineCommand(rest, process.env);
  } else
    throw new UsageError(
      'USAGE',
      `worker/main.ts prepare|train|look|engine, not ${verb ?? 'nothing'}`,
    );
}

async function runLook(argv: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: { clips: { type: 'string', default: '6' }, out: { type: 'string' } },
  });
  const [folder] = positionals;
  const clips = Number(values.clips);
  if (folder === undefined || !Number.isInteger(clips) || clips < 1) {
    throw new UsageError('USAGE', 'videoloom look RUN_FOLDER [--clips N] [--out FILE]');
  }
  const { look } = await import('./look.ts');
  const { defaultCacheDir } = await import('./prepare.ts');
  const pluginPath = process.env['PJRT_PLUGIN_PATH'];
  const file = await look({
    folder,
    clips,
    out: values.out,
    pluginPath,
    cacheDir: defaultCacheDir(process.env),
  });
  process.stdout.write(`${file}\n`);
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
  () => process.exit(process.exitCode ?? 0),
  (error: unknown) => process.exit(reportFatal(error)),
);
