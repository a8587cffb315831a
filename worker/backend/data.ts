import type { PjrtBuffer } from '../pjrt/buffer.ts';
import type { Value } from '../stablehlo/types.ts';
import type { HostValues, TensorSpec } from './dtypes.ts';
import type { Trace } from './jit.ts';

/** A device buffer with its number of holders: tensors, programs that captured it, calls under way. */
export class SharedBuffer {
  readonly buffer: PjrtBuffer;
  #holders = 1;

  constructor(buffer: PjrtBuffer) {
    this.buffer = buffer;
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
    if (this.#holders === 0) this.buffer.close();
  }
}

/** Where the elements of a tensor are. */
export type Content =
  /** Given by the host, not yet uploaded. */
  | { readonly kind: 'host'; readonly values: HostValues }
  | { readonly kind: 'device'; readonly shared: SharedBuffer }
  /** The result of an eager op under way. */
  | { readonly kind: 'pending'; readonly shared: Promise<SharedBuffer> }
  /** A value of the program being traced, made by kernel `op`. */
  | { readonly kind: 'traced'; readonly trace: Trace; readonly value: Value; readonly op: string };

/** What the backend keeps for a tfjs data id; `refCount` counts the tensors that share it. */
export interface TensorData extends TensorSpec {
  refCount: number;
  content: Content;
}

/** Gives up a tensor's hold on its buffer. */
export function releaseContent(content: Content): void {
  if (content.kind === 'device') content.shared.release();
  if (content.kind === 'pending') {
    // Whoever reads the tensor sees the failure; nobody does any more.
    void content.shared.then(
      (shared) => {
        shared.release();
      },
      () => undefined,
    );
  }
}
