/**
 * Which samples form the microbatches of a step: a pure function of (seed, costs, step), whoever asks, whenever, for
 * however many workers.
 *
 * Without a file of costs the places of a step are consecutive places of the sample order. With one
 *
 * - every step has samples of one signature alone, so that all its microbatches go through the same modules and run the
 *   same program: a text-only sample beside a video can neither leave a sharded parameter waiting nor pad a batch.
 *   Signatures take turns in proportion to their samples (or weights), sources within a step likewise, place by place.
 *   (A quota of each signature in every microbatch would keep that promise too, but needs microbatches as large as the
 *   rarest signature is rare, and pads all of them.) Single-modality batches as in LLaVA-1.5, arXiv:2310.03744.
 * - each pool goes through its own epochs: every sample once, then all again in another order;
 * - the samples of some steps of a signature (a window) are distributed so that the microbatches of a step cost the same,
 *   and the microbatches are arranged so that workers' contiguous shares cost the same.
 *
 * Where all samples are alike, this is the order without costs.
 */

import { arrangeEvenly, balanceWindow, loadsOf } from './balance.ts';
import { openDraws, type DrawSequence } from './mixture.ts';
import { openRng } from './random.ts';
import type { RunPlan } from './run-plan.ts';
import { openSampleCosts, type SampleCostsReader, type SamplePool } from './sample-costs.ts';
import { positionOf, sampleAt, substitutesAt } from './sample-order.ts';

/** What stands at one place of a step. */
export interface StepPlace {
  /** Row of the training split. */
  readonly sample: number;
  /** How often this sample was used before: it keys the sample's randomness. */
  readonly epoch: number;
  /** Samples of the same pool to take, in this order, in its stead. */
  readonly substitutes: (count: number) => number[];
}

/** The order of a run's samples. */
export interface StepOrder {
  /** The places of a microbatch; steps count from 1. */
  placesOf(step: number, microbatch: number): StepPlace[];
  /** What the samples of a step go through; 0 where nobody has said. */
  signatureOf(step: number): number;
  /** Lets go of the file of costs. May be called twice. */
  close(): void;
}

/** What fixes the order, beside the file of costs. */
export type OrderedPlan = Pick<
  RunPlan,
  'seed' | 'microbatches' | 'microbatchSize' | 'numTrainSamples' | 'costsDigest'
>;

/**
 * The order of the run in `folder`.
 * @throws VideoloomError COSTS_MISSING, COSTS_CHANGED
 */
export async function openStepOrder(folder: string, plan: OrderedPlan): Promise<StepOrder> {
  const { costsDigest, numTrainSamples } = plan;
  if (costsDigest === undefined) return plainStepOrder(plan);
  return costedStepOrder(plan, await openSampleCosts(folder, { costsDigest, numTrainSamples }));
}

/** The order of samples of which nothing is known. */
export function plainStepOrder(plan: Omit<OrderedPlan, 'costsDigest'>): StepOrder {
  const order = { seed: plan.seed, numSamples: plan.numTrainSamples };
  return {
    placesOf: (step, microbatch) =>
      Array.from({ length: plan.microbatchSize }, (_, i) => {
        const position = positionOf(plan, step, microbatch, i);
        return {
          ...sampleAt(order, position),
          substitutes: (count) => substitutesAt(order, position, count),
        };
      }),
    signatureOf: () => 0,
    close: () => undefined,
  };
}

// Windows of more samples would balance no better, and take longer to make than a coordinator should be busy.
const MAX_WINDOW_SAMPLES = 8192;
const MAX_WINDOW_STEPS = 16;
/** Bound of the places of made windows that are kept; about 40 bytes each. */
const MAX_KEPT_PLACES = 1 << 19;

/** Places of a window of steps, in the order in which they are used. */
interface Window {
  readonly rows: Uint32Array;
  readonly epochs: Uint32Array;
  /** Number of the pool, and position within the pool's order. */
  readonly pools: Uint16Array;
  readonly positions: Float64Array;
}

/** Pools that share a signature, and how they take turns place by place. */
interface SignaturePools {
  readonly signature: number;
  readonly pools: readonly number[];
  readonly turns: DrawSequence;
  readonly windowSteps: number;
}

