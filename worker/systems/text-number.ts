/**
 * A whole number that float32 holds, equal for equal texts: FNV-1a folded to 24 bits. Two texts of a batch of G have
 * one number with chance G² / 2^25.
 */
export function textNumber(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text))
    hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return (hash ^ (hash >>> 24)) & 0xffffff;
}
