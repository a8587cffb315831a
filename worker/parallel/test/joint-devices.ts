import type { PjrtClient } from '../../pjrt/client.ts';
import type { PjrtExecutable } from '../../pjrt/executable.ts';
import { deviceSumProgram, vectorsOfWorker, type OpenDeviceSum } from '../device-sum.ts';

/** What one worker brings to a sum. */
interface Part {
  readonly vectors: readonly Float32Array[];
  readonly summed: (sum: Float32Array) => void;
  readonly failed: (error: Error) => void;
}

/**
 * Device sums of workers that all live in this process, over one CPU client with a device for each: the program is the real
 * one and runs on real devices, which only processes with GPUs can bring together. It runs once all workers have come.
 */
export function jointDevices(client: PjrtClient): { open: OpenDeviceSum; numOpen: () => number } {
  const programs = new Map<string, Promise<PjrtExecutable>>();
  const arrived = new Map<string, Map<number, Part>>();
  let numOpen = 0;

  const open: OpenDeviceSum = (plan) => {
    const { generation, rank, numElements } = plan;
    const numWorkers = generation.members.length;
    const key = `${generation.number}/${numElements}`;
    const program =
      programs.get(key) ??
      client.compile(deviceSumProgram(plan), {
        deviceIndices: generation.members.map((_, index) => index),
      });
    programs.set(key, program);
    numOpen++;
    let step = 0;
    let end: (error: Error) => void = () => undefined;
    const result = new Float32Array(numElements);
    return {
      result,
      async run(blocks) {
        const of = `${key}/${step++}`;
        const vectors = Array.from(
          { length: vectorsOfWorker(generation) },
          // What a worker has no block for is added to nothing.
          (_, at) => blocks[at]?.sum ?? new Float32Array(numElements).fill(NaN),
        );
        const sum = await new Promise<Float32Array>((summed, failed) => {
          end = failed;
          const parts = arrived.get(of) ?? new Map<number, Part>();
          arrived.set(of, parts.set(rank, { vectors, summed, failed }));
          if (parts.size === numWorkers) void execute(program, parts);
        });
        result.set(sum);
      },
      close() {
        numOpen--;
        end(new Error('closed'));
        return Promise.resolve();
      },
    };
  };

  async function execute(
    program: Promise<PjrtExecutable>,
    parts: ReadonlyMap<number, Part>,
  ): Promise<void> {
    try {
      const executable = await program;
      const args = Array.from({ length: parts.size }, (_, rank) =>
        parts
          .get(rank)!
          .vectors.map((vector) => client.bufferFromHost(vector, [1, vector.length], 'f32', rank)),
      );
      const outputs = await executable.executeOnAll(args);
      for (const [rank, part] of parts)
        part.summed((await outputs[rank]![0]!.toHost()) as Float32Array);
      for (const buffer of [...args.flat(), ...outputs.flat()]) buffer.close();
    } catch (error) {
      for (const { failed } of parts.values()) failed(error as Error);
    }
  }
  return { open, numOpen: () => numOpen };
}
