/** Where data lies and the directions in which it varies most. */
export interface PrincipalComponents {
  /** [D] */
  readonly mean: Float32Array;
  /** Orthonormal rows by falling variance, [K, D]. Of each, the largest entry by size is positive. */
  readonly components: Float32Array;
}

// Below this share of the largest variance a direction is rounding error.
const NEGLIGIBLE = 1e-10;
const MAX_SWEEPS = 60;

/**
 * Rows [N, D] to at most `maxComponents` directions, at least one; fewer where the data has fewer. Float64 within, in a
 * fixed order: the same bits everywhere.
 */
export function principalComponents(
  rows: Float32Array,
  width: number,
  maxComponents: number,
): PrincipalComponents {
  const count = rows.length / width;
  const mean = new Float64Array(width);
  for (let i = 0; i < rows.length; i++) mean[i % width]! += rows[i]! / count;
  const covariance = new Float64Array(width * width);
  const centred = new Float64Array(width);
  for (let row = 0; row < count; row++) {
    for (let d = 0; d < width; d++) centred[d] = rows[row * width + d]! - mean[d]!;
    for (let i = 0; i < width; i++) {
      const value = centred[i]! / count;
      for (let j = i; j < width; j++) covariance[i * width + j]! += value * centred[j]!;
    }
  }
  for (let i = 0; i < width; i++) {
    for (let j = 0; j < i; j++) covariance[i * width + j] = covariance[j * width + i]!;
  }
  const { values, vectors } = symmetricEigen(covariance, width);
  const order = Array.from(values.keys()).sort((a, b) => values[b]! - values[a]! || a - b);
  const largest = Math.max(values[order[0]!]!, Number.MIN_VALUE);
  const kept = order
    .filter((i, rank) => rank === 0 || values[i]! > NEGLIGIBLE * largest)
    .slice(0, maxComponents);
  const components = new Float32Array(kept.length * width);
  for (const [k, index] of kept.entries()) {
    let top = 0;
    for (let d = 1; d < width; d++) {
      if (Math.abs(vectors[d * width + index]!) > Math.abs(vectors[top * width + index]!) + 1e-12)
        top = d;
    }
    const sign = vectors[top * width + index]! < 0 ? -1 : 1;
    for (let d = 0; d < width; d++) components[k * width + d] = sign * vectors[d * width + index]!;
  }
  return { mean: Float32Array.from(mean), components };
}

/** Rows [N, D] to their coordinates [N, K] along the components. */
export function project(
  rows: Float32Array,
  { mean, components }: PrincipalComponents,
): Float64Array {
  const width = mean.length;
  const [count, numComponents] = [rows.length / width, components.length / width];
  const points = new Float64Array(count * numComponents);
  for (let row = 0; row < count; row++) {
    for (let k = 0; k < numComponents; k++) {
      let sum = 0;
      for (let d = 0; d < width; d++)
        sum += (rows[row * width + d]! - mean[d]!) * components[k * width + d]!;
      points[row * numComponents + k] = sum;
    }
  }
  return points;
}

/**
 * Eigenvalues and eigenvectors (columns of [D, D]) of a symmetric matrix, in no order.
 * Source: cyclic Jacobi, Golub & Van Loan, Matrix Computations, 4th ed., sec. 8.5.
 */
function symmetricEigen(
  matrix: Float64Array,
  width: number,
): { values: Float64Array; vectors: Float64Array } {
  const a = matrix.slice();
  const vectors = new Float64Array(width * width);
  for (let i = 0; i < width; i++) vectors[i * width + i] = 1;
  let total = 0;
  for (const value of a) total += value * value;
  for (let sweep = 0; sweep < MAX_SWEEPS; sweep++) {
    let off = 0;
    for (let p = 0; p < width; p++) {
      for (let q = p + 1; q < width; q++) off += a[p * width + q]! ** 2;
    }
    if (off <= 1e-26 * total) break;
    for (let p = 0; p < width; p++) {
      for (let q = p + 1; q < width; q++) {
        const apq = a[p * width + q]!;
        if (apq === 0) continue;
        const tau = (a[q * width + q]! - a[p * width + p]!) / (2 * apq);
        const t = (tau >= 0 ? 1 : -1) / (Math.abs(tau) + Math.sqrt(1 + tau * tau));
        const c = 1 / Math.sqrt(1 + t * t);
        const s = t * c;
        for (let i = 0; i < width; i++) {
          const [aip, aiq] = [a[i * width + p]!, a[i * width + q]!];
          a[i * width + p] = c * aip - s * aiq;
          a[i * width + q] = s * aip + c * aiq;
        }
        for (let i = 0; i < width; i++) {
          const [api, aqi] = [a[p * width + i]!, a[q * width + i]!];
          a[p * width + i] = c * api - s * aqi;
          a[q * width + i] = s * api + c * aqi;
          const [vip, viq] = [vectors[i * width + p]!, vectors[i * width + q]!];
          vectors[i * width + p] = c * vip - s * viq;
          vectors[i * width + q] = s * vip + c * viq;
        }
      }
    }
  }
  return { values: Float64Array.from({ length: width }, (_, i) => a[i * width + i]!), vectors };
}
