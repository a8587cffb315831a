import { PjrtError } from './c-api.ts';
import type { ClientHandles } from './handles.ts';
import { type ElementType, type HostArray, hostArray, sizeBytesOf } from './element-type.ts';
import {
  PJRT_Buffer_GetMemoryLayout_Args,
  PJRT_Buffer_IsOnCpu_Args,
  PJRT_Buffer_MemoryLayout,
  PJRT_Buffer_ReadyEvent_Args,
  PJRT_Buffer_ToHostBuffer_Args,
  PJRT_Buffer_UnsafePointer_Args,
  type Struct,
  wordsAt,
} from './structs.ts';

const FAILURE = { code: 'PJRT_BUFFER_FAILED', what: 'a device buffer could not be read' } as const;

/** A dense, row-major array on a device. It may still be being computed: reading it waits. */
export class PjrtBuffer {
  readonly dims: readonly number[];
  readonly type: ElementType;
  readonly sizeBytes: number;
  readonly #handles: ClientHandles;
  #handle: bigint | undefined;
  #isConsumed = false;

  /** @internal Takes over `handle`, a PJRT_Buffer. */
  constructor(handles: ClientHandles, handle: bigint, dims: readonly number[], type: ElementType) {
    this.dims = dims;
    this.type = type;
    this.sizeBytes = sizeBytesOf(dims, type);
    this.#handles = handles;
    this.#handle = handle;
    handles.own(this, handle, 'PJRT_Buffer_Destroy');
  }

  /** Whether its memory was given to an execution that listed it in `donate`; it can no longer be used. */
  get isConsumed(): boolean {
    return this.#isConsumed;
  }

  /** Whether it can no longer be used: closed, consumed, or its client closed. */
  get isClosed(): boolean {
    return this.#handle === undefined || this.#handles.isClosed;
  }

  /** @internal The PJRT_Buffer. @throws PjrtError PJRT_CLOSED when the buffer cannot be used any more. */
  get handle(): bigint {
    if (this.#handle !== undefined && !this.#handles.isClosed) return this.#handle;
    const why = this.#isConsumed ? 'was donated to an execution' : 'is closed';
    throw new PjrtError(
      'PJRT_CLOSED',
      `a ${this.type}[${this.dims.join(',')}] buffer ${why} and cannot be used any more`,
    );
  }

  /** Copies to a new host array of the element type (`bf16` and `f16` as bits in a Uint16Array). */
  toHost(): Promise<HostArray>;
  /** Copies into `into`, whose bytes must be exactly as many, and gives it. Do not touch it until then. */
  toHost<T extends ArrayBufferView>(into: T): Promise<T>;
  async toHost(into?: ArrayBufferView): Promise<ArrayBufferView> {
    const array = into ?? hostArray(this.dims, this.type);
    const buffer = this.handle;
    this.#checkSize(array);
    if (array.byteLength > 0) {
      await this.#handles.during(() =>
        this.#handles.api.awaitEvent(this.#startCopy(buffer, array), FAILURE),
      );
    }
    return array;
  }

  /** `toHost`, with this thread held until the elements are computed and copied. */
  toHostSync(): HostArray {
    const array = hostArray(this.dims, this.type);
    const buffer = this.handle;
    if (array.byteLength > 0) {
      this.#handles.api.awaitEventSync(this.#startCopy(buffer, array), FAILURE);
    }
    return array;
  }

  /**
   * Where the elements lie, row-major, once they are computed: an address of this process's memory, valid until the
   * buffer is closed or donated; undefined where they lie elsewhere or otherwise.
   */
  async address(): Promise<bigint | undefined> {
    const buffer = this.handle;
    const { api } = this.#handles;
    return this.#handles.during(async () => {
      const place = PJRT_Buffer_IsOnCpu_Args({ buffer });
      api.call('PJRT_Buffer_IsOnCpu', place, FAILURE);
      if (place.number('is_on_cpu') === 0 || !this.#isRowMajor(buffer)) return undefined;
      const ready = PJRT_Buffer_ReadyEvent_Args({ buffer });
      api.call('PJRT_Buffer_ReadyEvent', ready, FAILURE);
      await api.awaitEvent(ready.get('event'), FAILURE);
      const pointer = PJRT_Buffer_UnsafePointer_Args({ buffer: this.handle });
      api.call('PJRT_Buffer_UnsafePointer', pointer, FAILURE);
      return pointer.get('buffer_pointer');
    });
  }

  #isRowMajor(buffer: bigint): boolean {
    const layout = PJRT_Buffer_GetMemoryLayout_Args({ buffer });
    this.#handles.api.call('PJRT_Buffer_GetMemoryLayout', layout, FAILURE);
    const rank = layout.number('minor_to_major_size');
    // An int, of which the plugin copies the word that it lies in.
    const type = Number(BigInt.asUintN(32, layout.get('type')));
    if (type !== TILED || layout.number('num_tiles') !== 0) return false;
    if (rank === 0) return this.dims.length === 0;
    const order = wordsAt(layout.get('minor_to_major'), rank);
    return order.every((dim, at) => Number(dim) === rank - 1 - at);
  }

  #checkSize({ byteLength }: ArrayBufferView): void {
    if (byteLength === this.sizeBytes) return;
    throw new PjrtError(
      'PJRT_BUFFER_FAILED',
      `a ${this.type}[${this.dims.join(',')}] buffer has ${this.sizeBytes} bytes and cannot be read into ` +
        `${byteLength} bytes`,
    );
  }

  #startCopy(buffer: bigint, array: ArrayBufferView): bigint {
    const args = PJRT_Buffer_ToHostBuffer_Args({
      buffer,
      host_layout: rowMajor(this.dims.length),
      dst: array,
      dst_size: array.byteLength,
    });
    this.#handles.api.call('PJRT_Buffer_ToHostBuffer', args, FAILURE);
    return args.get('event');
  }

  /** Frees the device memory once nothing in flight uses it. */
  close(): void {
    if (this.#handle !== undefined) this.#handles.release(this, this.#handle);
    this.#handle = undefined;
  }

  /** @internal Closes it after an execution took its memory. */
  consume(): void {
    this.#isConsumed = true;
    this.close();
  }
}

// Outputs have whatever layout the device prefers; hosts want row-major.
function rowMajor(rank: number): Struct<string> {
  return PJRT_Buffer_MemoryLayout({
    tiled_struct_size: TILED_LAYOUT_BYTES,
    minor_to_major: BigInt64Array.from({ length: rank }, (_, at) => BigInt(rank - 1 - at)),
    minor_to_major_size: rank,
    type: TILED,
  });
}

const TILED_LAYOUT_BYTES = 56;
// Source: PJRT_Buffer_MemoryLayout_Type in pjrt_c_api.h.
const TILED = 0;
