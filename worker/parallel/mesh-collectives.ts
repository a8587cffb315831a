import assert from 'node:assert/strict';
import type { Collectives, MeshGeneration } from './collectives.ts';
import { DeviceReduceExchange, JOINING_MS, runDeviceReduce } from './device-reduce.ts';
import type { DeviceSum, OpenDeviceSum } from './device-sum.ts';
import { GatherExchange, MAX_GATHERED_VALUES } from './gather.ts';
import { GatherVectorExchange, type VectorPart } from './gather-vector.ts';
import { openMesh, type Exchange, type Mesh, type MeshOptions, type MeshStats } from './mesh.ts';
import { RingPlan, RingReduceExchange } from './ring-reduce.ts';
import { openSharedGroup, type SharedGroup } from './shared-group.ts';
import { SharedReduceExchange } from './shared-reduce.ts';
import {
  allocateReduceBuffers,
  planReduce,
  reduceBytes,
  reduceMeans,
  ReduceExchange,
  type ReduceBuffers,
} from './tree-reduce.ts';
import { accumulatorBytes, accumulatorVectors, type GradientBlock } from './tree-sum.ts';
import { VectorMemory, windowBytes, type SumPrecision } from './vector-memory.ts';

export interface CollectivesOptions extends MeshOptions {
  /** `tree` (the default): the same bits for every number of workers. `ring`: for one number. */
  readonly allReduce?: 'tree' | 'ring';
  /** What brings the workers' devices together, where they sum instead, to the bits of `tree`. */
  readonly openDeviceSum?: OpenDeviceSum | undefined;
  /** What gradients are summed and sent in; {@link GradientAccumulator} must round alike. f32 when left out. */
  readonly precision?: SumPrecision;
  /** Whether workers that are all on one host sum in memory that they share, with `tree`; true when left out. */
  readonly sharedMemory?: boolean;
}

/** How a generation's gradients are summed. */
export type ReduceTransport = 'alone' | 'devices' | 'shared memory' | 'tree' | 'ring';

/** {@link Collectives} over a mesh of sockets. */
export interface MeshCollectives extends Collectives {
  readonly stats: Readonly<MeshStats>;
  /** Of the running generation, known from its first all-reduce on. */
  readonly transport: ReduceTransport | undefined;
}

/**
 * Listens for peers; `configure` connects.
 * @throws VideoloomError PORT_IN_USE, CANNOT_LISTEN, PLAIN_TEXT_OFF_LOOPBACK
 */
export async function openCollectives(options: CollectivesOptions): Promise<MeshCollectives> {
  return new SocketCollectives(await openMesh(options), options);
}

/** After the first, a sum on devices stands still where it takes longer than this, and than so many times the slowest. */
const [SLOW_SUM_MS, SLOWER] = [30_000, 10];

/** Workers for whose windows there is address space. */
const MAX_SHARING = 16;

/** What is made at the first all-reduce of a generation. */
interface Reduction {
  readonly transport: ReduceTransport;
  readonly result: Float32Array;
  readonly run: (step: number, blocks: readonly GradientBlock[]) => Promise<void>;
}

class SocketCollectives implements MeshCollectives {
  readonly #mesh: Mesh;
  readonly #options: CollectivesOptions;
  #memory: VectorMemory | undefined;
  #buffers: ReduceBuffers | undefined;
  #reduction: Reduction | undefined;
  #group: SharedGroup | undefined;
  #devices: DeviceSum | undefined;
  #ending: Promise<unknown> = Promise.resolve();
  #alone = false;
  #addedBytes = 0;

  constructor(mesh: Mesh, options: CollectivesOptions) {
    this.#mesh = mesh;
    this.#options = options;
  }

  get address(): string {
    return this.#mesh.address;
  }

  get movedBytes(): number {
    return this.#mesh.stats.sentBytes + this.#mesh.stats.receivedBytes + this.#addedBytes;
  }

  get stats(): Readonly<MeshStats> {
    return this.#mesh.stats;
  }

  get transport(): ReduceTransport | undefined {
    return this.#alone ? 'alone' : this.#reduction?.transport;
  }

