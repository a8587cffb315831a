import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { parse, stringify } from 'yaml';
import { messageOf, UsageError } from '../../proto/errors.ts';
import { exitOf, firstJsonLine, ProcessFailed, start } from '../processes.ts';
import { manifests } from './manifests.ts';

export interface KubernetesFlags {
  readonly image: string;
  readonly claim: string;
  readonly name?: string;
  readonly gpus: string;
  readonly plugin?: string;
  readonly secret?: string;
  readonly waitHours: string;
  readonly pod?: string;
  readonly cpus: string;
  readonly memory: string;
}

/** What a recipe with its fields comes to. */
interface Resolved {
  /** Of the recipe; empty where it is one whole. */
  readonly stages: readonly string[];
  readonly stage: string | undefined;
  readonly workers: number;
  readonly engine: string;
  readonly text: string;
  readonly isBuiltIn: boolean;
}

/** Names of pods have 63 characters at most. */
const NAME = /^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$/;

/**
 * The manifests of a run as YAML; its config is checked here, not in a pod. Gives the exit code.
 * @throws UsageError KUBERNETES_INVALID
 */
export async function kubernetesCommand(
  given: readonly [recipe: string, ...rest: string[]],
  flags: KubernetesFlags,
  print: (text: string) => void,
): Promise<number> {
  const sets = (field: string): boolean => given.some((arg) => arg.startsWith(`${field}=`));
  const gpus = Number(flags.gpus);
  if (!(Number.isInteger(gpus) && gpus >= 0))
    throw invalid(`--gpus is ${flags.gpus}, expected a number of GPUs`);
  // A worker that computes on CPUs beside idle GPUs, or on one of them, would do so without a word.
  const plugin = flags.plugin ?? (gpus > 0 && !sets('engine.pluginPath') ? 'cuda13' : undefined);
  const devices = gpus > 1 && !sets('engine.devices') ? ['--set', 'engine.devices=all'] : [];
  const prepareArgs = [...given, ...devices] as const;
  const [recipe, ...rest] = prepareArgs;
  // Fields stand by themselves there.
  const train = rest.filter((arg) => arg !== '--set');
  const waitHours = Number(flags.waitHours);
  if (!(waitHours > 0)) throw invalid(`--wait-hours is ${flags.waitHours}, expected hours`);
  const stdio = ['ignore', 'pipe', 'inherit'] as const;
  // As it is resolved there, whatever is set here.
  const env = { ...process.env, PJRT_PLUGIN_PATH: plugin ?? '' };
  const resolving = start('worker', ['resolve', ...prepareArgs], stdio, env);
  let resolved: Resolved;
  try {
    resolved = await firstJsonLine<Resolved>(resolving, 'the check of the config');
  } catch (error) {
    // It has said itself what is wrong.
    if (error instanceof ProcessFailed) return error.exit.code ?? 1;
    throw error;
  }
  await exitOf(resolving);
  const { stages, stage, workers, engine, text, isBuiltIn } = resolved;
  if (stages.length > 0 && stage === undefined) {
    throw invalid(
      `${recipe} has the stages ${stages.join(', ')}: print the manifests of each with --stage and the same --name, and ` +
        'apply those of the next when the one before is complete',
    );
  }
  const whole = flags.name ?? basename(recipe, '.yaml');
  const name = stage === undefined ? whole : `${whole}-${stage}`;
  if (!NAME.test(name)) {
    throw invalid(
      `"${name}" cannot begin the names of pods: give --name, of small letters, digits and -, 40 at most`,
    );
  }
  const out = `runs/${whole}`;
  const { image, claim, cpus, memory, secret } = flags;
  const pod = flags.pod === undefined ? {} : await podFields(flags.pod);
  const objects = manifests({
    ...{ name, out, run: stage === undefined ? out : `${out}/${stage}`, image, claim, workers },
    ...{
      gpus,
      cpus,
      memory,
      engine,
      plugin,
      secret,
      waitHours,
      pod,
      recipe: isBuiltIn ? recipe : { text },
      train,
    },
  });
  print(objects.map((object) => stringify(object, { lineWidth: 0 })).join('---\n'));
  return 0;
}

/** @throws UsageError KUBERNETES_INVALID */
async function podFields(file: string): Promise<Record<string, unknown>> {
  let fields: unknown;
  try {
    fields = parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw invalid(`--pod: ${file} cannot be read: ${messageOf(error)}`);
  }
  if (typeof fields === 'object' && fields !== null && !Array.isArray(fields))
    return fields as Record<string, unknown>;
  throw invalid(`--pod: ${file} is to hold fields of a pod's spec, as nodeSelector or tolerations`);
}

function invalid(what: string): UsageError {
  return new UsageError('KUBERNETES_INVALID', `${what}.`);
}
