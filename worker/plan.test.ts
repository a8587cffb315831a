import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openTestEngines, type TestEngines } from './backend/test/engines.ts';
import { uploadBatch } from './batches.ts';
import type { Config } from './config.ts';
import { freezeParameters } from './frozen-parameters.ts';
import { formOf } from './initial-weights.ts';
import { openInitializer } from './initializer.ts';
import { openShapeSystem, planShapes } from './plan-shapes.ts';
import { planRun, planText } from './plan.ts';
import { compilePrograms } from './programs.ts';
import type { Run } from './run.ts';
import type { Row, VideoLanguageSystem } from './systems/system.ts';
import { CAPTIONED, captionedRows, openCaptioned } from './test/captioned-system.ts';
import { valuesOf } from './test/run-folder.ts';

let engines: TestEngines;
before(async () => {
  engines = await openTestEngines();
});
after(() => {
  engines.close();
});

/** A run of clips without files, as far as a plan looks at it. */
function runOf(system: VideoLanguageSystem, config: Config): Run {
  const { seed, steps, microbatches, microbatchSize } = config.train;
  const rows = captionedRows(config);
  const plan = { seed, totalSteps: steps, microbatches, microbatchSize, numTrainSamples: 8 };
  const load = (places: readonly { readonly sample: number }[]) =>
    Promise.resolve(places.map(({ sample }) => ({ ...rows[sample]!, sample })));
  const index = { train: CAPTIONED };
  return { folder: '', plan, config, index, system, trainLoader: { load } } as unknown as Run;
}

/** Of a microbatch's gradient without what is done before it. */
async function gradientFlops({
  system,
  config,
  rows,
}: {
  readonly system: VideoLanguageSystem;
  readonly config: Config;
  readonly rows: readonly Row[];
}): Promise<number> {
  const { xla } = engines;
  const programs = compilePrograms(xla, system, config.optimizer);
  const params = system.init(openInitializer(1));
  const frozen = uploadBatch(xla, { arrays: system.frozen, counts: {}, numTokens: 0 });
  const inputs = uploadBatch(xla, system.assemble(rows));
  const scales = xla.upload(Float32Array.of(1), [1]);
  const embedded = await programs.contrast!.embed(params, frozen, inputs);
  const cotangents = Object.entries(embedded).filter(([name]) => !name.endsWith('Ids'));
  const trees = [params, frozen, inputs, scales, Object.fromEntries(cotangents)] as const;
  return programs.gradient.trace(...trees)!.flops;
}

test('what a contrast computes is part of the work of a step, measured and planned by shapes alike', async () => {
  const planOf = async (microbatches: number) => {
    const { system, config } = await openCaptioned('clip', {
      preset: 'tiny',
      overrides: [`train.microbatches=${microbatches}`],
    });
    const plan = await planRun(runOf(system, config), engines.xla);
    const rows = captionedRows(config).slice(0, config.train.microbatchSize);
    const shapes = { system, rows, trained: plan.parameters, frozen: plan.frozen };
    assert.equal(planShapes(config, shapes, engines.xla).flops, plan.flops);
    return { plan, config, system, rows };
  };
  const [two, four] = [await planOf(2), await planOf(4)];
  // The comparison of all rows grows with the square of their number, all else with it.
  const comparison = (four.plan.flops! - 2 * two.plan.flops!) / 2; // of 4, less twice that of 2: half of it
  const { microbatchSize } = four.config.train;
  const width = (four.config.model as unknown as { readonly embedding: number }).embedding;
  // Similarities, the same again for the backward pass, and gradients by both of what is compared.
  assert.equal(2 * comparison, 4 * 2 * (4 * microbatchSize) ** 2 * width);
  const gradient = await gradientFlops(four);
  const embedding = four.plan.flops! / 4 - gradient - (2 * comparison) / 4;
  // Its forward pass again.
  assert.ok(embedding > 0.3 * gradient && embedding < 0.4 * gradient, `${embedding} ${gradient}`);

  const text = planText(four.plan, four.config);
  const { gradientSeconds, updateSeconds, contrast } = four.plan.measured!;
  const { embedSeconds, compareSeconds } = contrast!;
  const alone = 4 * (gradientSeconds + embedSeconds) + compareSeconds + updateSeconds;
  assert.ok(text.includes(`${alone.toPrecision(3)} s on one worker`), text);
  assert.match(text, /\(embeddings \S+ s a microbatch, their comparison \S+ s, gradient /);
});

test('the time of a run is rounded as a whole: no minute has 60 seconds', async () => {
  const { config } = await openCaptioned('clip', { preset: 'tiny', overrides: ['train.steps=1'] });
  const durationOf = (updateSeconds: number): string | undefined => {
    const about = { parameters: new Map(), frozen: new Map(), devices: 1, platform: 'cpu' };
    const measured = { gradientSeconds: 0, updateSeconds, contrast: undefined };
    const unknown = { peakBytes: undefined, flops: undefined, productFlopsPerSecond: 1 };
    const text = planText({ ...about, ...unknown, measured }, config);
    return /1 steps: (.*) on one worker/.exec(text)?.[1];
  };
  assert.equal(durationOf(119.6), '2 min 0 s');
  assert.equal(durationOf(3599.7), '1 h 0 min');
  assert.equal(durationOf(61.2), '1 min 1 s');
});

test('a measured plan counts frozen parameters as one by shapes does', async () => {
  const { system, config } = await openCaptioned('clip', {
    preset: 'tiny',
    overrides: ['train.frozen=[vision]'],
  });
  const weights = await valuesOf(system.init(openInitializer(1)));
  const frozen = freezeParameters(system, config.train.frozen, formOf(system), weights);
  const plan = await planRun(runOf(frozen, config), engines.xla);
  const shapes = await openShapeSystem(config);
  assert.ok(plan.frozen.get('vision')! > 0);
  assert.deepEqual(plan.frozen, shapes.frozen);
  assert.match(planText(plan, config), /^frozen .*: vision /m);
});
