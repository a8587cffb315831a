import { connectivityState } from '@grpc/grpc-js';
import { VideoloomError } from './errors.ts';
import type { Channel } from './grpc.ts';

/** How long a connection may take to come about, TLS on a busy machine included. */
export interface ConnectLimits {
  readonly first: number;
  /** After failures, at most. */
  readonly most: number;
}

const CONNECT_MS: ConnectLimits = { first: 5000, most: 60_000 };

/**
 * A connection to a server that may move, as a pod does. TCP tries an address for two minutes that nobody answers at, and
 * gRPC waits for it: where a connection does not come about in time, it is dialled anew, which looks its name up anew. That
 * is seen in an attempt alone; calls on `channel` wait for their own time.
 */
export class Line {
  readonly #dial: () => Channel;
  #channel: Channel;
  readonly #limits: ConnectLimits;
  #connectMs: number;

  /** `dialNow` is called now, and for each further channel. */
  constructor(dialNow: () => Channel, limits = CONNECT_MS) {
    this.#dial = dialNow;
    this.#channel = dialNow();
    this.#limits = limits;
    this.#connectMs = limits.first;
  }

  /** The one that is there now. */
  get channel(): Channel {
    return this.#channel;
  }

  /**
   * A call during which the connection has to come about in time, else `signal` aborts with an error that may be tried
   * again; also when one of `others` aborts. Say `end` when it is over.
   */
  attempt(...others: readonly AbortSignal[]): {
    readonly channel: Channel;
    readonly signal: AbortSignal;
    readonly end: () => void;
  } {
    const channel = this.#channel;
    const given = new AbortController();
    let look: NodeJS.Immediate | undefined;
    const limit = setTimeout(() => {
      // What has come while this thread was busy is looked at first.
      look = setImmediate(() => {
        if (this.#isConnected(channel)) return;
        const why = `${channel.address} takes no connection within ${this.#connectMs / 1000} s`;
        given.abort(new VideoloomError('UNAVAILABLE', why, { retryable: true }));
        this.#connectMs = Math.min(this.#limits.most, 2 * this.#connectMs);
        // Another attempt may have been first.
        if (this.#channel !== channel) return;
        channel.close();
        this.#channel = this.#dial();
        this.#channel.hasAnswered = channel.hasAnswered;
      });
    }, this.#connectMs);
    limit.unref();
    return {
      channel,
      signal: AbortSignal.any([given.signal, ...others]),
      end: () => {
        clearTimeout(limit);
        clearImmediate(look);
        this.#isConnected(channel);
      },
    };
  }

  #isConnected(channel: Channel): boolean {
    const state = channel.getChannel().getConnectivityState(false);
    const isConnected = state === connectivityState.READY;
    if (isConnected) this.#connectMs = this.#limits.first;
    return isConnected;
  }

  close(): void {
    this.#channel.close();
  }
}
