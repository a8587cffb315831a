/** |DFT|² of real frames: frames [size] to powers [size / 2 + 1]; `powers` is written. */
export type PowerSpectrum = (frame: Float64Array, powers: Float64Array) => void;

/**
 * For frames of an even size with small prime factors. The frame's even and odd samples go as real and imaginary parts
 * through a complex transform of half the size, Stockham's self-sorting form with mixed radices: after the radices whose
 * product is l, entry [j, k] of the buffer [l, n / l] is the j-th term of the transform of every (n / l)-th sample from k
 * on. Source: Van Loan, "Computational Frameworks for the Fast Fourier Transform", 1992, sec. 1.7 and 4.3.
 */
export function powerSpectrum(size: number): PowerSpectrum {
  const half = size / 2;
  const stages = stagesOf(half);
  const [cos, sin] = rootsOfUnity(size);
  const buffers = Array.from({ length: 2 }, () => ({
    re: new Float64Array(half),
    im: new Float64Array(half),
  }));

  return (frame, powers) => {
    let [from, to] = buffers as [Complex, Complex];
    for (let i = 0; i < half; i++) {
      from.re[i] = frame[2 * i]!;
      from.im[i] = frame[2 * i + 1]!;
    }
    for (const stage of stages) {
      if (stage.radix === 4) combineFour(stage, from, to);
      else combine(stage, from, to);
      [from, to] = [to, from];
    }
    // The transforms of the even and the odd samples are the parts of it that are Hermitian and anti-Hermitian.
    const { re, im } = from;
    for (let i = 0; i <= half; i++) {
      const p = i === half ? 0 : i;
      const q = i === 0 ? 0 : half - i;
      const oddRe = im[p]! + im[q]!;
      const oddIm = re[q]! - re[p]!;
      const c = i === half ? -1 : cos[i]!;
      const s = i === half ? 0 : sin[i]!;
      const sumRe = re[p]! + re[q]! + oddRe * c - oddIm * s;
      const sumIm = im[p]! - im[q]! + oddRe * s + oddIm * c;
      powers[i] = (sumRe * sumRe + sumIm * sumIm) / 4;
    }
  };
}

interface Complex {
  readonly re: Float64Array;
  readonly im: Float64Array;
}

interface Stage {
  readonly radix: number;
  /** Product of the radices before. */
  readonly done: number;
  /** What is left of the size behind it. */
  readonly after: number;
  /** exp(-2πi jq / (done * radix)), [done * radix, radix]. */
  readonly cos: Float64Array;
  readonly sin: Float64Array;
}

function stagesOf(size: number): Stage[] {
  let done = 1;
  return radicesOf(size).map((radix) => {
    const next = done * radix;
    const angles = Float64Array.from(
      { length: next * radix },
      (_, i) => (-2 * Math.PI * ((Math.floor(i / radix) * (i % radix)) % next)) / next,
    );
    const stage = {
      radix,
      done,
      after: size / next,
      cos: angles.map(Math.cos),
      sin: angles.map(Math.sin),
    };
    done = next;
    return stage;
  });
}

function combine({ radix, done, after, cos, sin }: Stage, from: Complex, to: Complex): void {
  const { re, im } = from;
  const { re: toRe, im: toIm } = to;
  const before = after * radix;
  for (let j = 0, root = 0, at = 0; j < done * radix; j++, root += radix) {
    const block = (j % done) * before;
    for (let k = 0; k < after; k++, at++) {
      let sumRe = re[block + k]!;
      let sumIm = im[block + k]!;
      for (let q = 1, i = block + k + after; q < radix; q++, i += after) {
        const c = cos[root + q]!;
        const s = sin[root + q]!;
        sumRe += re[i]! * c - im[i]! * s;
        sumIm += re[i]! * s + im[i]! * c;
      }
      toRe[at] = sumRe;
      toIm[at] = sumIm;
    }
  }
}

/** As `combine` for radix 4, whose own roots of unity (1, -i, -1, i) take no multiplications. */
function combineFour({ done, after, cos, sin }: Stage, from: Complex, to: Complex): void {
  const { re, im } = from;
  const { re: toRe, im: toIm } = to;
  const quarter = done * after;
  for (let j = 0, at = 0; j < done; j++) {
    const [c1, c2, c3] = [cos[j * 4 + 1]!, cos[j * 4 + 2]!, cos[j * 4 + 3]!];
    const [s1, s2, s3] = [sin[j * 4 + 1]!, sin[j * 4 + 2]!, sin[j * 4 + 3]!];
    for (let k = 0, i0 = j * after * 4; k < after; k++, i0++, at++) {
      const i1 = i0 + after;
      const i2 = i1 + after;
      const i3 = i2 + after;
      const re1 = re[i1]! * c1 - im[i1]! * s1;
      const im1 = re[i1]! * s1 + im[i1]! * c1;
      const re2 = re[i2]! * c2 - im[i2]! * s2;
      const im2 = re[i2]! * s2 + im[i2]! * c2;
      const re3 = re[i3]! * c3 - im[i3]! * s3;
      const im3 = re[i3]! * s3 + im[i3]! * c3;
      const evenRe = re[i0]! + re2;
      const evenIm = im[i0]! + im2;
      const oddRe = re1 + re3;
      const oddIm = im1 + im3;
      const evenGapRe = re[i0]! - re2;
      const evenGapIm = im[i0]! - im2;
      const oddGapRe = re1 - re3;
      const oddGapIm = im1 - im3;
      toRe[at] = evenRe + oddRe;
      toIm[at] = evenIm + oddIm;
      toRe[at + quarter] = evenGapRe + oddGapIm;
      toIm[at + quarter] = evenGapIm - oddGapRe;
      toRe[at + 2 * quarter] = evenRe - oddRe;
      toIm[at + 2 * quarter] = evenIm - oddIm;
      toRe[at + 3 * quarter] = evenGapRe - oddGapIm;
      toIm[at + 3 * quarter] = evenGapIm + oddGapRe;
    }
  }
}

/** Fours first, then primes. */
function radicesOf(size: number): number[] {
  const radices: number[] = [];
  let rest = size;
  for (; rest % 4 === 0; rest /= 4) radices.push(4);
  for (let prime = 2; rest > 1;) {
    if (rest % prime === 0) {
      radices.push(prime);
      rest /= prime;
    } else prime++;
  }
  return radices;
}

/** exp(-2πi k / size): cosines and sines, [size] each. */
function rootsOfUnity(size: number): [Float64Array, Float64Array] {
  const angles = Float64Array.from({ length: size }, (_, k) => (-2 * Math.PI * k) / size);
  return [angles.map(Math.cos), angles.map(Math.sin)];
}
