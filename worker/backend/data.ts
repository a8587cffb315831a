import assert from 'node:assert/strict';

import type { PjrtBuffer } from '../pjrt/buffer.ts';
import type { HostArray } from '../pjrt/element-type.ts';
import { sameSharding } from '../stablehlo/sharding.ts';
import type { Sharding } from '../stablehlo/sharding.ts';
import type { Value } from '../stablehlo/types.ts';
import type { HostValues, NumericDtype } from './dtypes.ts';
import type { Trace } from './jit.ts';
import { spreadToHost, spreadToHostSync } from './spread.ts';
import type { Spread } from './spread.ts';

/**
 * A tensor's device memory with its number of holders: tensors, programs that captured it, calls under way. It is on
 * the first device alone, or spread over all of them.
 */
export class SharedBuffer {
  /** One of each device that has any of it. */
  readonly parts: readonly PjrtBuffer[];
  readonly #spread: Spread | undefined;
  #holders = 1;

  constructor(held: PjrtBuffer | Spread) {
    this.#spread = 'parts' in held ? held : undefined;
    this.parts = 'parts' in held ? held.parts : [held];
  }

  /** All of the tensor, on the first device. */
  get buffer(): PjrtBuffer {
    assert(this.liesAs(undefined), 'the first device has a part of it alone');
    return this.parts[0]!;
  }

  /** Whether it is spread in that way; undefined asks whether the first device has all of it. */
  liesAs(sharding: Sharding | undefined): boolean {
    if (this.#spread === undefined) return sharding === undefined;
    return sameSharding(this.#spread.sharding, sharding ?? []);
  }

  /** Where all elements lie in this process's memory, row-major; undefined where they do not. Valid while it is held. */
  async address(): Promise<bigint | undefined> {
    return this.#spread === undefined ? this.parts[0]!.address() : undefined;
  }

  toHost(): Promise<HostArray> {
    return this.#spread === undefined ? this.parts[0]!.toHost() : spreadToHost(this.#spread);
  }

  /** `toHost`, with this thread held until the elements are computed and copied. */
  toHostSync(): HostArray {
    return this.#spread === undefined
      ? this.parts[0]!.toHostSync()
      : spreadToHostSync(this.#spread);
  }

  get isShared(): boolean {
    return this.#holders > 1;
  }

  retain(): this {
    this.#holders++;
    return this;
  }

  /** The last holder's release frees the device memory. */
  release(): void {
    this.#holders--;
    if (this.#holders === 0) for (const part of this.parts) part.close();
  }
}

/** Where the elements of a tensor are. */
export type Content =
  /** Given by the host, not yet uploaded. */
  | { readonly kind: 'host'; readonly values: HostValues }
  | { readonly kind: 'device'; readonly shared: SharedBuffer }
  /** UTF-8. Strings never leave the host. */
  | { readonly kind: 'strings'; readonly values: Uint8Array[] }
  /** A value of the program being traced, made by kernel `op`. */
  | { readonly kind: 'traced'; readonly trace: Trace; readonly value: Value; readonly op: string };

/** What the backend keeps for a tfjs data id; `refCount` counts the tensors that share it. */
export interface TensorData {
  /** Of the elements as they are kept: a tensor that shares them may have another shape of that size. */
  readonly shape: readonly number[];
  readonly dtype: NumericDtype | 'string';
  refCount: number;
  content: Content;
}

/** Gives up a tensor's hold on its buffer. */
export function releaseContent(content: Content): void {
  if (content.kind === 'device') content.shared.release();
}

/** A hold on each, or, where one fails, on none. */
export function retainAll<T>(
  items: readonly T[],
  retain: (item: T, index: number) => SharedBuffer,
): SharedBuffer[] {
  const held: SharedBuffer[] = [];
  try {
    for (const [index, item] of items.entries()) held.push(retain(item, index));
    return held;
  } catch (error) {
    for (const shared of held) shared.release();
    throw error;
  }
}
