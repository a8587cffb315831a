/**
 * What operators on tokens save: one training step (forward, backward, AdamW) of an early-fusion model with all of its
 * visual tokens and, by turns in the same run, with each operator, beside the tokens that it takes away. Prints a JSON
 * line a figure, its ratio against all tokens, and at the end a table (on stderr).
 *
 *     node --import tsx worker/bench/tokens.ts [--rounds 5] [--steps 2] [--operators NAME]...
 *       [--precision float32|bfloat16] [--cache DIR]
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { homedir, loadavg } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';

import * as tf from '@tensorflow/tfjs-core';

import { hasTrainingMemory, withTrainingMemory } from '../../proto/memory-environment.ts';
import { openEngine } from '../backend/engine.ts';
import type { Engine } from '../backend/engine.ts';
import type { Precision } from '../backend/jit.ts';
import { adamWScalars } from '../optim/adamw.ts';
import { mapTree } from '../tree.ts';
import { median, report } from './report.ts';
import { ADAMW, trainStepOf } from './step-bench.ts';
import { OPERATORS, tokenModel } from './token-models.ts';

const BASELINE = 'all tokens';

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    steps: { type: 'string', default: '2' },
    operators: { type: 'string', multiple: true, default: Object.keys(OPERATORS) },
    precision: { type: 'string', default: 'float32' },
    cache: { type: 'string', default: path.join(homedir(), '.cache', 'videoloom', 'bench') },
  },
});

/** A model in training, and what its steps took. */
interface Runner {
  readonly name: string;
  readonly numTokens: readonly number[];
  readonly flops: number;
  readonly tempBytes: number;
  readonly maskSeconds: number;
  readonly seconds: number[];
  readonly cpuSeconds: number[];
  step(): Promise<void>;
}

async function openRunner(engine: Engine, name: string): Promise<Runner> {
  const model = tokenModel(engine, name);
  const { numTokens, maskSeconds, params, batch } = model;
  const step = engine.compile(trainStepOf(model), { name: `tokens: ${name}`, donate: [0] });
  const zeros = () => mapTree(params, ({ shape }) => tf.zeros(shape));
  let state = { params, optimizer: { first: zeros(), second: zeros() } };
  let count = 0;
  const scalarsAt = (n: number) =>
    engine.upload(adamWScalars(ADAMW, { step: n, learningRate: 1e-4, gradientScale: 1 }), [4]);
  const { flops, memory } = (await step.lower(state, batch, scalarsAt(1)))!;
  const runner: Runner = {
    ...{ name, numTokens, flops, tempBytes: memory.tempBytes, maskSeconds },
    seconds: [],
    cpuSeconds: [],
    async step() {
      const scalars = scalarsAt(++count);
      const [before, begin] = [process.cpuUsage(), performance.now()];
      const result = await step(state, batch, scalars);
      runner.seconds.push((performance.now() - begin) / 1000);
      const { user, system } = process.cpuUsage(before);
      runner.cpuSeconds.push((user + system) / 1e6);
      state = result.state;
      tf.dispose([result.loss, scalars]);
    },
  };
  return runner;
}

function printFigures(runners: readonly Runner[]): void {
  const baseline = runners.find(({ name }) => name === BASELINE);
  const best = ({ seconds }: Runner): number => Math.min(...seconds) * 1000;
  const meanTokens = ({ numTokens }: Runner): number =>
    numTokens.reduce((a, b) => a + b, 0) / numTokens.length;
  const summaries: Record<string, [unit: string, (runner: Runner) => number]> = {
    'best time': ['ms', best],
    'median time': ['ms', ({ seconds }) => median(seconds) * 1000],
    'CPU time': ['ms', ({ cpuSeconds }) => median(cpuSeconds) * 1000],
    work: ['GFLOP', ({ flops }) => flops / 1e9],
    'temporary memory': ['MiB', ({ tempBytes }) => tempBytes / 2 ** 20],
    'visual tokens a layer': ['tokens', meanTokens],
  };
  const table = runners.map((runner) => {
    for (const [metric, [unit, summary]] of Object.entries(summaries)) {
      const figure = { name: `tokens/${runner.name}`, metric, value: summary(runner), unit };
      const beside =
        baseline === undefined || runner === baseline
          ? []
          : [{ name: BASELINE, value: summary(baseline) }];
      report({ ...figure, better: 'lower' }, beside);
    }
    if (runner.maskSeconds > 0) {
      const value = runner.maskSeconds * 1e6;
      report({ name: `tokens/${runner.name}`, metric: 'masks of a batch', value, unit: 'us' });
    }
    const of = (value: (r: Runner) => number): string =>
      baseline === undefined ? '' : (value(baseline) / value(runner)).toFixed(2);
    return {
      operator: runner.name,
      'visual tokens': [...new Set(runner.numTokens)].join(' '),
      removed: `${(100 * (1 - meanTokens(runner) / runners[0]!.numTokens[0]!)).toFixed(0)} %`,
      'best, ms': best(runner).toFixed(0),
      gain: of(best),
      'gain in CPU': of(({ cpuSeconds }) => median(cpuSeconds)),
      'gain in work': of(({ flops }) => flops),
    };
  });
  const columns = Object.keys(table[0]!) as (keyof (typeof table)[number])[];
  const widths = columns.map((c) => Math.max(c.length, ...table.map((row) => row[c].length)));
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i]!)).join(' | ')} |\n`;
  process.stderr.write(line(columns) + line(widths.map((width) => '-'.repeat(width))));
  for (const row of table) process.stderr.write(line(columns.map((column) => row[column])));
}

if (hasTrainingMemory(process.env)) {
  const precision = flags.precision as Precision;
  const engine = await openEngine({ engine: 'xla', cacheDir: flags.cache, precision });
  report({ name: 'tokens', metric: 'load before', value: loadavg()[0]!, unit: 'processes' });
  const runners: Runner[] = [];
  for (const name of flags.operators) runners.push(await openRunner(engine, name));
  for (const runner of runners) await runner.step();
  for (const runner of runners) runner.seconds.length = runner.cpuSeconds.length = 0;
  for (let round = 0; round < Number(flags.rounds); round++) {
    for (const runner of runners) {
      for (let i = 0; i < Number(flags.steps); i++) await runner.step();
    }
  }
  printFigures(runners);
  report({ name: 'tokens', metric: 'load after', value: loadavg()[0]!, unit: 'processes' });
  engine.close();
} else {
  // The settings count from the start of a process.
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    stdio: 'inherit',
    env: withTrainingMemory(process.env),
  });
  const [exitCode] = (await once(child, 'exit')) as [number | null];
  process.exitCode = exitCode ?? 1;
}
