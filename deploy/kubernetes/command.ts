import { basename } from 'node:path';
import { stringify } from 'yaml';
import { UsageError } from '../../proto/errors.ts';
import { exitOf, firstJsonLine, ProcessFailed, start } from '../processes.ts';
import { manifests } from './manifests.ts';

export interface KubernetesFlags {
  readonly image: string;
  readonly claim: string;
  readonly name?: string;
  readonly gpus: string;
  readonly cpus: string;
  readonly memory: string;
}

/** What a recipe with its fields comes to. */
interface Resolved {
  /** Of the recipe; empty where it is one whole. */
  readonly stages: readonly string[];
  readonly stage: string | undefined;
  readonly workers: number;
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
  prepareArgs: readonly [recipe: string, ...rest: string[]],
  flags: KubernetesFlags,
  print: (text: string) => void,
): Promise<number> {
  const [recipe, ...rest] = prepareArgs;
  // Fields stand by themselves there.
  const train = rest.filter((arg) => arg !== '--set');
  const gpus = Number(flags.gpus);
  if (!(Number.isInteger(gpus) && gpus >= 0))
    throw invalid(`--gpus is ${flags.gpus}, expected a number of GPUs`);
  const resolving = start('worker', ['resolve', ...prepareArgs], ['ignore', 'pipe', 'inherit']);
  let resolved: Resolved;
  try {
    resolved = await firstJsonLine<Resolved>(resolving, 'the check of the config');
  } catch (error) {
    // It has said itself what is wrong.
    if (error instanceof ProcessFailed) return error.exit.code ?? 1;
    throw error;
  }
  await exitOf(resolving);
  const { stages, stage, workers, text, isBuiltIn } = resolved;
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
  const { image, claim, cpus, memory } = flags;
  const objects = manifests({
    ...{ name, out, run: stage === undefined ? out : `${out}/${stage}`, image, claim, workers },
    ...{ gpus, cpus, memory, recipe: isBuiltIn ? recipe : { text }, train },
  });
  print(objects.map((object) => stringify(object, { lineWidth: 0 })).join('---\n'));
  return 0;
}

function invalid(what: string): UsageError {
  return new UsageError('KUBERNETES_INVALID', `${what}.`);
}
