/**
 * The gradient sum as one program over one device of each worker: what travels between them is up to the plugin, NCCL or
 * RCCL between hosts. The vector is cut into one slice a worker; each gets the blocks of all others for its slice
 * (all-to-all), adds them along the tree of `tree-sum.ts`, and the slices are put together again (all-gather): the bytes
 * of a reduce-scatter and all-gather where each worker has one block, and the bits of the tree, which sums that a library
 * makes in an order of its own do not have.
 */
import assert from 'node:assert/strict';
import type { MeshGeneration } from './collectives.ts';
import { blocksOf, type GradientBlock } from './tree-sum.ts';
import type { SumPrecision } from './vector-memory.ts';

/** What the workers of a generation sum. */
export interface DeviceSumPlan {
  readonly generation: MeshGeneration;
  readonly rank: number;
  readonly numElements: number;
  readonly precision: SumPrecision;
}

/** The devices of a generation's workers. */
export interface DeviceSum {
  /** The sum after `run`, [numElements]; it can be read until this worker opens another. */
  readonly result: Float32Array;
  /** Sums all workers' blocks; each worker calls it for each step. The first call brings the devices together. */
  run(blocks: readonly GradientBlock[]): Promise<void>;
  /** Ends what is under way, also a wait for a worker that is gone: nothing is written to `result` any more. */
  close(): Promise<void>;
}

export type OpenDeviceSum = (plan: DeviceSumPlan) => DeviceSum;

/** How many vectors each worker brings: the most that one has, so that all run the same program. */
export function vectorsOfWorker({ members }: MeshGeneration): number {
  return Math.max(...members.map((member) => blocksOf(member).length));
}

/**
 * StableHLO of the sum over the mesh axis `worker`, in order of rank. Parameters: {@link vectorsOfWorker} tensors
 * [workers, numElements], of which each device has its own row [1, numElements]: its blocks by start, and whatever it
 * likes after them. Result: [numElements], whole on every device. With bfloat16 the blocks have been rounded, and so is the
 * sum of every node.
 */
export function deviceSumProgram({
  generation,
  numElements,
  precision,
}: Omit<DeviceSumPlan, 'rank'>): string {
  const { members } = generation;
  const numWorkers = members.length;
  const numMicrobatches = members.reduce((sum, { numMicrobatches: count }) => sum + count, 0);
  const numVectors = vectorsOfWorker(generation);
  const length = Math.ceil(numElements / numWorkers) * numWorkers;
  const wire = precision === 'bfloat16' ? 'bf16' : 'f32';
  const vector = `tensor<${length}xf32>`;
  const lines: string[] = [];
  let numValues = 0;
  const value = (operation: string): string => {
    const name = `%v${numValues++}`;
    lines.push(`    ${name} = ${operation}`);
    return name;
  };

  const received = Array.from({ length: numVectors }, (_, at) => {
    const rows = `tensor<${numWorkers}x${numElements}x`;
    const sent = convert(value, `%b${at}`, `${rows}f32>`, `${rows}${wire}>`);
    const padded = `tensor<${numWorkers}x${length}x${wire}>`;
    const whole = value(
      `stablehlo.pad ${sent}, %zero, low = [0, 0], high = [0, ${length - numElements}], interior = [0, 0] : ` +
        `(${rows}${wire}>, tensor<${wire}>) -> ${padded}`,
    );
    return value(`sdy.sharding_constraint ${whole} <@mesh, [{}, {"worker"}]> : ${padded}`);
  });
  const blocks = members.flatMap((member) =>
    blocksOf(member).map((node, at) => ({ ...node, rank: member.rank, at })),
  );
  const leaf = (rank: number, at: number): string => {
    const row = `tensor<1x${length}x${wire}>`;
    const own = value(
      `stablehlo.slice ${received[at]!} [${rank}:${rank + 1}, 0:${length}] : ` +
        `(tensor<${numWorkers}x${length}x${wire}>) -> ${row}`,
    );
    const flat = `tensor<${length}x${wire}>`;
    const reshaped = value(`stablehlo.reshape ${own} : (${row}) -> ${flat}`);
    return convert(value, reshaped, flat, vector);
  };
  const node = (start: number, size: number): string => {
    const block = blocks.find((each) => each.start === start && each.size === size);
    if (block !== undefined) return leaf(block.rank, block.at);
    assert(size > 1, 'the members have all microbatches among them');
    const [left, right] = [node(start, size / 2), node(start + size / 2, size / 2)];
    const sum = value(`stablehlo.add ${left}, ${right} : ${vector}`);
    return precision === 'float32'
      ? sum
      : value(`stablehlo.reduce_precision ${sum}, format = e8m7 : ${vector}`);
  };
  const root = node(0, numMicrobatches);
  const slices = value(`sdy.sharding_constraint ${root} <@mesh, [{"worker"}]> : ${vector}`);
  const shared = convert(value, slices, vector, `tensor<${length}x${wire}>`);
  const gathered = value(
    `sdy.sharding_constraint ${shared} <@mesh, [{}]> : tensor<${length}x${wire}>`,
  );
  const result = convert(value, gathered, `tensor<${length}x${wire}>`, vector);
  const sum = value(
    `stablehlo.slice ${result} [0:${numElements}] : (${vector}) -> tensor<${numElements}xf32>`,
  );
  const parameters = received.map(
    (_, at) =>
      `%b${at}: tensor<${numWorkers}x${numElements}xf32> ` +
      '{sdy.sharding = #sdy.sharding<@mesh, [{"worker"}, {}]>}',
  );
  return `module @sum {
  sdy.mesh @mesh = <["worker"=${numWorkers}]>
  func.func public @main(${parameters.join(', ')}) -> (tensor<${numElements}xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}]>}) {
    %zero = stablehlo.constant dense<0.0> : tensor<${wire}>
${lines.join('\n')}
    return ${sum} : tensor<${numElements}xf32>
  }
}`;
}

function convert(
  value: (operation: string) => string,
  operand: string,
  from: string,
  to: string,
): string {
  return from === to ? operand : value(`stablehlo.convert ${operand} : (${from}) -> ${to}`);
}
