// The process in which `openSumProcesses` sums on a device; its orders come over the IPC channel of `fork`, vectors lie in
// memory that it shares with the worker. NCCL's communicators stay with a process once they are made, and where a peer is
// lost nothing but the process's end calls their GPU back.
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { mapSharedMemory } from '../../video/decode/shared-memory.ts';
import type { PjrtBuffer } from '../pjrt/buffer.ts';
import { openPjrtClient, type PjrtClient } from '../pjrt/client.ts';
import type { KeyValueQuestion, KeyValueStore } from '../pjrt/key-value.ts';
import { deviceSumProgram, vectorsOfWorker } from './device-sum.ts';
import {
  vectorOf,
  VECTORS_DESCRIPTOR,
  type SumOrder,
  type ToSumProcess,
  type ToWorker,
} from './sum-messages.ts';

function end(): void {
  process.kill(process.pid, 'SIGKILL');
}

const tell = (message: ToWorker): void => {
  process.send?.(message);
};

const asked = new Map<number, (answer: Extract<ToSumProcess, { kind: 'answer' }>) => void>();
let numAsked = 0;

async function ask(question: KeyValueQuestion): Promise<Uint8Array | undefined> {
  const id = ++numAsked;
  const answer = await new Promise<Extract<ToSumProcess, { kind: 'answer' }>>((resolve) => {
    asked.set(id, resolve);
    tell({ kind: 'ask', id, question });
  });
  if (answer.error !== undefined) {
    const { code, message } = answer.error;
    throw new VideoloomError(code, message);
  }
  return answer.value;
}

/** The coordinator's store, as the worker reaches it. */
const keyValues: KeyValueStore = {
  async put(key, value) {
    await ask({ call: 'put', key, value, timeoutMs: 0 });
  },
  async get(key, timeoutMs) {
    return (await ask({ call: 'get', key, value: undefined, timeoutMs }))!;
  },
  tryGet: (key) => ask({ call: 'tryGet', key, value: undefined, timeoutMs: 0 }),
};

/** Joins the devices of the generation's workers; gives what sums the first `numBlocks` vectors into the last. */
async function open({
  plan,
  pluginPath,
  clientOptions,
  memoryBytes,
}: SumOrder): Promise<(numBlocks: number) => Promise<void>> {
  const memory = mapSharedMemory(VECTORS_DESCRIPTOR, memoryBytes);
  if (memory === undefined) throw new Error('the memory of the vectors cannot be mapped');
  const { generation, numElements } = plan;
  const numVectors = vectorsOfWorker(generation);
  const client = await openPjrtClient({ pluginPath, clientOptions, keyValues });
  const executable = await client.compile(deviceSumProgram(plan), {
    deviceIds: oneOfEach(client, generation.members.length),
  });
  const upload = (vector: Float32Array): PjrtBuffer =>
    client.bufferFromHost(vector, [1, numElements], 'f32');
  let nothing: PjrtBuffer | undefined;
  return async (numBlocks) => {
    const blocks = Array.from({ length: numBlocks }, (_, at) =>
      upload(vectorOf(memory, at, numElements)),
    );
    if (numBlocks < numVectors) nothing ??= upload(new Float32Array(numElements));
    const rest = Array.from({ length: numVectors - numBlocks }, () => nothing!);
    const [sum] = await executable.execute([...blocks, ...rest]);
    await sum!.toHost(vectorOf(memory, numVectors, numElements));
    for (const buffer of [...blocks, sum!]) buffer.close();
  };
}

/** The first device of each process, by rank. */
function oneOfEach({ allDevices, platformName }: PjrtClient, numWorkers: number): number[] {
  return Array.from({ length: numWorkers }, (_, rank) => {
    const device = allDevices.find(({ processIndex }) => processIndex === rank);
    if (device !== undefined) return device.id;
    throw new Error(
      `the plugin for ${platformName} sees no device of rank ${rank} among its ${allDevices.length}`,
    );
  });
}

let opened: Promise<(numBlocks: number) => Promise<void>> | undefined;

// Its worker is gone, or wants it no more.
process.once('disconnect', end);
process.on('message', (message: ToSumProcess) => {
  switch (message.kind) {
    case 'open':
      opened = open(message.order);
      opened.catch(() => undefined); // told of when it is to sum
      return;
    case 'sum':
      opened!
        .then((sum) => sum(message.numBlocks))
        .then(
          () => {
            tell({ kind: 'summed' });
          },
          (error: unknown) => {
            tell({ kind: 'failed', message: messageOf(error) });
          },
        );
      return;
    case 'answer':
      asked.get(message.id)?.(message);
      asked.delete(message.id);
  }
});
