import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { openRng } from './random.ts';
import { SAMPLE_COSTS_FILE, writeSampleCosts, type SampleCosts } from './sample-costs.ts';
import { openStepOrder, plainStepOrder, type OrderedPlan, type StepOrder } from './step-order.ts';
import { temporaryFolder } from './test/temporary-folder.ts';

const root = await temporaryFolder('step-order');

type Shape = Omit<OrderedPlan, 'costsDigest' | 'numTrainSamples'>;

async function orderOf(shape: Shape, costs: SampleCosts): Promise<StepOrder> {
  const folder = mkdtempSync(join(root, 'run-'));
  const costsDigest = await writeSampleCosts(folder, costs);
  return openStepOrder(folder, { ...shape, numTrainSamples: costs.compute.length, costsDigest });
}

interface Place {
  readonly sample: number;
  readonly epoch: number;
  readonly substitutes: readonly number[];
}

function stepOf(order: StepOrder, { microbatches }: Shape, step: number): Place[][] {
  return Array.from({ length: microbatches }, (_, m) =>
    order
      .placesOf(step, m)
      .map(({ sample, epoch, substitutes }) => ({ sample, epoch, substitutes: substitutes(3) })),
  );
}

function lognormal(seed: number, count: number, purpose = 'costs'): Float32Array {
  const rng = openRng(seed, purpose);
  return Float32Array.from({ length: count }, () => Math.exp(rng.normal()));
}

const flat = (count: number): Float32Array => new Float32Array(count).fill(0.7);

/** A split of text (0), pictures (1) and video (2), mixed. */
function mixedCosts(seed: number, count: number): SampleCosts & { signature: Uint8Array } {
  const rng = openRng(seed, 'signatures');
  const signature = Uint8Array.from(
    { length: count },
    () => [0, 1, 1, 2, 2, 2, 2][rng.integer(7)]!,
  );
  return { compute: lognormal(seed, count), decode: lognormal(seed, count, 'decode'), signature };
}

const KNOWN = [
  ['38/0 33/0 19/0', '11/0 21/0 6/0'],
  ['28/0 12/0 36/0', '8/0 32/0 0/0'],
  ['17/0 3/0 10/0', '30/0 35/0 29/0'],
  ['39/149 2/149 13/149', '25/149 10/149 17/149'],
];

