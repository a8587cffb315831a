/**
 * JPEG through libjpeg-turbo: the same pixels as sharp gives (both decode exactly as libjpeg does), at an eighth to a
 * sixth of its time, because sharp's libjpeg comes without SIMD and a pipeline of libvips is built for each picture.
 * Whatever is not plain (CMYK, turned by EXIF, 12 bits, damaged) is left to sharp, which also says what is wrong.
 * Source: turbojpeg.h of libjpeg-turbo 2.0 and later.
 */
import { koffi } from '../../proto/koffi.ts';

/** What a plain JPEG says of itself. */
export interface PlainJpeg {
  readonly width: number;
  readonly height: number;
}

/** A decoder for this process; it keeps nothing between calls but its working memory. */
export interface JpegTurbo {
  /**
   * Decodes to RGB, [ceil(height / shrink), ceil(width / shrink), 3], at the beginning of `into`. False if libjpeg has
   * anything to object, be it a warning; `into` holds anything then.
   */
  decode(bytes: Uint8Array, picture: PlainJpeg, into: Uint8Array, shrink: 1 | 2 | 4 | 8): boolean;
}

const RGB = 0;
const STOP_ON_WARNING = 8192;
/** At most 500 scans: more are no picture but a bomb. */
const LIMIT_SCANS = 32768;

/** By the name that the system's loader knows. */
const LIBRARIES = ['libturbojpeg.so.0', 'libturbojpeg.dylib'];
/** koffi unloads a library that nothing refers to. */
const loaded: unknown[] = [];

/** Undefined where the system has no libjpeg-turbo (Debian's package libturbojpeg0). */
export function openJpegTurbo(): JpegTurbo | undefined {
  for (const file of LIBRARIES) {
    try {
      const library = koffi.load(file);
      loaded.push(library);
      const handle: unknown = library.func('void *tjInitDecompress()')();
      if (handle === null) continue;
      const decompress = library.func(
        'int tjDecompress2(void *handle, const void *jpeg, unsigned long jpegBytes, void *into, ' +
          'int width, int pitch, int height, int pixelFormat, int flags)',
      );
      return {
        decode(bytes, { width, height }, into, shrink) {
          const size = { width: Math.ceil(width / shrink), height: Math.ceil(height / shrink) };
          if (into.length < size.width * size.height * 3) return false;
          const status: unknown = decompress(
            ...[handle, bytes, bytes.length, into],
            ...[size.width, size.width * 3, size.height, RGB, STOP_ON_WARNING | LIMIT_SCANS],
          );
          return status === 0;
        },
      };
    } catch {
      // Not here, or not for this machine: the next place, in the end sharp.
    }
  }
  return undefined;
}

/**
 * Reads the markers before the pixels. Undefined unless it is a grey or colour JPEG of 8 bits with Huffman coding that
 * is shown as it is coded. Source: ITU-T T.81, sec. B.1.1.3 and B.2.2.
 */
export function readPlainJpeg(bytes: Uint8Array): PlainJpeg | undefined {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < 4 || data.getUint16(0) !== 0xffd8) return undefined;
  for (let at = 2; at + 4 <= bytes.length;) {
    if (data.getUint8(at) !== 0xff) return undefined;
    const marker = data.getUint8(at + 1);
    const length = data.getUint16(at + 2);
    const end = at + 2 + length;
    if (length < 2 || end > bytes.length) return undefined;
    // Baseline, extended sequential, progressive.
    if (marker === 0xc0 || marker === 0xc1 || marker === 0xc2) {
      if (length < 8 || data.getUint8(at + 4) !== 8) return undefined;
      const numComponents = data.getUint8(at + 9);
      const [height, width] = [data.getUint16(at + 5), data.getUint16(at + 7)];
      const isKnown = (numComponents === 1 || numComponents === 3) && width > 0 && height > 0;
      return isKnown ? { width, height } : undefined;
    }
    const isTable = marker === 0xdb || marker === 0xc4 || marker === 0xdd || marker === 0xfe;
    const isApplication = marker >= 0xe0 && marker <= 0xef;
    if (!isTable && !isApplication) return undefined;
    if (marker === 0xe1 && !isUpright(data, at + 4, end)) return undefined;
    at = end;
  }
  return undefined;
}

/** Whether an APP1 segment is no EXIF, or one that surely asks for no turn. Source: EXIF 2.32, sec. 4.5.4 and 4.6.4. */
function isUpright(data: DataView, from: number, end: number): boolean {
  if (end - from < 4 || data.getUint32(from) !== 0x45786966) return true;
  const tiff = from + 6;
  if (tiff + 8 > end) return false;
  const order = data.getUint16(tiff);
  if (order !== 0x4949 && order !== 0x4d4d) return false;
  const isLittle = order === 0x4949;
  const directory = tiff + data.getUint32(tiff + 4, isLittle);
  if (directory + 2 > end) return false;
  const numEntries = data.getUint16(directory, isLittle);
  if (directory + 2 + numEntries * 12 > end) return false;
  for (let entry = directory + 2, i = 0; i < numEntries; i++, entry += 12) {
    if (data.getUint16(entry, isLittle) !== 0x0112) continue;
    const isOneShort =
      data.getUint16(entry + 2, isLittle) === 3 && data.getUint32(entry + 4, isLittle) === 1;
    return isOneShort && data.getUint16(entry + 8, isLittle) === 1;
  }
  return true;
}
