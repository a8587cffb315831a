import { freemem } from 'node:os';
import * as tf from '@tensorflow/tfjs-core';
import type { Engine } from '../backend/engine.ts';
import { namedLeaves, readState, type TrainingState } from '../state.ts';
import { partsOf } from '../tree.ts';
import type { LazyBytes, SavedTensor } from './save.ts';

/** A part of a training state as it was, while training goes on. */
export interface Snapshot {
  readonly tensors: ReadonlyMap<string, SavedTensor>;
  /** Gives the memory back. Idempotent. */
  release(): void;
}

/**
 * The named tensors as they are now. Where the devices share this process's memory and there is room for a second
 * state, nothing is copied: the buffers are held, and the next update writes its results elsewhere. Else the tensors
 * are copied, which is waited for.
 */
export async function takeSnapshot(
  engine: Engine,
  state: TrainingState,
  names: ReadonlySet<string>,
): Promise<Snapshot> {
  const leaves = namedLeaves(state);
  const isOnHost = engine.name !== 'xla' || engine.platform === 'cpu';
  const stateBytes = leaves.reduce((sum, [, { size }]) => sum + 4 * size, 0);
  if (isOnHost && stateBytes * ROOM <= availableBytes()) return holdTensors(engine, leaves, names);
  return { tensors: await readState(state, names), release: () => undefined };
}

/**
 * Has the program compiled with which the update after a snapshot leaves the held buffers alone; without it that
 * update would wait for the compiler.
 * @param lower compiles the update for its arguments, `params` among them
 */
export async function prepareSnapshots(
  params: readonly tf.Tensor[],
  lower: () => Promise<unknown>,
): Promise<void> {
  // Which program it is, is settled when `lower` returns: the next update is not to find anything held.
  const held = params[0]!.clone();
  const lowered = lower();
  held.dispose();
  await lowered;
}

/** A second state and a little for everything else. */
const ROOM = 1.2;

function holdTensors(
  engine: Engine,
  leaves: readonly (readonly [string, tf.Tensor])[],
  names: ReadonlySet<string>,
): Snapshot {
  const tensors = new Map<string, SavedTensor>();
  const clones: tf.Tensor[] = [];
  for (const [path, tensor] of leaves) {
    const parts = partsOf(path, tensor.shape);
    if (!parts.some(({ name }) => names.has(name))) continue;
    const held = holdOf(tensor);
    clones.push(held);
    const sizeBytes = (4 * held.size) / parts.length;
    const whole = openBytes(engine, held);
    for (const [k, { name, shape }] of parts.entries()) {
      if (!names.has(name)) continue;
      const data: LazyBytes = {
        byteLength: sizeBytes,
        load: () => whole(k * sizeBytes, sizeBytes),
      };
      tensors.set(name, { dtype: 'F32', shape, data });
    }
  }
  return {
    tensors,
    release() {
      for (const clone of clones.splice(0)) clone.dispose();
    },
  };
}

/** What `clone` gives, without what tfjs does around each op: training waits for hundreds of them. */
function holdOf({ dataId, shape, dtype }: tf.Tensor): tf.Tensor {
  const core = tf.engine();
  core.backend.incRef(dataId);
  return core.makeTensorFromTensorInfo({ dataId, shape, dtype }, core.backend);
}

/** Parts of a tensor's bytes: where they lie, or of a copy that is made with the first. */
function openBytes(engine: Engine, tensor: tf.Tensor) {
  let copy: Promise<Uint8Array> | undefined;
  return async (offset: number, sizeBytes: number) => {
    const address = await engine.addressOf(tensor);
    if (address !== undefined) return { address: address + BigInt(offset), sizeBytes };
    copy ??= tensor.data().then(({ buffer, byteOffset, byteLength }) => {
      return new Uint8Array(buffer, byteOffset, byteLength);
    });
    return (await copy).subarray(offset, offset + sizeBytes);
  };
}

/** What the system and, in a container, its limit have left. */
function availableBytes(): number {
  // Node 20.11 and 20.12 do not have it yet.
  return 'availableMemory' in process ? process.availableMemory() : freemem();
}
