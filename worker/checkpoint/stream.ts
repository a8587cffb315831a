/** safetensors in pieces, for a connection: neither side holds a second copy. */
import {
  checkDataSize,
  decodeHeader,
  decodeHeaderLength,
  encodeHeader,
  LENGTH_BYTES,
  SafetensorsInvalid,
  type TensorData,
} from './format.ts';

const CHUNK_BYTES = 1 << 20;

/**
 * The bytes of a safetensors file with these tensors, in chunks of at most `chunkBytes`. Chunks of
 * large tensors are views of them.
 */
export function* safetensorsStream(
  tensors: ReadonlyMap<string, TensorData>,
  metadata: Readonly<Record<string, string>> = {},
  chunkBytes = CHUNK_BYTES,
): Generator<Uint8Array> {
  const { header, order } = encodeHeader(tensors, metadata);
  // Models have many tensors of a few hundred bytes: those share a chunk.
  let small: Uint8Array[] = [];
  let smallBytes = 0;
  for (const part of [header, ...order.map((name) => tensors.get(name)!.data)]) {
    if (smallBytes > 0 && smallBytes + part.byteLength > chunkBytes) {
      yield Buffer.concat(small);
      [small, smallBytes] = [[], 0];
    }
    if (part.byteLength <= chunkBytes / 4) {
      small.push(part);
      smallBytes += part.byteLength;
      continue;
    }
    if (smallBytes > 0) {
      yield Buffer.concat(small);
      [small, smallBytes] = [[], 0];
    }
    for (let start = 0; start < part.byteLength; start += chunkBytes) {
      yield part.subarray(start, Math.min(start + chunkBytes, part.byteLength));
    }
  }
  if (smallBytes > 0) yield Buffer.concat(small);
}

/**
 * Reads a safetensors file from chunks of any size. Each tensor is allocated as its first byte comes, so that a header
 * that announces more than is sent costs no memory.
 * @throws SafetensorsInvalid
 */
export async function readSafetensorsStream(
  chunks: AsyncIterable<Uint8Array>,
): Promise<Map<string, TensorData>> {
  const input = new ChunkInput(chunks);
  const length = decodeHeaderLength(await input.take(LENGTH_BYTES));
  const { entries, dataBytes } = decodeHeader(await input.take(length));
  const tensors = new Map<string, TensorData>();
  for (const { name, dtype, shape, start, end } of entries) {
    tensors.set(name, { dtype, shape, data: await input.take(end - start) });
  }
  checkDataSize(dataBytes + (await input.rest()), dataBytes);
  return tensors;
}

class ChunkInput {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #chunk: Uint8Array = new Uint8Array(0);

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  /** The next `length` bytes in memory of their own. Memory grows with what came, not with what was announced. */
  async take(length: number): Promise<Uint8Array> {
    let taken = new Uint8Array(Math.min(length, 64 << 20));
    let filled = 0;
    while (filled < length) {
      if (this.#chunk.byteLength === 0 && !(await this.#pull())) {
        throw new SafetensorsInvalid(`it ends ${length - filled} bytes early`);
      }
      const part = this.#chunk.subarray(0, length - filled);
      if (filled + part.byteLength > taken.byteLength) {
        const larger = new Uint8Array(Math.min(length, 2 * taken.byteLength));
        larger.set(taken.subarray(0, filled));
        taken = larger;
      }
      taken.set(part, filled);
      filled += part.byteLength;
      this.#chunk = this.#chunk.subarray(part.byteLength);
    }
    return taken;
  }

  /** How much more comes; stops at the first bytes. */
  async rest(): Promise<number> {
    while (this.#chunk.byteLength === 0) if (!(await this.#pull())) return 0;
    return this.#chunk.byteLength;
  }

  async #pull(): Promise<boolean> {
    const next = await this.#chunks.next();
    if (next.done === true) return false;
    this.#chunk = next.value;
    return true;
  }
}
