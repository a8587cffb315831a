/** A system's line in the table of systems: its recipe trained as people train it, and without what names it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { compiled } from '../../proto/compiled.mjs';
import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import { exists } from '../../proto/exists.ts';
import { SUMMARY_FILE } from '../../proto/run-plan.ts';
import { evidenceOf, resolveConfig, stagesOf, type Config, type Evidence } from '../config.ts';
import { openTrainedRun } from '../trained-run.ts';
import { numElements } from '../tree.ts';
import { probe, type Probed } from './probe.ts';

const ROOT = path.join(import.meta.dirname, '..', '..');
const VIDEOLOOM = path.join(ROOT, 'deploy', 'videoloom.mjs');
const RECIPES = path.join(ROOT, 'worker', 'recipes');

/** A recipe that says how its system is shown to work. */
export interface ShownRecipe {
  readonly name: string;
  readonly evidence: Evidence;
  /** Its YAML. */
  readonly text: string;
}

/** All recipes with `evidence`, by name. */
export async function shownRecipes(): Promise<ShownRecipe[]> {
  const files = (await readdir(RECIPES)).filter((file) => file.endsWith('.yaml')).sort();
  const found: ShownRecipe[] = [];
  for (const file of files) {
    const text = await readFile(path.join(RECIPES, file), 'utf8');
    const evidence = evidenceOf({ text, file });
    const name = path.basename(file, '.yaml');
    if (evidence !== undefined) found.push({ name, evidence, text });
  }
  return found;
}

/** A figure that a recipe ended with. */
export interface TrainedFigure {
  readonly figure: Figure;
  /** The run's folder, that of its last stage. */
  readonly run: string;
  readonly minutes: number;
}

/**
 * Finished stages by {@link stageKeys}: what two recipes, or a recipe and its ablation, have in common is trained once.
 */
export type FinishedStages = Map<string, { readonly folder: string; readonly minutes: number }>;

/**
 * Trains a recipe with the `videoloom` command, all stages, and gives the figure that its evidence names. What the
 * command prints goes to stderr. A folder that holds the finished run already is read.
 * @param finished stages that need not be trained again; those of this run are added
 */
export async function trainRecipe(
  { name, evidence, text }: ShownRecipe,
  {
    out,
    preset,
    overrides,
    finished,
  }: {
    readonly out: string;
    readonly preset?: string;
    readonly overrides: readonly string[];
    readonly finished: FinishedStages;
  },
): Promise<TrainedFigure> {
  const args = [
    ...[VIDEOLOOM, 'train', name, '--out', out],
    ...(preset === undefined ? [] : ['--preset', preset]),
    ...overrides,
  ];
  const timed = async (more: readonly string[]): Promise<number> => {
    const startMs = performance.now();
    await run(process.execPath, [...args, ...more]);
    return (performance.now() - startMs) / 60_000;
  };
  const keys = stageKeys(name, { text, preset, overrides });
  let [folder, minutes] = [out, keys.size === 0 ? await timed([]) : 0];
  for (const [stage, key] of keys) {
    folder = path.join(out, stage);
    const there = finished.get(key);
    if (there !== undefined && !(await exists(folder)))
      await cp(there.folder, folder, { recursive: true });
    const own = await timed(['--stage', stage]);
    if (there === undefined) finished.set(key, { folder, minutes: own });
    minutes += there?.minutes ?? own;
  }
  const summary = JSON.parse(await readFile(path.join(folder, SUMMARY_FILE), 'utf8')) as {
    figures: Figure[];
  };
  const figure = summary.figures.find((own) => own.name === evidence.figure);
  if (figure === undefined) {
    const names = summary.figures.map((own) => own.name).join(', ');
    throw new Error(`${name} has no figure ${evidence.figure}, which its evidence names: ${names}`);
  }
  return { figure, run: folder, minutes };
}

/** What tells a recipe's stages: their configs and those of the stages that they begin from. */
export function stageKeys(
  name: string,
  given: {
    readonly text: string;
    readonly preset?: string | undefined;
    readonly overrides: readonly string[];
  },
): Map<string, string> {
  const keys = new Map<string, string>();
  for (const stage of stagesOf(given.text, given.preset)) {
    const config: Config = resolveConfig({ ...given, file: name, stage });
    const before = config.init.map(({ from }) => keys.get(from));
    keys.set(stage, JSON.stringify([config, before]));
  }
  return keys;
}

/** What is known of a trained run's model. */
export async function lookInto(
  folder: string,
  cacheDir: string,
): Promise<{ numParameters: number; numTrained: number; probed: Probed[] }> {
  const trained = await openTrainedRun({
    ...{ folder, cacheDir, hasReference: true },
    pluginPath: process.env['PJRT_PLUGIN_PATH'],
  });
  try {
    const numTrained = numElements(trained.params);
    const frozen = Object.entries(trained.run.system.frozen).filter(([name]) =>
      name.startsWith('parameter:'),
    );
    const numFrozen = frozen.reduce((sum, [, { data }]) => sum + data.length, 0);
    const probed = await probe(trained, new AbortController().signal);
    return { numParameters: numTrained + numFrozen, numTrained, probed };
  } finally {
    await trained.close();
  }
}

/** The largest difference from transformers of the models that a system is made of; undefined where there is none. */
export async function parityOf(names: readonly string[]): Promise<number | undefined> {
  if (names.length === 0) return undefined;
  const parity = compiled(new URL('../pretrained/parity/main.ts', import.meta.url));
  const lines = (await run(process.execPath, [parity, ...names])).trim();
  const found = lines
    .split('\n')
    .map((line) => (JSON.parse(line) as { difference: number }).difference);
  return Math.max(...found);
}

/** What a program printed on stdout, which goes to stderr here too. */
async function run(program: string, args: readonly string[]): Promise<string> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'], cwd: process.cwd() });
  let text = '';
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString();
    process.stderr.write(chunk);
  });
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0) throw new Error(`${program} ${args.join(' ')} exited with ${code}`);
  return text;
}
