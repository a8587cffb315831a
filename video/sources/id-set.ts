import { createHash } from 'node:crypto';

/** Which ids were there before. */
export interface IdSet {
  /** Whether the id is new; it is in the set from then on. */
  add(id: string): boolean;
}

/**
 * A set of ids by 64 bits of their SHA-256, in 16 to 32 bytes an id: of ten million ids, two are taken for the same by
 * mistake with a probability of 3e-6, and the later sample is then told as a duplicate.
 */
export function openIdSet(): IdSet {
  let slots = new Uint32Array(2 * 2 ** 10); // two of an id one after the other, both 0: free
  let size = 0;
  const insert = (into: Uint32Array, low: number, high: number): boolean => {
    const mask = into.length / 2 - 1;
    for (let at = low & mask; ; at = (at + 1) & mask) {
      if (into[2 * at] === low && into[2 * at + 1] === high) return false;
      if (into[2 * at] === 0 && into[2 * at + 1] === 0) {
        into.set([low, high], 2 * at);
        return true;
      }
    }
  };
  return {
    add(id) {
      if (4 * size >= slots.length) {
        const larger = new Uint32Array(2 * slots.length);
        for (let i = 0; i < slots.length; i += 2) {
          if (slots[i] !== 0 || slots[i + 1] !== 0) insert(larger, slots[i]!, slots[i + 1]!);
        }
        slots = larger;
      }
      const digest = createHash('sha256').update(id).digest();
      const isNew = insert(slots, digest.readUInt32LE(0), digest.readUInt32LE(4) || 1);
      if (isNew) size++;
      return isNew;
    },
  };
}
