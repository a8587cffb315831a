import { clipLogMel } from '../video/audio/clip-sound.ts';
import type { Engine } from './backend/engine.ts';
import { uploadBatch } from './batches.ts';
import { compareGlobalBatch } from './contrast.ts';
import type { Programs } from './programs.ts';
import type { Run } from './run.ts';
import type { HostBatch, Row } from './systems/system.ts';
import { disposeTree, type TensorTree } from './tree.ts';

/**
 * Computes the gradient of a batch of black frames: by then the programs of a step are compiled and loaded, so that a
 * worker that joins does not keep the others waiting for that. Gives the gradient on the host.
 */
export async function warmUp(
  { run, engine, programs }: { run: Run; engine: Engine; programs: Programs<TensorTree> },
  params: TensorTree,
  frozen: TensorTree,
): Promise<Float32Array> {
  const { system, config } = run;
  const { microbatches: numMicrobatches } = config.train;
  const objectives = Object.keys(system.objectives);
  const batch: HostBatch = system.assemble(blankRows(run));
  const scales = new Float32Array(objectives.length).fill(1);
  const { contrast } = programs;
  const compared =
    contrast === undefined
      ? undefined
      : await compareGlobalBatch(
          contrast,
          {
            ...{ params, frozen },
            microbatches: Array.from({ length: numMicrobatches }, (_, index) => ({ index, batch })),
          },
          {
            ...{ engine, step: 0, scales },
            members: [{ firstMicrobatch: 0, numMicrobatches }],
            objectives: system.contrast!.objectives.map((name) => objectives.indexOf(name)),
            collectives: {
              allGather: (_step, _name, own) => Promise.resolve([own]),
              allGatherInto: () => Promise.resolve(),
            },
          },
        );
  const inputs = uploadBatch(engine, batch);
  const scaling = engine.upload(scales, [scales.length]);
  const cotangents = compared?.cotangentsOf(0) ?? {};
  const result = await programs.gradient(params, frozen, inputs, scaling, cotangents);
  const [gradient] = await Promise.all([
    programs.readGradient(result.gradient),
    result.sums.data(),
  ]);
  const copy = gradient.slice();
  disposeTree([inputs, scaling, cotangents, result]);
  return copy;
}

/** A microbatch of the run's first samples whose films are black, so that no file is touched. */
export function blankRows({ config, index }: Pick<Run, 'config' | 'index'>): Row[] {
  const { windows, framesPerWindow, frameSize, audio } = config.data;
  const sound = audio && clipLogMel(new Float32Array(0), audio);
  const numFrames = windows * framesPerWindow;
  const frames = new Uint8Array(numFrames * frameSize * frameSize * 3);
  return Array.from({ length: config.train.microbatchSize }, (_, i) => {
    const number = i % index.train.length;
    // A sample of its own: what a system remembers of one is what its film shows.
    const sample = { ...index.train[number]! };
    const { startSeconds, endSeconds } = sample.media[0] ?? { startSeconds: 0, endSeconds: 0 };
    const timesSeconds = Array.from(
      { length: numFrames },
      (_each, k) => startSeconds + ((endSeconds - startSeconds) * (k + 0.5)) / numFrames,
    );
    return {
      ...{ sample, number, epoch: 0, frames, timesSeconds },
      ...(sound && { audio: sound }),
    };
  });
}
