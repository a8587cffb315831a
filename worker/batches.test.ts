import assert from 'node:assert/strict';
import { setMaxListeners } from 'node:events';
import { mkdir, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { StepLease } from '../proto/gen/videoloom/v1/coordinator.ts';
import { plainStepOrder } from '../proto/step-order.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { openDataAccess, type DataAccess } from '../video/loading/data-access.ts';
import { openClipLoader, type ClipLoader } from '../video/loading/loader.ts';
import { makeIndex } from '../video/index/make-index.ts';
import type { SampleIndex } from '../video/index/sample-index.ts';
import { makeFilm, WITHOUT_FFMPEG } from '../video/test/films.ts';
import { openBatchSource, type BatchSourceOptions, type StepBatches } from './batches.ts';
import type { HostBatch, Row } from './systems/system.ts';
import type { PrefetchState } from './prefetch.ts';

const NUM_CLIPS = 6;
const SHAPE = { frameSize: 16, numWindows: 2, framesPerWindow: 2 };
const PIXELS = 2 * 2 * 16 * 16 * 3;
const PLAN = { seed: 3, microbatches: 2, microbatchSize: 2, numTrainSamples: NUM_CLIPS };
const STEP_BYTES = 4 * 4 * PIXELS;

/** Pixels as they are, a row a clip. */
function assemble(rows: readonly Row[]): HostBatch {
  const data = new Float32Array(rows.length * PIXELS);
  for (const [i, { frames }] of rows.entries()) data.set(frames, i * PIXELS);
  return { arrays: { data: { data, shape: [rows.length, PIXELS] } }, counts: {}, numTokens: 0 };
}

describe('a source of batches', { skip: WITHOUT_FFMPEG }, () => {
  let scratch: string;
  let data: DataAccess;
  let index: SampleIndex;
  before(async () => {
    scratch = await temporaryFolder('batches');
    const root = join(scratch, 'clips');
    await mkdir(root);
    data = await openDataAccess({ root, decoders: 1, cacheDir: scratch });
    for (let i = 0; i < NUM_CLIPS; i++) {
      const hue = ['-vf', `hue=h=${i * 60}`, '-c:v', 'libx264', '-movflags', '+faststart'];
      await makeFilm(join(root, `${i}.mp4`), { seconds: 1, size: '64x48', rate: 10, args: hue });
    }
    index = await makeIndex({ ...data, clipSeconds: 10, heldOutFraction: 0 });
    // Found out about when it is decoded.
    await truncate(join(root, '4.mp4'), 1500);
  });
  after(() => data.close());

  const openLoader = (): ClipLoader => openClipLoader({ index, ...data, cacheBytes: 0, ...SHAPE });

  const order = plainStepOrder(PLAN);
  const leaseOf = (step: number): StepLease => ({
    step,
    committedBefore: false,
    microbatches: [0, 1].map((microbatch) => ({
      index: microbatch,
      samples: order.placesOf(step, microbatch).map(({ sample, epoch, substitutes }) => {
        return { sample, epoch, substitutes: substitutes(3), recorded: undefined };
      }),
    })),
  });

  /** Trains through nine steps without computing anything; the coordinator leases no more than it may. */
  async function takeAll(
    options: Partial<BatchSourceOptions>,
  ): Promise<{ steps: StepBatches[]; states: PrefetchState[]; farthest: number }> {
    let [committed, farthest] = [0, 0];
    const states: PrefetchState[] = [];
    const { signal } = new AbortController();
    // Every clip listens to it.
    setMaxListeners(0, signal);
    const prefetchSteps = options.prefetchSteps ?? 3;
    const source = openBatchSource({
      ...{ system: { assemble }, loader: openLoader(), samples: index.train },
      lease: (first) => {
        farthest = Math.max(farthest, first - committed);
        return Promise.resolve(first > committed + 1 + prefetchSteps ? [] : [leaseOf(first)]);
      },
      ...{ prefetchSteps, prefetchBytes: 2 ** 30, lastStep: 9 },
      signal,
      onTake: (state) => states.push(state),
      ...options,
    });
    const steps: StepBatches[] = [];
    for (let step = 1; step <= 9; step++) {
      steps.push(await source.take(step));
      committed = step;
    }
    return { steps, states, farthest };
  }

  it('gives the same batches however far ahead it may work', async () => {
    const few = await takeAll({ prefetchSteps: 1 });
    const many = await takeAll({ prefetchSteps: 4 });
    assert.deepEqual(many.steps, few.steps);
    assert.deepEqual(
      few.steps.map(({ step }) => step),
      [1, 2, 3, 4, 5, 6, 7, 8, 9],
    );
    assert.ok(few.states.every(({ depth }) => depth === 1) && few.farthest === 2);
    // Nothing is computed between two takes, so training waits at each.
    assert.equal(many.states.at(-1)!.depth, 4);
    assert.equal(many.farthest, 5);
  });

  it('has the pixels of the leased samples, and names what stands in for one', async () => {
    const { steps } = await takeAll({});
    const loader = openLoader();
    const bad = index.train.findIndex(({ media }) => index.files[media[0]!.file]!.path === '4.mp4');
    let numBad = 0;
    for (const { step, microbatches, skipped } of steps) {
      for (const { index: microbatch, batch } of microbatches) {
        for (const [i, place] of leaseOf(step).microbatches[microbatch]!.samples.entries()) {
          const taken = place.sample === bad ? place.substitutes[0]! : place.sample;
          const [clip] = await loader.load([{ sample: taken, epoch: 0, substitutes: [] }]);
          const pixels = batch.arrays['data']!.data.subarray(i * PIXELS, (i + 1) * PIXELS);
          assert.deepEqual(Float32Array.from(clip!.frames), pixels);
          if (place.sample !== bad) continue;
          numBad++;
          const record = skipped.find((skip) => skip.place === microbatch * 2 + i);
          assert.equal(record?.sample, bad);
          assert.equal(record.substitute, taken);
        }
      }
    }
    assert.equal(steps.flatMap(({ skipped }) => skipped).length, numBad);
    assert.ok(numBad > 0);
  });

  it('keeps to the bound on bytes', async () => {
    const { states } = await takeAll({ prefetchSteps: 8, prefetchBytes: 2.5 * STEP_BYTES });
    assert.ok(states.every(({ depth, readyBytes }) => depth <= 2 && readyBytes <= 2 * STEP_BYTES));
    assert.equal(states.at(-1)!.depth, 2);
  });
});
