/** A system's line in the table of systems: its recipe trained as people train it, and without what names it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { compiled } from '../../proto/compiled.mjs';
import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import { evidenceOf, stagesOf, type Evidence } from '../config.ts';
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
  /** Its last stage; undefined where it has none. */
  readonly lastStage: string | undefined;
}

/** All recipes with `evidence`, by name. */
export async function shownRecipes(): Promise<ShownRecipe[]> {
  const files = (await readdir(RECIPES)).filter((file) => file.endsWith('.yaml')).sort();
  const found: ShownRecipe[] = [];
  for (const file of files) {
    const text = await readFile(path.join(RECIPES, file), 'utf8');
    const evidence = evidenceOf({ text, file });
    const name = path.basename(file, '.yaml');
    if (evidence !== undefined) found.push({ name, evidence, lastStage: stagesOf(text).at(-1) });
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
 * Trains a recipe with the `videoloom` command, all stages, and gives the figure that its evidence names. What the
 * command prints goes to stderr. A folder that holds the finished run already is read.
 */
export async function trainRecipe(
  { name, evidence, lastStage }: ShownRecipe,
  { out, preset, overrides }: { out: string; preset?: string; overrides: readonly string[] },
): Promise<TrainedFigure> {
  const startMs = performance.now();
  await run(process.execPath, [
    ...[VIDEOLOOM, 'train', name, '--out', out],
    ...(preset === undefined ? [] : ['--preset', preset]),
    ...overrides,
  ]);
  const minutes = (performance.now() - startMs) / 60_000;
  const folder = lastStage === undefined ? out : path.join(out, lastStage);
  const summary = JSON.parse(await readFile(path.join(folder, 'summary.json'), 'utf8')) as {
    figures: Figure[];
  };
  const figure = summary.figures.find((own) => own.name === evidence.figure);
  if (figure === undefined) {
    const names = summary.figures.map((own) => own.name).join(', ');
    throw new Error(`${name} has no figure ${evidence.figure}, which its evidence names: ${names}`);
  }
  return { figure, run: folder, minutes };
}

/** What is known of a trained run's model. */
export async function lookInto(
  folder: string,
  cacheDir: string,
): Promise<{ numParameters: number; numTrained: number; probed: Probed[] }> {
  const trained = await openTrainedRun({
    ...{ folder, cacheDir },
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
