import { connect, type Socket, type TcpNetConnectOpts } from 'node:net';
import {
  decodeHeader,
  FrameCorrupt,
  HEADER_BYTES,
  verifyPayload,
  type FrameHeader,
} from './frame.ts';

/** Where bytes go that come while a frame waits for its place. */
const SPILL_BYTES = 4096;
/** What may come after reading was stopped: over TLS, all that one read of the socket has brought. */
const MAX_EARLY_BYTES = 1 << 20;

export interface FrameSink {
  /** Where the payload goes, exactly `length` bytes; undefined while there is no place: reading pauses. */
  place(header: FrameHeader): Uint8Array | undefined;
  /** The whole frame has come, its checksum is right. */
  received(header: FrameHeader, payload: Uint8Array): void;
  /** Nothing more comes: the peer ended, the connection broke or (with `error`) a frame was wrong. Called once. */
  ended(error: Error | undefined, inFrame: boolean): void;
}

/**
 * Reads frames from a connection that it opens: the payload goes from the kernel straight to where the sink wants it.
 * Only a dialled socket can do that in Node (`onread`), which is why in a mesh the reader is the side that dials.
 * A frame without a place stops the reading, so that the peer's pace is bounded by TCP and not by memory here.
 */
export class FrameReader {
  readonly socket: Socket;
  readonly #sink: FrameSink;
  readonly #headerBytes = Buffer.alloc(HEADER_BYTES);
  readonly #spill = Buffer.alloc(SPILL_BYTES);
  /** Bytes that came while a frame waited for its place, in order: the rest of that frame, and what follows it. */
  #early = Buffer.alloc(0);
  #header: FrameHeader | undefined;
  #payload: Uint8Array | undefined;
  /** Bytes of the header or of the payload that are there. */
  #filled = 0;
  /** The buffer that the socket holds for its next read is the spill. */
  #spilling = false;
  #hasClosed = false;
  #ended = false;

  /** @param connectTcp opens TCP connections; those to a Unix socket stay as they are */
  constructor(
    address: { host: string; port: number } | { path: string },
    sink: FrameSink,
    connectTcp: (options: TcpNetConnectOpts) => Socket = connect,
  ) {
    this.#sink = sink;
    const onread = {
      buffer: () => this.#nextBuffer(),
      callback: (length: number) => this.#take(length),
    };
    this.socket =
      'path' in address
        ? connect({ ...address, onread })
        : connectTcp({ ...address, noDelay: true, keepAlive: true, onread });
    let failure: Error | undefined;
    this.socket.on('error', (error) => (failure = error));
    const close = (): void => {
      // What came before the end counts.
      this.#hasClosed = true;
      if (failure !== undefined || this.#early.length === 0) this.#end(failure);
    };
    this.socket.on('end', close);
    this.socket.on('close', close);
  }

  /** Looks again for a place for the frame that waits, if one does. */
  resume(): void {
    if (!this.#isWaiting() || this.#ended) return;
    if (!this.#guard(() => this.#proceed() && this.#takeEarly())) return;
    if (this.#hasClosed) this.#end(undefined);
    else this.socket.resume();
  }

  destroy(): void {
    this.#ended = true;
    this.socket.destroy();
  }

  #isWaiting(): boolean {
    return this.#header !== undefined && this.#payload === undefined;
  }

  #nextBuffer(): Uint8Array {
    this.#spilling = this.#isWaiting();
    return this.#spilling ? this.#spill : this.#target();
  }

  /** Where the next bytes of a frame go that has its place, or of a header. */
  #target(): Uint8Array {
    return this.#header === undefined
      ? this.#headerBytes.subarray(this.#filled)
      : this.#payload!.subarray(this.#filled);
  }

  /** Answers whether to read on. */
  #take(length: number): boolean {
    if (this.#ended) return false;
    return this.#guard(() => {
      if (!this.#spilling) {
        this.#filled += length;
        return this.#step();
      }
      this.#early = Buffer.concat([this.#early, this.#spill.subarray(0, length)]);
      if (this.#early.length > MAX_EARLY_BYTES)
        throw new FrameCorrupt('the connection does not stop where it is told to');
      // Reading was stopped, which `resume` alone takes back.
      return !this.#isWaiting() && this.#takeEarly();
    });
  }

  /** Goes through what came early. Answers whether to read on. */
  #takeEarly(): boolean {
    while (this.#early.length > 0 && !this.#ended) {
      const length = this.#early.copy(this.#target());
      this.#early = this.#early.subarray(length);
      this.#filled += length;
      if (!this.#step()) return false;
    }
    return true;
  }

  /** After the header or the payload has grown. Answers whether to read on. */
  #step(): boolean {
    if (this.#header === undefined) {
      if (this.#filled < HEADER_BYTES) return true;
      this.#header = decodeHeader(this.#headerBytes);
      this.#filled = 0;
    }
    return this.#proceed();
  }

  /** Finds the place of the frame's payload, ends the frame when it is whole. Answers whether to read on. */
  #proceed(): boolean {
    const header = this.#header!;
    this.#payload ??= this.#sink.place(header);
    if (this.#payload === undefined) return false;
    if (this.#filled === header.length) {
      const payload = this.#payload;
      this.#header = this.#payload = undefined;
      this.#filled = 0;
      verifyPayload(header, payload);
      this.#sink.received(header, payload);
    }
    return true;
  }

  #guard(work: () => boolean): boolean {
    try {
      return work();
    } catch (error) {
      this.#end(error as Error);
      this.socket.destroy();
      return false;
    }
  }

  #end(error: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#sink.ended(error, this.#header !== undefined || this.#filled > 0);
  }
}
