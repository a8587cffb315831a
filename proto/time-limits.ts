/**
 * Every limit on time between the processes of a run follows from one setting, `detectWithin`: how soon a process that
 * stands still, or a host that is gone without a word, has to be found. What ends by itself (a killed process closes its
 * connections) is seen at once, whatever the setting.
 */

/** The setting, and the one limit of elsewhere that must fit to it. */
export interface TimeSetting {
  readonly detectWithinMs: number;
  /** How long one clip may take to decode before it is given up. */
  readonly decodeTimeoutMs: number;
}

/** Limits on time, in milliseconds. */
export interface TimeLimits {
  readonly detectWithinMs: number;
  /** Between two beats of a worker. */
  readonly beatMs: number;
  /** A worker that was not heard of for so long is lost. With a tick of the coordinator it stays below `detectWithin`. */
  readonly silenceMs: number;
  /** Between two looks of the coordinator at its workers. */
  readonly tickMs: number;
  /**
   * gRPC keepalive of the connection that membership hangs on: a coordinator that is gone without a FIN. It has longer
   * than a worker, since the workers train on without it for a step, and a false alarm would cost all of them that step.
   */
  readonly keepaliveTimeMs: number;
  readonly keepaliveTimeoutMs: number;
  /** gRPC keepalive of all other connections, whose ends are found by other means: as seldom as will do. */
  readonly patience: { readonly timeMs: number; readonly timeoutMs: number };
  /** A call that is answered at once. */
  readonly callMs: number;
  /** Between two looks of a coordinator at its lock. */
  readonly lockCheckMs: number;
  /** How long a worker that was left without a generation waits before it joins anew. */
  readonly renewMs: number;
  /** How long a worker looks for a lost coordinator. */
  readonly reconnectMs: number;
  /** How long a joiner looks for a peer that holds the state. */
  readonly peerStateMs: number;
  /**
   * All members of a generation wait for each other and no byte arrives: told so soon, connected anew after twice that.
   * A link that takes longer than that for one frame (1 MiB) is too slow for the setting.
   */
  readonly stallReportMs: number;
  /** How long a worker sits out that the others cannot reach: at first, and at most. */
  readonly leastRestMs: number;
  readonly mostRestMs: number;
  /** Least time without progress after which a phase that is known counts as stuck. */
  readonly stillMs: number;
  /** The same while decoding, which is bounded by itself. */
  readonly stillDecodingMs: number;
  /** The same for a phase that is not known yet, or busy: compilation may take minutes. */
  readonly firstStillMs: number;
  /** Longest wait of a barrier for somebody who makes progress all the time. */
  readonly barrierMs: number;
  /** How long the shares of a checkpoint may be on their way to the disk before the next one is begun all the same. */
  readonly checkpointMs: number;
  /** How long the end of a run may take to deliver its last events: a launcher kills a coordinator that takes too long. */
  readonly farewellMs: number;
}

/** Bounds of the setting: below, timers and a busy machine look like death; above, nothing is found. */
export const DETECT_WITHIN_MS = { least: 200, most: 300_000 } as const;

/** @see TimeLimits */
export function timeLimits({ detectWithinMs, decodeTimeoutMs }: TimeSetting): TimeLimits {
  const times = (factor: number): number => Math.max(1, Math.round(factor * detectWithinMs));
  return {
    detectWithinMs,
    beatMs: times(1 / 5),
    silenceMs: times(0.85),
    tickMs: times(1 / 20),
    keepaliveTimeMs: times(1 / 2),
    keepaliveTimeoutMs: times(2),
    patience: { timeMs: Math.max(10_000, times(1 / 2)), timeoutMs: Math.max(5000, times(2)) },
    callMs: times(10),
    lockCheckMs: times(1 / 2),
    renewMs: times(1),
    reconnectMs: times(60),
    peerStateMs: times(30),
    stallReportMs: times(1),
    leastRestMs: times(15),
    mostRestMs: times(900),
    stillMs: times(10),
    stillDecodingMs: Math.max(times(10), Math.round(1.5 * decodeTimeoutMs)),
    firstStillMs: times(300),
    barrierMs: times(330),
    checkpointMs: times(1800),
    farewellMs: Math.min(5000, times(1)),
  };
}

/** Why a setting cannot hold, with what to change; undefined when it can. Durations are in seconds, as users write them. */
export function timeConflict({ detectWithinMs, decodeTimeoutMs }: TimeSetting): string | undefined {
  const { least, most } = DETECT_WITHIN_MS;
  if (!(detectWithinMs >= least && detectWithinMs <= most)) {
    return `detectWithin is ${detectWithinMs / 1000} s: choose between ${least / 1000} and ${most / 1000} s`;
  }
  const { stillDecodingMs, firstStillMs } = timeLimits({ detectWithinMs, decodeTimeoutMs });
  if (stillDecodingMs <= firstStillMs) return undefined;
  const mostDecoding = Math.floor(firstStillMs / 1500);
  return (
    `decodeTimeoutSeconds (${decodeTimeoutMs / 1000}) is longer than workers may wait for one clip when detectWithin is ` +
    `${detectWithinMs / 1000} s: lower it to ${mostDecoding}, or raise detectWithin to ${Math.ceil(decodeTimeoutMs / 200_000)} s`
  );
}
