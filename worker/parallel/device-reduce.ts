import { setTimeout as delay } from 'node:timers/promises';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import type { DeviceSum } from './device-sum.ts';
import { FRAME_KIND, type FrameHeader } from './frame.ts';
import { MeshError } from './mesh-errors.ts';
import type { Exchange, OutgoingFrame } from './mesh.ts';
import type { GradientBlock } from './tree-sum.ts';

/** How often others are told that a sum goes on, of which nothing is seen. */
const SIGN_MS = 250;
/** How long such signs are given of the first sum of a generation, which brings the devices of hosts together. */
export const JOINING_MS = 600_000;
/** Devices may notice that a peer is gone before its connection has closed here. */
const LEFT_MS = 5000;

/** The sum of one step. Sockets carry only that it has ended here: by them a peer that dies is seen. */
export class DeviceReduceExchange implements Exchange {
  readonly name: string;
  readonly step: number;
  /** Nobody's devices are left out, and who is gone should be named by all. */
  readonly needsEveryone = true;
  /** Rejects where the devices could not sum; then the exchange never ends by itself. */
  readonly summed: Promise<void>;
  readonly #toldTo = new Set<number>();
  readonly #begin: () => void;
  #isSummed = false;
  #advance: () => boolean = () => false;

  /** @param mostMs how long signs are given that it goes on: one that takes longer stands still */
  constructor(step: number, sum: DeviceSum, blocks: readonly GradientBlock[], mostMs = JOINING_MS) {
    this.name = `device gradient[${sum.result.length}]`;
    this.step = step;
    let begin: () => void = () => undefined;
    const begun = new Promise<void>((resolve) => (begin = resolve));
    this.#begin = begin;
    this.summed = begun.then(() => this.#run(sum, blocks, mostMs));
    this.summed.catch(() => undefined); // who waits for it may have left
  }

  start(advance: () => boolean): void {
    this.#advance = advance;
    this.#begin();
  }

  numOutgoing(): number {
    return 1;
  }

  numIncoming(): number {
    return 1;
  }

  next(rank: number): OutgoingFrame | undefined {
    if (!this.#isSummed || this.#toldTo.has(rank)) return undefined;
    this.#toldTo.add(rank);
    return { kind: FRAME_KIND.sum, chunk: 0, payload: new Uint8Array(0) };
  }

  place(rank: number, { kind, length }: FrameHeader): Uint8Array {
    if (kind === FRAME_KIND.sum && length === 0) return new Uint8Array(0);
    throw new MeshError(
      'COLLECTIVE_MISMATCH',
      `rank ${rank} sums the gradient of step ${this.step} in another way: run all workers with one config and one release`,
      { rank },
    );
  }

  received(): void {
    // Nothing to be done: that it came is all it says.
  }

  async #run(sum: DeviceSum, blocks: readonly GradientBlock[], mostMs: number): Promise<void> {
    const startMs = performance.now();
    const sign = setInterval(() => {
      const goesOn = performance.now() - startMs < mostMs && this.#advance();
      if (!goesOn) clearInterval(sign);
    }, SIGN_MS);
    try {
      await sum.run(blocks);
    } finally {
      clearInterval(sign);
    }
    this.#isSummed = true;
    this.#advance();
  }
}

/**
 * Runs `exchange` as `run` does. Where the devices fail because a peer is gone, which they may notice first, it is the peer's
 * loss that is thrown.
 * @throws MeshError as the mesh; VideoloomError ALL_REDUCE_FAILED where all are there
 */
export async function runDeviceReduce(
  exchange: DeviceReduceExchange,
  run: (exchange: Exchange) => Promise<void>,
): Promise<void> {
  const exchanged = run(exchange);
  exchanged.catch(() => undefined);
  try {
    await Promise.race([exchanged, exchange.summed]);
  } catch (error) {
    const late = new AbortController();
    try {
      await Promise.race([exchanged, delay(LEFT_MS, undefined, late).catch(() => undefined)]);
    } finally {
      late.abort();
    }
    throw new VideoloomError(
      'ALL_REDUCE_FAILED',
      `the devices could not sum the gradient of step ${exchange.step}: ${messageOf(error)}. ` +
        'cluster.allReduce: tree sums over the network instead',
      { cause: error, retryable: true },
    );
  }
  await exchanged;
}
