import { setMaxListeners } from 'node:events';
import type { Figure } from '../../proto/gen/videoloom/v1/run.ts';
import { plainStepOrder } from '../../proto/step-order.ts';
import type { Engine } from '../backend/engine.ts';
import { rowsOf, uploadBatch } from '../batches.ts';
import { compareGlobalBatch } from '../contrast.ts';
import { evaluateHeldOut } from '../eval/held-out.ts';
import { adamWScalars } from '../optim/adamw.ts';
import { learningRateAt } from '../optim/schedule.ts';
import { parameterShardings, rowSharding } from '../parallel/sharding.ts';
import { openCollectives } from '../parallel/mesh-collectives.ts';
import { compilePrograms } from '../programs.ts';
import type { Run } from '../run.ts';
import { disposeState, initState, type TrainingState } from '../state.ts';
import { disposeTree, leavesOf } from '../tree.ts';

/**
 * Trains a prepared run in this process, one microbatch a step and no coordinator: for tests that compare many models.
 */
export async function trainInProcess(
  run: Run,
  engine: Engine,
  onStep: (step: number, means: Record<string, number>) => void = () => undefined,
): Promise<Figure[]> {
  const { config, system } = run;
  const { steps, microbatches, microbatchSize, seed } = config.train;
  const shape = { microbatches: 1, microbatchSize: microbatches * microbatchSize };
  const objectives = Object.keys(system.objectives);
  const frozen = uploadBatch(engine, { arrays: system.frozen, counts: {}, numTokens: 0 });
  const { signal } = new AbortController();
  setMaxListeners(0, signal);
  const order = plainStepOrder({ ...shape, seed, numTrainSamples: run.index.train.length });
  let state: TrainingState = initState(system, seed);
  const programs = compilePrograms(engine, system, config.optimizer, {
    parameters: parameterShardings(engine.mesh, config.parallel, leavesOf(state.params)),
    rows: rowSharding(engine.mesh),
  });
  for (let step = 1; step <= steps; step++) {
    const places = order.placesOf(step, 0);
    const clips = await run.trainLoader.load(
      places.map(({ sample, epoch }) => ({ sample, epoch, substitutes: [] })),
      signal,
    );
    const batch = system.assemble(rowsOf(run.index.train, places, clips));
    const scales = Float32Array.from(objectives, (name) =>
      batch.counts[name] ? system.objectives[name]! / batch.counts[name] : 0,
    );
    const inputs = uploadBatch(engine, batch);
    const scaling = engine.upload(scales, [scales.length]);
    const compared =
      programs.contrast === undefined
        ? undefined
        : await compareGlobalBatch(
            programs.contrast,
            { params: state.params, frozen, microbatches: [{ index: 0, batch }] },
            {
              ...{ engine, step, scales },
              members: [{ firstMicrobatch: 0, numMicrobatches: 1 }],
              objectives: system.contrast!.objectives.map((name) => objectives.indexOf(name)),
              collectives: {
                allGather: (_step, _name, own) => Promise.resolve([own]),
                allGatherInto: () => Promise.resolve(),
              },
            },
          );
    const cotangents = compared?.cotangentsOf(0) ?? {};
    const { gradient, sums } = await programs.gradient(
      state.params,
      frozen,
      inputs,
      scaling,
      cotangents,
    );
    const values = (await programs.readGradient(gradient)).slice();
    const sumValues = (await sums.data()).slice();
    compared?.addTo(values, sumValues);
    const norm = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
    const learningRate = learningRateAt(config.optimizer, step, steps);
    const gradientScale = Math.min(1, config.optimizer.clipNorm / norm);
    const scalars = adamWScalars(config.optimizer, { step, learningRate, gradientScale });
    const next = await programs.update(
      state.params,
      state.optimizer,
      programs.uploadGradient(values, state.params),
      engine.upload(scalars, [4]),
    );
    state = { step, params: next.params, optimizer: next.state };
    onStep(
      step,
      Object.fromEntries(
        objectives.map((name, k) => [name, sumValues[2 * k]! / (batch.counts[name] ?? 0)]),
      ),
    );
    disposeTree([inputs, scaling, cotangents, gradient, sums]);
  }
  const collectives = await openCollectives({
    listenAddress: '127.0.0.1:0',
    runId: run.plan.runId,
    workerId: 'alone',
    timeoutMs: 60_000,
  });
  try {
    const self = { rank: 0, workerId: 'alone', tensorAddress: collectives.address };
    await collectives.configure({
      number: 1,
      members: [{ ...self, firstMicrobatch: 0, numMicrobatches: 1 }],
    });
    return await evaluateHeldOut(
      {
        ...{ run, engine, programs, frozen, microbatchSize: shape.microbatchSize },
        ...{ collectives, rank: 0, worldSize: 1, step: state.step, signal },
      },
      state.params,
    );
  } finally {
    await collectives.close();
    disposeTree(frozen);
    disposeState(state);
  }
}
