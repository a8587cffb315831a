import assert from 'node:assert/strict';
import {
  allocateReduceBuffers,
  planReduce,
  reduceBytes,
  ReduceExchange,
  type ReduceBuffers,
  type ReducePlan,
} from './all-reduce.ts';
import type { Collectives, MeshGeneration } from './collectives.ts';
import { GatherExchange, MAX_GATHERED_VALUES } from './gather.ts';
import { openMesh, type Mesh, type MeshOptions, type MeshStats } from './mesh.ts';
import type { GradientBlock } from './tree-sum.ts';

/** {@link Collectives} over TCP that add in the order of the tree. */
export interface TreeCollectives extends Collectives {
  readonly stats: Readonly<MeshStats>;
}

/**
 * Listens for peers; `configure` connects.
 * @throws VideoloomError PORT_IN_USE, CANNOT_LISTEN
 */
export async function openTreeCollectives(options: MeshOptions): Promise<TreeCollectives> {
  return new TcpTreeCollectives(await openMesh(options));
}

class TcpTreeCollectives implements TreeCollectives {
  readonly #mesh: Mesh;
  /** Of the running generation, from its first all-reduce on. */
  #plan: ReducePlan | undefined;
  #buffers: ReduceBuffers | undefined;

  constructor(mesh: Mesh) {
    this.#mesh = mesh;
  }

  get address(): string {
    return this.#mesh.address;
  }

  get stats(): Readonly<MeshStats> {
    return this.#mesh.stats;
  }

  async configure(generation: MeshGeneration): Promise<void> {
    this.#plan = undefined;
    await this.#mesh.configure(generation);
  }

  async allReduce(
    step: number,
    blocks: readonly GradientBlock[],
    numElements = blocks[0]?.sum.length,
  ): Promise<Float32Array> {
    const { generation, rank } = this.#mesh;
    assert(numElements !== undefined, 'a worker without microbatches says numElements');
    if (generation.members.length === 1) {
      assert(blocks.length === 1, 'the only worker has the whole batch, which is one block');
      return blocks[0]!.sum;
    }
    if (this.#buffers?.result.length !== numElements) {
      const memory = blocks[0]?.memory;
      const hasRoom = memory?.hasRoom(reduceBytes(numElements)) === true;
      this.#buffers = allocateReduceBuffers(numElements, hasRoom ? memory : undefined);
      this.#plan = undefined;
    }
    this.#plan ??= planReduce(generation, rank, numElements);
    const exchange = new ReduceExchange(step, this.#plan, this.#buffers, blocks);
    await this.#mesh.run(exchange);
    return this.#buffers.result;
  }

  async allGather(step: number, name: string, values: Float64Array): Promise<Float64Array[]> {
    assert(values.length <= MAX_GATHERED_VALUES, `at most ${MAX_GATHERED_VALUES} values`);
    const exchange = new GatherExchange(name, step, { rank: this.#mesh.rank, own: values });
    await this.#mesh.run(exchange);
    return exchange.values;
  }

  async barrier(step: number, name: string): Promise<void> {
    await this.allGather(step, name, new Float64Array(0));
  }

  abort(reason: string): void {
    this.#mesh.abort(reason);
  }

  close(): Promise<void> {
    return this.#mesh.close();
  }
}
