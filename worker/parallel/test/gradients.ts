/** Values over many magnitudes, so that every other order of addition gives other bits. */
export function gradientOf(step: number, microbatch: number, numElements: number): Float32Array {
  let state = (step * 7919 + microbatch * 104_729 + 1) >>> 0;
  return Float32Array.from({ length: numElements }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 2 ** ((state & 31) - 16);
  });
}

/** What a sum, and a gradient before it is summed, is rounded to. */
export type Rounding = (value: number) => number;

/** The definition, in scalars: node(i, size) = round(node(i, size / 2) + node(i + size / 2, size / 2)). */
export function treeSum(
  gradients: readonly Float32Array[],
  round: Rounding = Math.fround,
): Float32Array {
  const node = (element: number, start: number, size: number): number =>
    size === 1
      ? round(gradients[start]![element]!)
      : round(node(element, start, size / 2) + node(element, start + size / 2, size / 2));
  return Float32Array.from(gradients[0]!, (_, element) => node(element, 0, gradients.length));
}

/**
 * The definition of the ring's sum, in scalars: slice s begins with the sum of rank s, to which the ranks after it add
 * theirs one after the other.
 * @param blocks by rank; a rank adds up its own from left to right
 */
export function ringSum(
  blocks: readonly (readonly Float32Array[])[],
  round: Rounding = Math.fround,
): Float32Array {
  const worldSize = blocks.length;
  const numElements = blocks.flat()[0]!.length;
  const cut = (at: number): number =>
    at === worldSize ? numElements : Math.floor((at * numElements) / worldSize / 16) * 16;
  const result = new Float32Array(numElements);
  for (let slice = 0; slice < worldSize; slice++) {
    for (let i = cut(slice); i < cut(slice + 1); i++) {
      let sum = 0;
      for (let hop = 0; hop < worldSize; hop++) {
        const [first, ...rest] = blocks[(slice + hop) % worldSize]!.map((block) => block[i]!);
        if (first === undefined) continue;
        const own = rest.reduce((a, b) => round(a + b), first);
        sum = hop === 0 ? own : round(sum + own);
      }
      result[i] = sum;
    }
  }
  return result;
}

/** The nearest bfloat16 of a finite f32, ties to even, by arithmetic: 8 significant bits, 7 of them stored. */
export function bfloat16Of(value: number): number {
  if (value === 0) return value;
  const exponent = Math.max(-126, Math.floor(Math.log2(Math.abs(value))));
  const unit = 2 ** (exponent - 7);
  const [whole, half] = [Math.floor(value / unit), value / unit - Math.floor(value / unit)];
  return unit * (half > 0.5 || (half === 0.5 && whole % 2 !== 0) ? whole + 1 : whole);
}
