import { UsageError } from '../proto/errors.ts';
import { openProgress } from '../proto/progress.ts';
import { diagnosePlugin } from './pjrt/doctor.ts';
import { ensurePlugin, installLibraries, listPlugins, pluginCacheDir } from './pjrt/plugin.ts';
import { diagnoseTensorflow } from './tensorflow/doctor.ts';
import { installTensorflow, listTensorflow, tensorflowCacheDir } from './tensorflow/install.ts';
import { parseVerb } from './parse-verb.ts';

const HELP = `videoloom engine: list, install and check the engines

  videoloom engine list               what there is and what is installed
  videoloom engine install NAME [--with-libraries]
                                      fetch a PJRT plugin into the per-user cache: cpu, cuda12, cuda13 or rocm7;
                                      with the libraries of NVIDIA or AMD that it loads, some gigabytes
  videoloom engine install tensorflow [--gpu]
                                      tfjs-node, its own binary or built on TensorFlow's library; --gpu
                                      for NVIDIA, with CUDA 12 and cuDNN 9 on LD_LIBRARY_PATH
  videoloom engine doctor [NAME]      what the plugin or tensorflow sees, and a small product and sum on it

PJRT_PLUGIN_PATH (or engine.pluginPath of a config) names the plugin to train with: cuda13, or a library of your own.
`;

/** `videoloom engine list|install|doctor`. */
export async function engineCommand(argv: string[], env: NodeJS.ProcessEnv): Promise<number> {
  const { values, positionals } = parseVerb('engine', argv);
  const [verb, name = 'cpu'] = positionals;
  const cacheDir = pluginCacheDir(env);
  const tensorflowDir = tensorflowCacheDir(env);
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
      for (const { npmPackage, version, path } of await listTensorflow(tensorflowDir))
        say(
          `${'tensorflow'.padEnd(12)} ${`${npmPackage} ${version}`.padEnd(30)} ${path ?? 'not installed'}`,
        );
      say(`${'cpu'.padEnd(12)} ${'@tensorflow/tfjs-backend-cpu'.padEnd(30)} always there, slow`);
      return 0;
    case 'install': {
      if (name === 'tensorflow') {
        const progress = openProgress('tensorflow engine', 1);
        const installed = await installTensorflow({
          cacheDir: tensorflowDir,
          gpu: values.gpu,
          env,
          onProgress: (detail) => {
            progress.update(0, detail);
          },
        });
        const { origin, tensorflowVersion, folder } = installed;
        progress.done(`${folder}, ${origin}, TensorFlow ${tensorflowVersion}`);
        return 0;
      }
      const progress = openProgress(`PJRT plugin ${name}`, 1);
      const path = await ensurePlugin({
        name,
        cacheDir,
        onProgress: ({ phase, package: wheel, version }) => {
          progress.update(0, `${phase} ${wheel} ${version}`);
        },
      });
      if (values['with-libraries']) {
        progress.update(0, 'libraries of the vendor');
        await installLibraries({ name, cacheDir });
      }
      progress.done(path);
      const needs = (await listPlugins({ cacheDir })).find((plugin) => plugin.name === name)?.needs;
      if (needs !== undefined && needs !== '' && !values['with-libraries']) say(needs);
      return 0;
    }
    case 'doctor': {
      const pluginPath = env['PJRT_PLUGIN_PATH'];
      const diagnosis =
        name === 'tensorflow'
          ? await diagnoseTensorflow(tensorflowDir)
          : await diagnosePlugin({ name, cacheDir, pluginPath });
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
