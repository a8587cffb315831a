/** A worker process that only reduces: started by tests and benches with `fork`, told what to do by messages. */
import { createHash } from 'node:crypto';
import type { MeshGeneration } from '../collectives.ts';
import { openTreeCollectives } from '../tree-collectives.ts';
import { GradientAccumulator } from '../tree-sum.ts';
import { VectorMemory } from '../vector-memory.ts';
import { gradientOf } from './gradients.ts';

/** Reduces the gradients of {@link gradientOf} for some steps. */
export interface PeerTask {
  readonly generation: MeshGeneration;
  readonly rank: number;
  readonly numElements: number;
  readonly numSteps: number;
}

/** SHA-256 of each step's sum, or the error's code. */
export type PeerReport =
  | { readonly address: string }
  | { readonly hashes: readonly string[] }
  | { readonly code: string; readonly rank: number | undefined; readonly message: string };

const collectives = await openTreeCollectives({
  ...{ listenAddress: '127.0.0.1:0', runId: 'run', workerId: process.argv[2]!, timeoutMs: 20_000 },
});
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

async function reduce({ generation, rank, numElements, numSteps }: PeerTask): Promise<string[]> {
  await collectives.configure(generation);
  const accumulator = new GradientAccumulator(numElements, new VectorMemory(64 << 20));
  const range = generation.members[rank]!;
  const hashes: string[] = [];
  for (let step = 1; step <= numSteps; step++) {
    accumulator.begin(range);
    for (let m = 0; m < range.numMicrobatches; m++) {
      accumulator.push(gradientOf(step, range.firstMicrobatch + m, numElements));
    }
    const sum = await collectives.allReduce(step, accumulator.blocks(), numElements);
    hashes.push(
      createHash('sha256')
        .update(new Uint8Array(sum.buffer, sum.byteOffset, sum.byteLength))
        .digest('hex'),
    );
  }
  return hashes;
}
