/** Arrays of real numbers from files of NumPy and safetensors. */
import { readFile } from 'node:fs/promises';
import { messageOf, UsageError, VideoloomError } from '../../../proto/errors.ts';
import { decodeSafetensors, type Dtype } from '../../checkpoint/format.ts';
import { halfToFloat } from '../../pretrained/model-folder.ts';
import { invalid } from './records.ts';

/** Row-major. */
export interface NumberArray {
  readonly shape: readonly number[];
  readonly data: Float32Array | Float64Array;
}

/**
 * The arrays of a file by name; that of a `.npy` file has the name `similarity`.
 * @throws UsageError SCORE_FILE_INVALID
 */
export async function readArrays(path: string): Promise<Map<string, NumberArray>> {
  const bytes = await readFile(path).catch((error: unknown) => {
    throw new UsageError('SCORE_FILE_INVALID', `${path} cannot be read: ${messageOf(error)}`);
  });
  if (bytes.subarray(0, NPY_MAGIC.length).equals(NPY_MAGIC))
    return new Map([['similarity', npyArray(bytes, path)]]);
  try {
    return new Map(
      [...decodeSafetensors(bytes).tensors].map(([name, { dtype, shape, data }]) => [
        name,
        { shape, data: numbersOf(dtype, data, `${path}: ${name}`) },
      ]),
    );
  } catch (error) {
    if (!(error instanceof VideoloomError) || error instanceof UsageError) throw error;
    throw invalid(path, `it is neither .npy nor safetensors: ${error.message}`);
  }
}

function numbersOf(dtype: Dtype, view: Uint8Array, at: string): Float32Array | Float64Array {
  // Copied, as a tensor may lie at any byte.
  const { buffer } = new Uint8Array(view);
  switch (dtype) {
    case 'F64':
      return new Float64Array(buffer);
    case 'F32':
      return new Float32Array(buffer);
    case 'F16':
      return Float32Array.from(new Uint16Array(buffer), halfToFloat);
    case 'BF16':
      return new Float32Array(
        Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer,
      );
    default:
      throw invalid(at, `it holds ${dtype}: F64, F32, F16 or BF16 are read`);
  }
}

const NPY_MAGIC = Buffer.from('\x93NUMPY', 'latin1');
const NPY_DTYPES: Readonly<Record<string, Dtype>> = { '<f8': 'F64', '<f4': 'F32', '<f2': 'F16' };

/** Source: numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1.0 to 3.0. */
function npyArray(bytes: Buffer, path: string): NumberArray {
  const isLong = bytes[6] !== 1;
  const start = isLong ? 12 : 10;
  if (bytes.length < start) throw invalid(path, 'its header is cut off');
  const length = isLong ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8);
  if (bytes.length < start + length) throw invalid(path, 'its header is cut off');
  const header = bytes.toString('latin1', start, start + length);
  const descr = /'descr': '([^']*)'/.exec(header)?.[1] ?? '';
  const dims = /'shape': \(([^)]*)\)/.exec(header)?.[1];
  const dtype = NPY_DTYPES[descr];
  if (dims === undefined) throw invalid(path, 'its header has no shape');
  if (dtype === undefined)
    throw invalid(path, `it holds ${descr}: little-endian floats of 2, 4 or 8 bytes are read`);
  const shape = dims
    .split(',')
    .filter((dim) => dim.trim() !== '')
    .map(Number);
  const numBytes = shape.reduce((a, b) => a * b, 1) * Number(descr.at(-1));
  const numFound = bytes.length - start - length;
  if (numFound !== numBytes)
    throw invalid(
      path,
      `it has ${numFound} bytes of numbers, and its shape [${shape.join(', ')}] takes ${numBytes}: it is ` +
        (numFound < numBytes ? 'cut off, copy it again' : 'no array alone'),
    );
  const data = numbersOf(dtype, bytes.subarray(start + length), path);
  if (!header.includes("'fortran_order': True")) return { shape, data };
  if (shape.length !== 2) throw invalid(path, 'in Fortran order two axes are read');
  const [rows, columns] = shape as [number, number];
  return { shape, data: data.map((_, i) => data[(i % columns) * rows + Math.floor(i / columns)]!) };
}
