/** Values over many magnitudes, so that every other order of addition gives other bits. */
export function gradientOf(step: number, microbatch: number, numElements: number): Float32Array {
  let state = (step * 7919 + microbatch * 104_729 + 1) >>> 0;
  return Float32Array.from({ length: numElements }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 2 ** ((state & 31) - 16);
  });
}

/** The definition, in scalars: node(i, size) = fround(node(i, size / 2) + node(i + size / 2, size / 2)). */
export function treeSum(gradients: readonly Float32Array[]): Float32Array {
  const node = (element: number, start: number, size: number): number =>
    size === 1
      ? gradients[start]![element]!
      : Math.fround(node(element, start, size / 2) + node(element, start + size / 2, size / 2));
  return Float32Array.from(gradients[0]!, (_, element) => node(element, 0, gradients.length));
}
