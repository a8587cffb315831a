/** What a run can begin from: another run, or a folder of somebody else's model. Its tensors are read one by one. */
import { join } from 'node:path';
import { UsageError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { newestCheckpointStep } from '../proto/checkpoint-manifest.ts';
import { RUN_PLAN_FILE } from '../proto/run-plan.ts';
import type { RunConfig } from './config-fields.ts';
import { pathMatcher } from './parameter-paths.ts';
import type { PartKinds } from './part-kind.ts';
import { isModelFolder, openPretrainedWeights } from './pretrained/pretrained-weights.ts';
import { openRunSystem } from './run-system.ts';
import { weightsOfRun } from './run-weights.ts';
import type { InitialWords } from './systems/system.ts';

export interface SourceTensor {
  readonly shape: readonly number[];
  /** What the tensor is called in its file, where that is not our name. */
  readonly place?: string;
  /** Float32, little-endian. */
  readonly read: () => Promise<Uint8Array>;
}

export interface InitialSource {
  /** Of a run: how far it was trained, for people. */
  readonly progress?: string;
  /** By our names. */
  readonly tensors: ReadonlyMap<string, SourceTensor>;
  /** What such a model has and these files do not, by our names. */
  readonly lacking: ReadonlySet<string>;
  /** What its parts compute; empty where that is not known. */
  readonly kinds: PartKinds;
}

/** An entry of `init`. */
export type InitialEntry = RunConfig['init'][number];

/** @throws UsageError `INIT_INVALID` for a folder that is neither a run nor a model of transformers */
export async function checkInitialFolder(folder: string): Promise<void> {
  if ((await exists(join(folder, RUN_PLAN_FILE))) || (await isModelFolder(folder))) return;
  throw new UsageError(
    'INIT_INVALID',
    (await exists(folder))
      ? `${folder} is no run folder (it has no ${RUN_PLAN_FILE}), and no model of transformers (it has no config.json)`
      : `init begins from ${folder}, and there is no such folder. Put a run or a model of transformers there ` +
          `(hf download OWNER/NAME --local-dir ${folder}), or name another one in init`,
  );
}

/**
 * @throws UsageError `INIT_INVALID` for a folder that is neither; PretrainedError for a model that is not known here or
 *   whose files cannot be read
 */
export async function openInitialSource(folder: string): Promise<InitialSource> {
  if (await exists(join(folder, RUN_PLAN_FILE))) {
    const { system, config } = await openRunSystem(folder);
    // Named once: a run that is being trained has another newest checkpoint soon.
    const step = await newestCheckpointStep(folder);
    const weights = [...(await weightsOfRun(folder, config, step))];
    const tensors = new Map(
      weights.map(([name, { shape, data }]): [string, SourceTensor] => [
        name,
        { shape, read: () => Promise.resolve(data) },
      ]),
    );
    const progress = `step ${step ?? 0} of ${config.train.steps}`;
    return { tensors, lacking: new Set(), kinds: system.kinds ?? {}, progress };
  }
  await checkInitialFolder(folder);
  const { tensors: all, kinds } = await openPretrainedWeights(folder);
  const tensors = [...all].flatMap(([name, { shape, names, isThere, read }]) => {
    const bytes = async (): Promise<Uint8Array> => {
      const { data } = await read();
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    };
    const own = { shape, place: names.join(' and '), read: bytes };
    return isThere ? [[name, own] as const] : [];
  });
  const lacking = [...all].flatMap(([name, { isThere }]) => (isThere ? [] : [name]));
  return { tensors: new Map(tensors), lacking: new Set(lacking), kinds };
}

/**
 * Whose tokenizer goes with the weights that are taken: any run's, and that of a model whose table of words is taken.
 * @param folders of the entries, in their order
 */
export async function initialWords(
  init: readonly InitialEntry[],
  folders: readonly string[],
): Promise<InitialWords[]> {
  const found: InitialWords[] = [];
  for (const [k, entry] of init.entries()) {
    const folder = folders[k]!;
    if (await exists(join(folder, RUN_PLAN_FILE))) found.push({ folder });
    else if (await isModelFolder(folder)) {
      const { words } = await openPretrainedWeights(folder);
      if (words !== undefined && nameBelow(entry, words.name) !== undefined)
        found.push({ folder, rows: words.rows });
    }
  }
  return found;
}

/** What a tensor is called below what is taken, '' if it is that itself; undefined: it is not taken. */
export function nameBelow(
  { take, skip }: Pick<InitialEntry, 'take' | 'skip'>,
  name: string,
): string | undefined {
  const isBelow = take === '' || name === take || name.startsWith(`${take}/`);
  if (!isBelow) return undefined;
  const rest = take === '' ? name : name.slice(take.length + 1);
  return skip.some((pattern) => pathMatcher(pattern)(rest)) ? undefined : rest;
}
