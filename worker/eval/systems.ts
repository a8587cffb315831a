/**
 * The table of systems: trains each recipe that has `evidence`, as people train it, and the same recipe without the part
 * that names its system; probes it with fewer and reordered frames; compares the models it is made of with transformers.
 * Prints a JSON line a system, at the end the tables as Markdown on stderr. Runs are kept in `runs/systems`, and one that
 * is finished is not trained again (its minutes are then those of reading it).
 *
 *     npm run systems [-- NAME...] [--seed 1] [--out runs/systems]
 */
import path from 'node:path';
import { parseArgs } from 'node:util';
import { reportFatal, UsageError } from '../../proto/errors.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import { PROBES, type Probed } from './probe.ts';
import {
  lookInto,
  parityOf,
  shownRecipes,
  trainRecipe,
  type FinishedStages,
  type ShownRecipe,
} from './systems-report.ts';

/** A system's line. */
interface Line {
  readonly recipe: string;
  readonly parameters: number;
  readonly trained: number;
  readonly figure: string;
  readonly value: number;
  readonly chance: number;
  readonly count: number;
  readonly without: string;
  readonly ablation: number;
  readonly minutes: number;
  readonly parity: number | undefined;
  readonly probes: readonly Probed[];
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      seed: { type: 'string', default: '1' },
      out: { type: 'string', default: path.join('runs', 'systems') },
    },
  });
  const all = await shownRecipes();
  const names = all.map(({ name }) => name);
  const unknown = positionals.find((name) => !names.includes(name));
  if (unknown !== undefined) {
    throw new UsageError(
      'USAGE',
      `no recipe ${unknown} has evidence; those that have: ${names.join(', ')}`,
    );
  }
  const wanted = all.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
  const lines: Line[] = [];
  const finished: FinishedStages = new Map();
  for (const recipe of wanted) {
    const line = await lineOf(recipe, values, finished);
    lines.push(line);
    process.stdout.write(`${JSON.stringify(line)}\n`);
  }
  process.stderr.write(`\n${systemsTable(lines)}\n${probesTable(lines)}`);
}

async function lineOf(
  recipe: ShownRecipe,
  { seed, out }: { readonly seed: string; readonly out: string },
  finished: FinishedStages,
): Promise<Line> {
  const { name, evidence } = recipe;
  const overrides = [`train.seed=${seed}`];
  const folder = path.join(out, `${name}-${seed}`);
  const whole = await trainRecipe(recipe, { out: folder, overrides, finished });
  const ablated = await trainRecipe(recipe, {
    ...{ out: `${folder}-${evidence.ablation}`, preset: evidence.ablation, overrides, finished },
  });
  const { numParameters, numTrained, probed } = await lookInto(
    whole.run,
    userCacheDir(process.env),
  );
  const { value, chance, count } = whole.figure;
  return {
    recipe: name,
    parameters: numParameters,
    trained: numTrained,
    figure: evidence.figure,
    ...{ value, chance, count, without: evidence.without, ablation: ablated.figure.value },
    minutes: whole.minutes,
    parity: await parityOf(evidence.parity),
    probes: probed,
  };
}

function systemsTable(lines: readonly Line[]): string {
  return table(
    ['recipe', 'parameters', 'held out', 'figure', 'chance', 'ablation', 'minutes', 'parity'],
    lines.map((line) => [
      line.recipe,
      line.parameters.toLocaleString('en-US'),
      line.figure,
      line.value.toFixed(3),
      line.chance.toFixed(3),
      `${line.ablation.toFixed(3)} without ${line.without}`,
      line.minutes.toFixed(1),
      line.parity === undefined ? 'no peer' : line.parity.toExponential(1),
    ]),
  );
}

function probesTable(lines: readonly Line[]): string {
  return table(
    ['recipe', 'held out', 'full', ...PROBES, 'chance', 'n'],
    lines.flatMap(({ recipe, probes }) =>
      probes.map(({ name, full, probes: own, chance, count }) => [
        ...[recipe, name],
        ...[full, ...PROBES.map((change) => own[change]), chance].map((value) => value.toFixed(3)),
        String(count),
      ]),
    ),
  );
}

/** Markdown. */
function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |\n`;
  return [line(header), line(header.map(() => '---')), ...rows.map(line)].join('');
}

main().catch((error: unknown) => {
  process.exitCode = reportFatal(error);
});
