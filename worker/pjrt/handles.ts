import { setTimeout } from 'node:timers/promises';

import { type PjrtApi, PjrtError, type PjrtFunction } from './c-api.ts';
import { PJRT_Buffer_Args } from './structs.ts';

/**
 * What one client has open in the plugin: buffers and executables by their pointer. Each is destroyed once, at the
 * latest with the client; a client that is closed amid work is destroyed when that work has ended. The garbage
 * collector closes what nobody refers to any more, as a safety net: device memory is invisible to it.
 */
export class ClientHandles {
  readonly api: PjrtApi;
  readonly client: bigint;
  readonly #open = new Map<bigint, PjrtFunction>();
  readonly #collected = new FinalizationRegistry<bigint>((handle) => {
    this.#destroyUnlessHeld(handle);
  });
  // Released while a thread of the pool may still be handed them; destroyed when no such call is under way.
  readonly #held: bigint[] = [];
  #numHolders = 0;
  /** What an execution may take; undefined where the plugin sees to that. */
  readonly memoryLimitBytes: number | undefined;
  /**
   * When the temporary memory of the last large program is free again, by performance.now(). The CPU runtime frees it a
   * moment after it has told of the results. A program that starts before takes as much again, which stays with the
   * process: two to five times the memory.
   */
  freedAt = 0;
  readonly #onDestroyed: () => void;
  #isClosed = false;
  #numInFlight = 0;

  constructor(
    api: PjrtApi,
    client: bigint,
    options: { readonly memoryLimitBytes: number | undefined; readonly onDestroyed: () => void },
  ) {
    this.api = api;
    this.client = client;
    this.memoryLimitBytes = options.memoryLimitBytes;
    this.#onDestroyed = options.onDestroyed;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** How many buffers and executables are open. */
  get numOpen(): number {
    return this.#open.size;
  }

  /** Makes `object` the owner of `handle`, which `destroy` frees. */
  own(object: object, handle: bigint, destroy: PjrtFunction): void {
    this.#open.set(handle, destroy);
    this.#collected.register(object, handle, object);
  }

  /** Frees the handle of `object`. */
  release(object: object, handle: bigint): void {
    this.#collected.unregister(object);
    this.#destroyUnlessHeld(handle);
  }

  /** Runs a call that is handed open pointers: what is released or collected during it is destroyed after it. */
  async holdingReleased(call: () => Promise<void>): Promise<void> {
    this.#numHolders++;
    try {
      await call();
    } finally {
      this.#numHolders--;
      if (this.#numHolders === 0) for (const handle of this.#held.splice(0)) this.#destroy(handle);
    }
  }

  /** Until {@link freedAt}. Programs that are under way are not waited for. */
  async untilFreed(): Promise<void> {
    for (let left; (left = this.freedAt - performance.now()) > 0;) {
      // Timers may be early by a part of a millisecond.
      await setTimeout(Math.ceil(left));
    }
  }

  /** Runs asynchronous work that uses the client, which is not destroyed meanwhile. @throws PjrtError PJRT_CLOSED */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.assertOpen();
    this.#numInFlight++;
    try {
      return await work();
    } finally {
      this.#numInFlight--;
      this.#destroyClientIfIdle();
    }
  }

  /** @throws PjrtError PJRT_CLOSED */
  assertOpen(): void {
    if (this.#isClosed) throw new PjrtError('PJRT_CLOSED', 'the PJRT client is closed');
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#destroyClientIfIdle();
  }

  #destroyClientIfIdle(): void {
    if (!this.#isClosed || this.#numInFlight > 0) return;
    for (const handle of [...this.#open.keys()]) this.#destroy(handle);
    this.#call('PJRT_Client_Destroy', this.client);
    this.#onDestroyed();
  }

  #destroyUnlessHeld(handle: bigint): void {
    if (this.#numHolders > 0) this.#held.push(handle);
    else this.#destroy(handle);
  }

  #destroy(handle: bigint): void {
    const destroy = this.#open.get(handle);
    if (destroy === undefined) return;
    this.#open.delete(handle);
    this.#call(destroy, handle);
  }

  // Every PJRT_*_Destroy_Args holds one pointer.
  #call(destroy: PjrtFunction, handle: bigint): void {
    this.api.call(destroy, PJRT_Buffer_Args({ buffer: handle }), {
      code: 'PJRT_CLIENT_FAILED',
      what: `${destroy} failed`,
    });
  }
}
