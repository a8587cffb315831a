import type { Ledger } from './ledger.ts';
import { clockMs } from './ledger-cells.ts';

/** How long a step waited at each of its barriers; told to the others, it shows for whom each one waited. */
export interface Waits {
  /** Waits at the next barrier, in the phase `wait`, and returns to the phase before. */
  until<T>(barrier: () => Promise<T>): Promise<T>;
  /** Milliseconds by barrier. */
  list(): readonly number[];
  /** Lists of all ranks: the one that waited least at a barrier came last and kept the others. */
  blame(ownRank: number, byRank: readonly ArrayLike<number>[]): void;
}

export function openWaits(ledger: Ledger): Waits {
  const own: number[] = [];
  return {
    async until(barrier) {
      const startMs = clockMs();
      try {
        return await ledger.within('wait', barrier);
      } finally {
        own.push(clockMs() - startMs);
      }
    },
    list: () => own,
    blame(ownRank, byRank) {
      for (const [barrier, ownMs] of own.entries()) {
        const waited = byRank.map((waits) => waits[barrier] ?? Infinity);
        const leastMs = Math.min(...waited);
        const last = waited.indexOf(leastMs);
        if (last !== ownRank && ownMs > leastMs) ledger.blame(last, ownMs - leastMs);
      }
    },
  };
}
