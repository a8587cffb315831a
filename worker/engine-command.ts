import { parseArgs } from 'node:util';
import { UsageError } from '../proto/errors.ts';
import { openProgress } from '../proto/progress.ts';
import { diagnosePlugin } from './pjrt/doctor.ts';
import { ensurePlugin, listPlugins, pluginCacheDir } from './pjrt/plugin.ts';

const HELP = `videoloom engine: list, install and check the engines

  videoloom engine list               what there is and what is installed
  videoloom engine install cpu        fetch a PJRT plugin into the per-user cache
  videoloom engine doctor [NAME]      what the plugin sees, and a small product on it

PJRT_PLUGIN_PATH names a plugin of your own.
`;

/** `videoloom engine list|install|doctor`. */
export async function engineCommand(argv: string[], env: NodeJS.ProcessEnv): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: { help: { type: 'boolean', short: 'h', default: false } },
  });
  const [verb, name = 'cpu'] = positionals;
  const cacheDir = pluginCacheDir(env);
  const say = (line: string): boolean => process.stdout.write(`${line}\n`);
  if (values.help || verb === undefined) {
    process.stdout.write(HELP);
    return verb === undefined && !values.help ? 2 : 0;
  }
  switch (verb) {
    case 'list':
      for (const { name: plugin, build, path, needs } of await listPlugins({ cacheDir })) {
        const source =
          build === undefined ? 'no build for this machine' : `${build.package} ${build.version}`;
        const state = path === undefined ? 'not installed' : path;
        say(
          `xla/${plugin.padEnd(8)} ${source.padEnd(30)} ${state}${needs === '' ? '' : `   ${needs}`}`,
        );
      }
      say(`${'cpu'.padEnd(12)} ${'@tensorflow/tfjs-backend-cpu'.padEnd(30)} always there, slow`);
      return 0;
    case 'install': {
      const progress = openProgress(`PJRT plugin ${name}`, 1);
      const path = await ensurePlugin({
        name,
        cacheDir,
        onProgress: ({ phase, package: wheel, version }) => {
          progress.update(0, `${phase} ${wheel} ${version}`);
        },
      });
      progress.done(path);
      return 0;
    }
    case 'doctor': {
      const diagnosis = await diagnosePlugin({
        name,
        cacheDir,
        pluginPath: env['PJRT_PLUGIN_PATH'],
      });
      for (const [key, value] of Object.entries(diagnosis)) {
        if (value !== undefined)
          say(`${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`);
      }
      return diagnosis.computes ? 0 : 1;
    }
    default:
      throw new UsageError('USAGE', `videoloom engine has no ${verb}: list, install or doctor`);
  }
}