describe('the order of steps', () => {
  it('is the plain one where all samples are alike', async () => {
    for (const [numSamples, microbatches, microbatchSize] of [
      [37, 4, 2],
      [5, 4, 2],
      [1000, 8, 8],
      [1, 1, 1],
    ] as const) {
      const shape = { seed: 7, microbatches, microbatchSize };
      const plain = plainStepOrder({ ...shape, numTrainSamples: numSamples });
      const costed = await orderOf(shape, { compute: flat(numSamples), decode: flat(numSamples) });
      for (const step of [1, 2, 3, 17, 40, 12_345])
        assert.deepEqual(stepOf(costed, shape, step), stepOf(plain, shape, step));
      costed.close();
    }
  });

  it('uses every sample once an epoch, whatever the costs', async () => {
    for (let seed = 0; seed < 6; seed++) {
      const shape = { seed, microbatches: 4, microbatchSize: 4 };
      // A window is 16 steps of 16 places: three of them are one epoch.
      const count = 768;
      const order = await orderOf(shape, { compute: lognormal(seed, count), decode: flat(count) });
      for (let epoch = 0; epoch < 2; epoch++) {
        const used = Array.from({ length: 48 }, (_, i) => stepOf(order, shape, 48 * epoch + i + 1));
        const places = used.flat(2);
        assert.ok(places.every((place) => place.epoch === epoch));
        const samples = places.map(({ sample }) => sample).sort((a, b) => a - b);
        assert.deepEqual(samples, [...Array(count).keys()]);
      }
      order.close();
    }
  });

  it('uses (sample, epoch) never twice where windows and epochs do not end together', async () => {
    const shape = { seed: 5, microbatches: 2, microbatchSize: 3 };
    const costs = mixedCosts(5, 211);
    const order = await orderOf(shape, costs);
    const seen = new Map<string, number>();
    const highest = new Map<number, number>();
    for (let step = 1; step <= 700; step++) {
      for (const { sample, epoch } of stepOf(order, shape, step).flat()) {
        const key = `${sample}/${epoch}`;
        assert.ok(!seen.has(key), key);
        seen.set(key, step);
        highest.set(sample, Math.max(highest.get(sample) ?? 0, epoch));
      }
    }
    // 4,200 places are 19.9 uses of each.
    assert.equal(highest.size, 211);
    for (const [sample, epoch] of highest)
      assert.ok(epoch >= 18 && epoch <= 20, `${sample}: ${epoch}`);
    order.close();
  });

  it('is the same for whoever begins at whatever step, in whatever order steps are asked for', async () => {
    const shape = { seed: 3, microbatches: 4, microbatchSize: 2 };
    const costs = mixedCosts(3, 500);
    const order = await orderOf(shape, costs);
    const whole = Array.from({ length: 120 }, (_, i) => stepOf(order, shape, i + 1));
    for (const first of [1, 2, 17, 64, 119]) {
      const resumed = await orderOf(shape, costs);
      const rest = Array.from({ length: 121 - first }, (_, i) => stepOf(resumed, shape, first + i));
      assert.deepEqual(rest, whole.slice(first - 1));
      resumed.close();
    }
    for (const step of [90, 3, 120, 1])
      assert.deepEqual(stepOf(order, shape, step), whole[step - 1]);
    order.close();
  });

  it('gives every step samples and substitutes of one signature, in proportion', async () => {
    const shape = { seed: 2, microbatches: 4, microbatchSize: 4 };
    const costs = mixedCosts(2, 3000);
    const order = await orderOf(shape, costs);
    const steps = new Map<number, number>();
    for (let step = 1; step <= 187; step++) {
      const signature = order.signatureOf(step);
      steps.set(signature, (steps.get(signature) ?? 0) + 1);
      for (const { sample, substitutes } of stepOf(order, shape, step).flat())
        for (const row of [sample, ...substitutes]) assert.equal(costs.signature[row], signature);
      // At no time is a signature a step away from its share.
      for (const [one, count] of steps) {
        const share = costs.signature.filter((other) => other === one).length / 3000;
        assert.ok(Math.abs(count - step * share) < 1, `step ${step}, signature ${one}`);
      }
    }
    order.close();
  });

  it('draws from sources by their weights, each with epochs of its own', async () => {
    const shape = { seed: 1, microbatches: 4, microbatchSize: 5 };
    const source = Uint8Array.from({ length: 1000 }, (_, row) =>
      row < 700 ? 0 : row < 970 ? 1 : 2,
    );
    const weights = [0.45, 0.45, 0.1];
    const costs = { compute: flat(1000), decode: flat(1000), source, sourceWeights: weights };
    const order = await orderOf(shape, costs);
    const drawn = [0, 0, 0];
    const uses = new Uint32Array(1000);
    let numPlaces = 0;
    for (let step = 1; step <= 300; step++) {
      for (const { sample, epoch, substitutes } of stepOf(order, shape, step).flat()) {
        const from = source[sample]!;
        drawn[from]!++;
        numPlaces++;
        // With equal costs samples keep their order: the epoch is how often the sample was used.
        assert.equal(epoch, uses[sample]!++);
        assert.ok(substitutes.every((row) => source[row] === from));
        for (const [k, count] of drawn.entries())
          assert.ok(Math.abs(count - numPlaces * weights[k]!) < 1, `place ${numPlaces}`);
      }
    }
    order.close();
  });

  it('balances microbatches, and the shares of 1 to 16 workers', async () => {
    const shape = { seed: 11, microbatches: 16, microbatchSize: 8 };
    const [compute, decode] = [lognormal(1, 20_000), lognormal(2, 20_000)];
    const order = await orderOf(shape, { compute, decode });
    const [naive, balanced] = [
      [0, 0],
      [0, 0],
    ] as [number[], number[]];
    const plain = plainStepOrder({ ...shape, numTrainSamples: 20_000 });
    for (let step = 1; step <= 32; step++) {
      for (const [which, totals] of [
        [plain, naive],
        [order, balanced],
      ] as const) {
        const loads = stepOf(which, shape, step).map((microbatch) =>
          microbatch.reduce((sum, { sample }) => sum + compute[sample]!, 0),
        );
        const mean = loads.reduce((a, b) => a + b) / 16;
        totals[0]! += Math.max(...loads) / mean / 32;
        if (which === plain) continue;
        for (let workers = 1; workers <= 16; workers++) {
          for (let rank = 0; rank < workers; rank++) {
            const [first, end] = [rank, rank + 1].map((r) => Math.floor((r * 16) / workers)) as [
              number,
              number,
            ];
            const share = loads.slice(first, end).reduce((a, b) => a + b);
            assert.ok(share < 1.1 * mean * (end - first), `step ${step}, ${rank} of ${workers}`);
          }
        }
      }
    }
    assert.ok(naive[0]! > 1.8 && balanced[0]! < 1.02, `${naive[0]} ${balanced[0]}`);
    order.close();
  });

  it('balances decoding where training costs the same for all', async () => {
    const shape = { seed: 4, microbatches: 8, microbatchSize: 16 };
    const decode = lognormal(6, 5000);
    const order = await orderOf(shape, { compute: flat(5000), decode });
    for (let step = 1; step <= 16; step++) {
      const loads = stepOf(order, shape, step).map((microbatch) =>
        microbatch.reduce((sum, { sample }) => sum + decode[sample]!, 0),
      );
      assert.ok((Math.max(...loads) * 8) / loads.reduce((a, b) => a + b) < 1.1);
    }
    order.close();
  });

  it('stays what it is: this is part of every run ever made', async () => {
    const shape = { seed: 9, microbatches: 2, microbatchSize: 3 };
    const costs = {
      compute: Float32Array.from({ length: 40 }, (_, row) => 1 + ((row * row) % 17)),
      decode: Float32Array.from({ length: 40 }, (_, row) => row % 5),
      signature: Uint8Array.from({ length: 40 }, (_, row) => (row % 4 === 0 ? 1 : 3)),
    };
    const order = await orderOf(shape, costs);
    const known = [1, 2, 3, 1000].map((step) =>
      stepOf(order, shape, step).map((microbatch) =>
        microbatch.map(({ sample, epoch }) => `${sample}/${epoch}`).join(' '),
      ),
    );
    assert.deepEqual(known, KNOWN);
    order.close();
  });
});

