/** What trains, with a black box that watches: the training loop does not know of it. */
import { crc32c } from '@node-rs/crc32';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import type { StepLease } from '../../proto/gen/videoloom/v1/coordinator.ts';
import type { Ledger, Phase } from '../ledger.ts';
import type { Collectives, MeshGeneration } from '../parallel/collectives.ts';
import type { BlackBox } from './black-box.ts';

/** A ledger whose phases are recorded. */
export function recordedLedger(ledger: Ledger, box: BlackBox): Ledger {
  const enter = (phase: Phase): void => {
    const isNew = phase !== ledger.phase;
    ledger.enter(phase);
    if (isNew) box.record('phase', { text: phase });
  };
  return overlay(ledger, {
    enter,
    async within<T>(phase: Phase, work: () => Promise<T>): Promise<T> {
      const outer = ledger.phase;
      enter(phase);
      try {
        return await work();
      } finally {
        enter(outer);
      }
    },
  });
}

/** Collectives whose beginning, end and results are recorded. */
export function recordedCollectives(collectives: Collectives, box: BlackBox): Collectives {
  let generation = 0;
  const recorded = async <T>(text: string, step: number, work: () => Promise<T>): Promise<T> => {
    box.record('begin', { generation, step, text });
    try {
      const result = await work();
      box.record('end', { generation, step, text });
      return result;
    } catch (error) {
      const code = error instanceof VideoloomError ? error.code : messageOf(error);
      box.record('failed', { generation, step, text: `${text}: ${code}` });
      throw error;
    }
  };
  return overlay(collectives, {
    configure(next: MeshGeneration) {
      generation = next.number;
      const names = next.members.map(({ workerId }) => workerId).join(' ');
      box.record('generation', { generation, text: names });
      return recorded('connect', 0, () => collectives.configure(next));
    },
    async allReduce(...call: Parameters<Collectives['allReduce']>) {
      const [step] = call;
      const sum = await recorded('gradient', step, () => collectives.allReduce(...call));
      box.record('gradient', { generation, step, digest: digestOf([looked(sum, step)]) });
      return sum;
    },
    allGather: (step: number, name: string, values: Float64Array) =>
      recorded(name, step, () => collectives.allGather(step, name, values)),
    allGatherInto: (...call: Parameters<Collectives['allGatherInto']>) =>
      recorded(call[1], call[0], () => collectives.allGatherInto(...call)),
    barrier: (step: number, name: string) =>
      recorded(`barrier ${name}`, step, () => collectives.barrier(step, name)),
  });
}

/** Records what was leased for each step: its microbatches and the rows of their first samples. */
export function recordPlans(box: BlackBox, generation: number, leases: readonly StepLease[]): void {
  for (const { step, microbatches } of leases) {
    const rows = microbatches.map(
      ({ index, samples }) => `${index}:${samples.map(({ sample }) => sample).join(',')}`,
    );
    box.record('plan', { generation, step, text: rows.join(' ') });
  }
}

/** Longer vectors are looked at in parts: a digest of all of one would cost most of a percent of a step. */
const WHOLE_ELEMENTS = 1 << 18;
const NUM_PARTS = 8;

/** The part of a gradient that a step's digest covers: another eighth each step, the same on all workers. */
function looked(gradient: Float32Array, step: number): Float32Array {
  if (gradient.length <= WHOLE_ELEMENTS) return gradient;
  const bound = (part: number): number => Math.floor((part * gradient.length) / NUM_PARTS);
  const part = step % NUM_PARTS;
  return gradient.subarray(bound(part), bound(part + 1));
}

/** A number that differs where a bit of the vectors differs, save one time in 2^32: for faults, not for attackers. */
export function digestOf(vectors: readonly (Float32Array | Uint8Array)[]): number {
  return vectors.reduce(
    (sum, vector) =>
      crc32c(new Uint8Array(vector.buffer, vector.byteOffset, vector.byteLength), sum),
    0,
  );
}

/** `target` with some of its methods in the place of its own; the others are called on it. */
function overlay<T extends object>(target: T, methods: Partial<T>): T {
  return new Proxy(target, {
    get(_, name) {
      if (Object.hasOwn(methods, name)) return Reflect.get(methods, name) as unknown;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}
