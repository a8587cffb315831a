/** So many of them at most, spread evenly. */
export function spread<T>(all: readonly T[], limit: number): T[] {
  const count = Math.min(limit, all.length);
  return Array.from({ length: count }, (_, i) => all[Math.floor((i * all.length) / count)]!);
}
