/** A worker process that only reduces: started by tests and benches with `fork`, told what to do by messages. */
import { createHash } from 'node:crypto';
import type { MeshGeneration } from '../collectives.ts';
import { openCollectives, type CollectivesOptions } from '../mesh-collectives.ts';
import { GradientAccumulator } from '../tree-sum.ts';
import type { VectorMemory } from '../vector-memory.ts';
import { gradientOf } from './gradients.ts';

/** How a peer reduces, for its whole life: its second argument, as JSON. */
export type PeerSetting = Pick<CollectivesOptions, 'allReduce' | 'sharedMemory' | 'timeoutMs'> & {
  /** The most that a task has. */
  readonly numElements: number;
};

/** Reduces the gradients of {@link gradientOf} for some steps. */
export interface PeerTask {
  readonly generation: MeshGeneration;
  readonly rank: number;
  readonly numElements: number;
  readonly numSteps: number;
  /** The gradients of step 1 over and over, and no hashes: hardly anything but exchanges. */
  readonly isOneGradient?: boolean;
  /** Report that the first step is done as well. */
  readonly reportsStart?: boolean;
}

/** SHA-256 of each step's sum, or the error's code. */
export type PeerReport =
  | { readonly address: string }
  | { readonly started: true }
  | { readonly hashes: readonly string[] }
  | { readonly code: string; readonly rank: number | undefined; readonly message: string };

const [, , workerId, setting] = process.argv;
const { numElements: mostElements, ...options } = JSON.parse(setting!) as PeerSetting;
const collectives = await openCollectives({
  ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: workerId!, ...options },
});
const memory: VectorMemory = collectives.memoryFor(mostElements, 8);
const accumulators: Record<number, GradientAccumulator> = {};
const tell = (report: PeerReport): void => void process.send!(report);

process.on('message', (task: PeerTask) => {
  reduce(task)
    .then((hashes) => {
      tell({ hashes });
    })
    .catch((error: unknown) => {
      const { code, message, rank } = error as Error & { code: string; rank?: number };
      tell({ code, message, rank });
    });
});
process.on('disconnect', () => process.exit());
tell({ address: collectives.address });

async function reduce(task: PeerTask): Promise<string[]> {
  const { generation, rank, numElements, numSteps } = task;
  const { isOneGradient = false, reportsStart = false } = task;
  const range = generation.members[rank]!;
  const gradientsOf = (step: number): Float32Array[] =>
    Array.from({ length: range.numMicrobatches }, (_, m) =>
      gradientOf(step, range.firstMicrobatch + m, numElements),
    );
  const ofStepOne = gradientsOf(1);
  await collectives.configure(generation);
  const accumulator = (accumulators[numElements] ??= new GradientAccumulator(numElements, memory));
  const hashes: string[] = [];
  for (let step = 1; step <= numSteps; step++) {
    accumulator.begin(range);
    for (const gradient of isOneGradient ? ofStepOne : gradientsOf(step)) {
      accumulator.push(gradient);
    }
    const sum = await collectives.allReduce(step, accumulator.blocks(), numElements);
    if (step === 1 && reportsStart) tell({ started: true });
    if (isOneGradient) continue;
    const bytes = new Uint8Array(sum.buffer, sum.byteOffset, sum.byteLength);
    hashes.push(createHash('sha256').update(bytes).digest('hex'));
  }
  return hashes;
}