  get #precision(): SumPrecision {
    return this.#options.precision ?? 'float32';
  }

  get #mayShare(): boolean {
    const { allReduce, openDeviceSum, sharedMemory } = this.#options;
    return allReduce !== 'ring' && openDeviceSum === undefined && sharedMemory !== false;
  }

  memoryFor(numElements: number, numMicrobatches: number): VectorMemory {
    assert(this.#memory === undefined, 'a worker trains one model');
    const numVectors = accumulatorVectors(numMicrobatches);
    this.#memory = new VectorMemory(
      accumulatorBytes(numElements, numMicrobatches) + reduceBytes(numElements, this.#precision),
      { windowBytes: this.#mayShare ? windowBytes(numElements, numVectors, MAX_SHARING) : 0 },
    );
    return this.#memory;
  }

  async configure(generation: MeshGeneration): Promise<void> {
    // Before anything of the new generation can come; what is left of the old one is dropped in the same turn.
    this.#group?.close();
    this.#group = this.#reduction = undefined;
    this.#alone = generation.members.length === 1;
    const configured = this.#mesh.configure(generation);
    this.#memory?.renew();
    await Promise.all([configured, this.#endDevices()]);
  }

  async allReduce(
    step: number,
    blocks: readonly GradientBlock[],
    numElements = blocks[0]?.sum.length ?? this.#buffers?.result.length,
  ): Promise<Float32Array> {
    const { members } = this.#mesh.generation;
    assert(numElements !== undefined, 'a worker without microbatches says numElements');
    if (members.length === 1) {
      assert(blocks.length === 1, 'the only worker has the whole batch, which is one block');
      return blocks[0]!.sum;
    }
    let reduction = this.#reduction;
    if (reduction?.result.length !== numElements) {
      reduction = await this.#prepare(step, numElements, blocks[0]?.memory);
      this.#reduction = reduction;
    }
    await reduction.run(step, blocks);
    return reduction.result;
  }

  async allGather(step: number, name: string, values: Float64Array): Promise<Float64Array[]> {
    assert(values.length <= MAX_GATHERED_VALUES, `at most ${MAX_GATHERED_VALUES} values`);
    const exchange = new GatherExchange(name, step, { rank: this.#mesh.rank, own: values });
    await this.#mesh.run(exchange);
    return exchange.values;
  }

  async allGatherInto(
    step: number,
    name: string,
    vector: Float32Array,
    parts: readonly VectorPart[],
  ): Promise<void> {
    const { rank } = this.#mesh;
    await this.#mesh.run(new GatherVectorExchange(name, step, { rank, vector, parts }));
  }

  async barrier(step: number, name: string): Promise<void> {
    await this.allGather(step, name, new Float64Array(0));
  }

  abort(reason: string): void {
    this.#mesh.abort(reason);
    // Devices that wait for one that is gone are not to wait until there is another generation.
    void this.#endDevices();
  }

  async close(): Promise<void> {
    await this.#mesh.close();
    await this.#endDevices();
    this.#group?.close();
    this.#memory?.close();
  }

  /** Until then the devices of the old generation may write. */
  #endDevices(): Promise<unknown> {
    const devices = this.#devices;
    this.#devices = undefined;
    if (devices !== undefined) this.#ending = Promise.all([this.#ending, devices.close()]);
    return this.#ending;
  }

  async #prepare(
    step: number,
    numElements: number,
    given: VectorMemory | undefined,
  ): Promise<Reduction> {
    const { rank, generation } = this.#mesh;
    const precision = this.#precision;
    const over =
      (exchange: (step: number, blocks: readonly GradientBlock[]) => Exchange): Reduction['run'] =>
      (of, blocks) =>
        this.#mesh.run(exchange(of, blocks));
    const { openDeviceSum } = this.#options;
    if (openDeviceSum !== undefined) {
      await this.#endDevices();
      const sum = openDeviceSum({ generation, rank, numElements, precision });
      this.#devices = sum;
      let slowestMs: number | undefined;
      return {
        ...{ transport: 'devices', result: sum.result },
        run: async (of, blocks) => {
          const isFirst = slowestMs === undefined;
          const mostMs = isFirst ? JOINING_MS : Math.max(SLOW_SUM_MS, SLOWER * slowestMs!);
          const startMs = performance.now();
          const exchange = new DeviceReduceExchange(of, sum, blocks, mostMs);
          await runDeviceReduce(exchange, (each) => this.#mesh.run(each));
          slowestMs = isFirst ? 0 : Math.max(slowestMs!, performance.now() - startMs);
        },
      };
    }
    if (this.#buffers?.result.length !== numElements) {
      const memory = this.#memory ?? given;
      const hasRoom = memory?.hasRoom(reduceBytes(numElements, precision)) === true;
      this.#buffers = allocateReduceBuffers(numElements, {
        ...{ precision, memory: hasRoom ? memory : undefined },
      });
    }
    const buffers = this.#buffers;
    const { memory, staging, result } = buffers;
    if (this.#options.allReduce === 'ring') {
      const worldSize = generation.members.length;
      const plan = new RingPlan({ rank, worldSize }, { memory, result, precision });
      return {
        ...{ transport: 'ring', result },
        run: over((of, blocks) => new RingReduceExchange(of, plan, blocks)),
      };
    }
    this.#group?.close();
    this.#group = undefined;
    const plan = planReduce(generation, rank, numElements);
    // Also where this worker may not: the others have to be told.
    const gather = (name: string, values: Float64Array) => this.allGather(step, name, values);
    const slice = plan.slices[rank]!;
    const group = await openSharedGroup({ rank, memory, result, slice, gather });
    if (group !== undefined) {
      if (this.#mesh.generation === generation) this.#group = group;
      else group.close(); // `run` refuses what follows
      const onAdded = (bytes: number): void => {
        this.#addedBytes += bytes;
      };
      const means = { group, memory, staging, precision, onAdded };
      return {
        ...{ transport: 'shared memory', result: group.result },
        run: over((of, blocks) => new SharedReduceExchange(of, plan, means, blocks)),
      };
    }
    const means = reduceMeans(plan, buffers, precision);
    return {
      ...{ transport: 'tree', result },
      run: over((of, blocks) => new ReduceExchange(of, plan, means, blocks)),
    };
  }
}
