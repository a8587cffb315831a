import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { compiled } from '../../proto/compiled.mjs';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { withoutTrainingMemory } from '../../proto/memory-environment.ts';
import { createSharedMemory, mapSharedMemory } from '../../video/decode/shared-memory.ts';
import { askStore, type KeyValueQuestion, type KeyValueStore } from '../pjrt/key-value.ts';
import type { NamedValues } from '../pjrt/named-values.ts';
import {
  vectorsOfWorker,
  type DeviceSum,
  type DeviceSumPlan,
  type OpenDeviceSum,
} from './device-sum.ts';
import {
  strideOf,
  vectorOf,
  type SumOrder,
  type ToSumProcess,
  type ToWorker,
} from './sum-messages.ts';
import { accumulatorVectors, type GradientBlock } from './tree-sum.ts';

export interface SumProcessOptions {
  readonly pluginPath: string;
  /** What makes the plugin join the devices of a generation's workers, such as {@link gpuJoin}. */
  readonly join: (plan: DeviceSumPlan) => NamedValues;
  /** Where the processes of a generation find each other. */
  readonly keyValues: (generation: number) => KeyValueStore;
}

/**
 * A process of `num_nodes`, with the first GPU that this worker sees: workers of one host have to see others, by
 * CUDA_VISIBLE_DEVICES. It takes memory as it needs it, of what `engine.memoryFraction`
 * leaves: blocks twice and the sum. Source: PJRT_Client_Create in xla/pjrt/c/pjrt_c_api_gpu_internal.cc
 */
export const gpuJoin = ({ generation, rank }: DeviceSumPlan): NamedValues => ({
  ...{ num_nodes: generation.members.length, node_id: rank },
  ...{ visible_devices: [0], allocator: 'platform' },
});

/**
 * Device sums in a process of their own for each generation, which ends with it: the worker keeps its state whatever
 * happens to the devices that are joined.
 */
export function openSumProcesses(options: SumProcessOptions): OpenDeviceSum {
  let memory: SharedVectors | undefined;
  return (plan) => {
    const sizeBytes = bytesOf(plan);
    // Mapped for the life of this process: the next generation takes it again, when nobody writes to it any more.
    if (memory?.bytes.byteLength !== sizeBytes) memory = shareVectors(sizeBytes);
    return new SumProcess(options, plan, memory);
  };
}

interface SharedVectors {
  readonly descriptor: number;
  readonly bytes: Uint8Array;
}

/** Room for as many blocks as any generation has, and the sum; pages that nobody touches take no memory. */
function bytesOf({ generation, numElements }: DeviceSumPlan): number {
  const numMicrobatches = generation.members.reduce((sum, each) => sum + each.numMicrobatches, 0);
  return (accumulatorVectors(numMicrobatches) + 1) * strideOf(numElements);
}

/** @throws VideoloomError NO_SHARED_MEMORY */
function shareVectors(sizeBytes: number): SharedVectors {
  const descriptor = createSharedMemory(sizeBytes, 'videoloom-sums');
  const bytes = descriptor === undefined ? undefined : mapSharedMemory(descriptor, sizeBytes);
  if (descriptor !== undefined && bytes !== undefined) return { descriptor, bytes };
  throw new VideoloomError(
    'NO_SHARED_MEMORY',
    `${sizeBytes} bytes of shared memory for gradients cannot be had here: take cluster.allReduce: tree`,
  );
}

class SumProcess implements DeviceSum {
  readonly result: Float32Array;
  readonly #plan: DeviceSumPlan;
  readonly #memory: SharedVectors;
  readonly #store: KeyValueStore;
  readonly #child: ChildProcess;
  readonly #gone: Promise<unknown>;
  #said = '';
  #pending: { resolve: () => void; reject: (error: Error) => void } | undefined;
  #isGone = false;

  constructor(options: SumProcessOptions, plan: DeviceSumPlan, memory: SharedVectors) {
    const { numElements, generation } = plan;
    this.#plan = plan;
    this.#memory = memory;
    this.#store = options.keyValues(generation.number);
    this.result = vectorOf(memory.bytes, vectorsOfWorker(generation), numElements);
    this.#child = fork(compiled(new URL('./sum-process.ts', import.meta.url)), {
      execArgv: [],
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'pipe', 'ipc', memory.descriptor],
      env: withoutTrainingMemory(process.env),
      // A terminal's Ctrl-C is not for it: it ends with this process.
      detached: true,
    });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#said = (this.#said + text).slice(-SAID_CHARACTERS);
    });
    this.#child.on('message', (message: ToWorker) => {
      this.#heard(message);
    });
    this.#child.on('error', (error) => {
      this.#end(messageOf(error));
    });
    this.#gone = once(this.#child, 'exit').then(([code, signal]) => {
      this.#end(`its process ended by ${signal ?? `code ${code}`}${lastLine(this.#said)}`);
    });
    this.#gone.catch(() => undefined); // 'error' says it
    const { pluginPath, join } = options;
    const order: SumOrder = {
      ...{ plan, pluginPath, clientOptions: join(plan), memoryBytes: memory.bytes.byteLength },
    };
    this.#tell({ kind: 'open', order });
  }

  async run(blocks: readonly GradientBlock[]): Promise<void> {
    const { numElements } = this.#plan;
    for (const [at, { sum }] of blocks.entries())
      vectorOf(this.#memory.bytes, at, numElements).set(sum);
    await new Promise<void>((resolve, reject) => {
      this.#pending = { resolve, reject };
      if (this.#isGone) this.#end('its process is gone');
      else this.#tell({ kind: 'sum', numBlocks: blocks.length });
    });
  }

  async close(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#gone.catch(() => undefined);
  }

  #heard(message: ToWorker): void {
    switch (message.kind) {
      case 'summed':
        this.#pending?.resolve();
        this.#pending = undefined;
        return;
      case 'failed':
        this.#fail(message.message);
        return;
      case 'ask':
        void answer(this.#store, message.question).then((answered) => {
          this.#tell({ kind: 'answer', id: message.id, ...answered });
        });
    }
  }

  #tell(message: ToSumProcess): void {
    // One that is gone closes, which says more.
    this.#child.send(message, () => undefined);
  }

  #end(why: string): void {
    this.#isGone = true;
    this.#fail(why);
  }

  #fail(why: string): void {
    this.#pending?.reject(new VideoloomError('DEVICE_SUM_FAILED', why, { retryable: true }));
    this.#pending = undefined;
  }
}

async function answer(
  store: KeyValueStore,
  question: KeyValueQuestion,
): Promise<{ value?: Uint8Array | undefined; error?: { code: string; message: string } }> {
  try {
    return { value: await askStore(store, question) };
  } catch (error) {
    const code = error instanceof VideoloomError ? error.code : 'UNAVAILABLE';
    return { error: { code, message: messageOf(error) } };
  }
}

/** What a process said last, where it said something. */
function lastLine(text: string): string {
  const line = text.trim().split('\n').at(-1) ?? '';
  return line === '' ? '' : `: ${line}`;
}

const SAID_CHARACTERS = 4096;