describe('the file of costs', () => {
  const costs = { compute: flat(10), decode: flat(10) };

  it('is refused when it is gone, changed, or of another split', async () => {
    const folder = mkdtempSync(join(root, 'run-'));
    const plan = { seed: 1, microbatches: 1, microbatchSize: 1, numTrainSamples: 10 };
    const costsDigest = await writeSampleCosts(folder, costs);
    const open = async (changes: Partial<OrderedPlan>): Promise<void> => {
      (await openStepOrder(folder, { ...plan, costsDigest, ...changes })).close();
    };
    await open({});
    await assert.rejects(open({ numTrainSamples: 11 }), {
      code: 'COSTS_CHANGED',
      message: /10 samples, not 11/,
    });
    const path = join(folder, SAMPLE_COSTS_FILE);
    const bytes = readFileSync(path);
    bytes[40]! ^= 1;
    writeFileSync(path, bytes);
    await assert.rejects(open({}), { code: 'COSTS_CHANGED' });
    rmSync(path);
    await assert.rejects(open({}), { code: 'COSTS_MISSING' });
  });

  it('is not written of costs that make no sense', async () => {
    const wrong: [Partial<SampleCosts>, RegExp][] = [
      [{ decode: flat(9) }, /10 compute costs, but decode has 9/],
      [{ signature: new Uint8Array(3) }, /signature has 3/],
      [{ compute: flat(10).fill(NaN, 4, 5) }, /compute cost of sample 4 is NaN/],
      [{ decode: flat(10).fill(-1, 0, 1) }, /decode cost of sample 0 is -1/],
      [{ source: new Uint8Array(10).fill(1), sourceWeights: [1] }, /source 1 is undefined/],
      [{ sourceWeights: [0] }, /source 0 is 0/],
      [{ sourceWeights: [1, 2] }, /source 1 has a weight, but no sample/],
    ];
    for (const [changes, message] of wrong)
      await assert.rejects(writeSampleCosts(root, { ...costs, ...changes }), {
        code: 'COSTS_INVALID',
        message,
      });
  });
});
