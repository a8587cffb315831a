import { totalmem } from 'node:os';
import { PjrtError, USE_LESS } from './c-api.ts';
import type { ExecutableMemory } from './executable.ts';

// What the CPU plugin does not find out before it is too late.

/** Memory that this process may use, bytes: the machine's, or less where its control group says so. */
export function hostMemoryBytes(): number {
  const limit = process.constrainedMemory();
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

/**
 * The plugin takes what the system promises, which may be more than there is: then the system kills the process.
 * @throws PjrtError PJRT_OUT_OF_MEMORY when one execution takes more than `limitBytes`
 */
export function checkFits(
  { argumentBytes, outputBytes, tempBytes, aliasBytes }: ExecutableMemory,
  { numDevices, limitBytes }: { numDevices: number; limitBytes: number },
): void {
  const neededBytes = (argumentBytes + outputBytes + tempBytes - aliasBytes) * numDevices;
  if (neededBytes <= limitBytes) return;
  throw new PjrtError(
    'PJRT_OUT_OF_MEMORY',
    `the program was not run: it takes ${gibibytes(neededBytes)} (arguments ${gibibytes(argumentBytes)}, results ` +
      `${gibibytes(outputBytes)}, temporary ${gibibytes(tempBytes)}${numDevices > 1 ? `, on each of ${numDevices} devices` : ''}), ` +
      `and this machine has ${gibibytes(limitBytes)}. ${USE_LESS}`,
    { status: 'RESOURCE_EXHAUSTED' },
  );
}

/**
 * The compiler divides by zero, which ends the process, where the bytes of an array are a large power of two.
 * @throws PjrtError PJRT_OUT_OF_MEMORY when `mlir` names an array of 512 GiB or more
 */
export function checkArraySizes(mlir: string): void {
  for (const [type, dims, complex, bits] of mlir.matchAll(ARRAY_TYPE)) {
    const numElements = dims!.split('x').reduce((product, dim) => product * Number(dim || 1), 1);
    const sizeBytes = numElements * Math.ceil(Number(bits) / 8) * (complex === undefined ? 1 : 2);
    if (sizeBytes < MAX_ARRAY_BYTES) continue;
    throw new PjrtError(
      'PJRT_OUT_OF_MEMORY',
      `the program was not compiled: a ${type} in it takes ${gibibytes(sizeBytes)}. ${USE_LESS}`,
      { status: 'RESOURCE_EXHAUSTED' },
    );
  }
}

const MAX_ARRAY_BYTES = 2 ** 39;
// As printed: tensor<2x3xf32>, tensor<4xcomplex<f32>>. The types of floats end in their format (f8E4M3FN).
const ARRAY_TYPE = /tensor<((?:\d+x)+)(complex<)?[a-z]+(\d+)\w*>/g;

function gibibytes(bytes: number): string {
  return `${Number((bytes / 2 ** 30).toPrecision(4))} GiB`;
}