/** The order of samples of which costs are known; `costs` is closed with it. */
export function costedStepOrder(
  plan: Omit<OrderedPlan, 'costsDigest'>,
  costs: SampleCostsReader,
): StepOrder {
  const { seed, microbatches, microbatchSize } = plan;
  const numPerStep = microbatches * microbatchSize;
  const signatures = bySignature(costs.pools, numPerStep);
  const turns = openDraws(
    signatures.map(({ pools }) => pools.reduce((sum, pool) => sum + costs.pools[pool]!.weight, 0)),
  );
  const orders = costs.pools.map(({ numSamples }, pool) => ({ seed, numSamples, pool }));
  const made = new Map<string, Window>();

  const windowOf = (part: number, number: number): Window => {
    const key = `${part}/${number}`;
    const window = made.get(key) ?? makeWindow(part, number);
    // The last used stands last.
    made.delete(key);
    made.set(key, window);
    const most = Math.max(2, Math.floor(MAX_KEPT_PLACES / window.rows.length));
    for (const oldest of made.keys()) {
      if (made.size <= most) break;
      made.delete(oldest);
    }
    return window;
  };

  const makeWindow = (part: number, number: number): Window => {
    const { signature, pools, turns: sources, windowSteps } = signatures[part]!;
    const length = windowSteps * numPerStep;
    const drawn = Array.from({ length }, (_, i) => {
      const { part: source, before: position } = sources.at(number * length + i);
      const pool = pools[source]!;
      const { sample: index, epoch } = sampleAt(orders[pool]!, position);
      return { pool, position, epoch, ...costs.sampleOf(pool, index) };
    });
    const compute = Float64Array.from(drawn, (sample) => sample.compute);
    const decode = Float64Array.from(drawn, (sample) => sample.decode);
    // Where training costs the same for all, decoding is what makes a step slow.
    const isDecodeBound = compute.every((cost) => cost === compute[0]);
    const shape = { steps: windowSteps, microbatches, microbatchSize };
    const steps = balanceWindow(
      isDecodeBound ? decode : compute,
      shape,
      openRng(seed, 'window-steps', signature, number),
    );
    const used = steps.flatMap((step) => {
      const computeLoads = relative(loadsOf(step, compute));
      const decodeLoads = relative(loadsOf(step, decode));
      return arrangeEvenly(computeLoads.map((load, m) => load + decodeLoads[m]!)).flatMap((m) =>
        step[m]!.map((index) => drawn[index]!),
      );
    });
    return {
      rows: Uint32Array.from(used, ({ row }) => row),
      epochs: Uint32Array.from(used, ({ epoch }) => epoch),
      pools: Uint16Array.from(used, ({ pool }) => pool),
      positions: Float64Array.from(used, ({ position }) => position),
    };
  };

  return {
    placesOf(step, microbatch) {
      const { part, before } = turns.at(step - 1);
      const { windowSteps } = signatures[part]!;
      const { rows, epochs, pools, positions } = windowOf(part, Math.floor(before / windowSteps));
      const first = (before % windowSteps) * numPerStep + microbatch * microbatchSize;
      return Array.from({ length: microbatchSize }, (_, i) => {
        const [pool, position] = [pools[first + i]!, positions[first + i]!];
        return {
          sample: rows[first + i]!,
          epoch: epochs[first + i]!,
          substitutes: (count) =>
            substitutesAt(orders[pool]!, position, count).map(
              (index) => costs.sampleOf(pool, index).row,
            ),
        };
      });
    },
    signatureOf: (step) => signatures[turns.at(step - 1).part]!.signature,
    close() {
      made.clear();
      costs.close();
    },
  };
}

function bySignature(pools: readonly SamplePool[], numPerStep: number): SignaturePools[] {
  const signatures = [...new Set(pools.map(({ signature }) => signature))];
  return signatures.map((signature) => {
    const members = [...pools.keys()].filter((pool) => pools[pool]!.signature === signature);
    const turns = openDraws(members.map((pool) => pools[pool]!.weight));
    const numSamples = members.reduce((sum, pool) => sum + pools[pool]!.numSamples, 0);
    // Of more than half an epoch, uses of the same sample would come together in a step.
    const steps = Math.floor(Math.min(MAX_WINDOW_SAMPLES, numSamples / 2) / numPerStep);
    const windowSteps = Math.max(1, Math.min(MAX_WINDOW_STEPS, steps));
    return { signature, pools: members, turns, windowSteps };
  });
}

/** Loads in parts of their mean; zeros stay zeros. */
function relative(loads: readonly number[]): number[] {
  const mean = loads.reduce((a, b) => a + b, 0) / loads.length;
  return loads.map((load) => (mean === 0 ? 0 : load / mean));
}
