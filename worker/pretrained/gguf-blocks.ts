/**
 * Weights as ggml packs them: blocks of numbers with few bits and a common scale. Results have the bits of gguf-py's:
 * products are rounded to float32 where it rounds them. Source: github.com/ggml-org/llama.cpp, ggml/src/ggml-quants.c.
 */
import { halfToFloat } from './model-folder.ts';

interface Layout {
  /** ggml_type */
  readonly number: number;
  /** Numbers a block. */
  readonly blockSize: number;
  readonly blockBytes: number;
}

export const GGML_TYPES = {
  F32: { number: 0, blockSize: 1, blockBytes: 4 },
  F16: { number: 1, blockSize: 1, blockBytes: 2 },
  BF16: { number: 30, blockSize: 1, blockBytes: 2 },
  Q4_0: { number: 2, blockSize: 32, blockBytes: 18 },
  Q4_1: { number: 3, blockSize: 32, blockBytes: 20 },
  Q5_0: { number: 6, blockSize: 32, blockBytes: 22 },
  Q5_1: { number: 7, blockSize: 32, blockBytes: 24 },
  Q8_0: { number: 8, blockSize: 32, blockBytes: 34 },
  Q4_K: { number: 12, blockSize: 256, blockBytes: 144 },
  Q5_K: { number: 13, blockSize: 256, blockBytes: 176 },
  Q6_K: { number: 14, blockSize: 256, blockBytes: 210 },
} as const satisfies Record<string, Layout>;

export type GgmlType = keyof typeof GGML_TYPES;

/** The blocks' numbers, one after another. */
export function dequantize(bytes: Uint8Array, type: GgmlType): Float32Array {
  const { blockSize, blockBytes } = GGML_TYPES[type];
  const out = new Float32Array((bytes.length / blockBytes) * blockSize);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const unpack = UNPACK[type];
  for (let block = 0; block < out.length / blockSize; block++) {
    unpack(view, block * blockBytes, out, block * blockSize);
  }
  return out;
}

/** One block that begins at `at`, into `out` from `to` on. */
type Unpack = (view: DataView, at: number, out: Float32Array, to: number) => void;

const half = (view: DataView, at: number): number => halfToFloat(view.getUint16(at, true));

const wide = new DataView(new ArrayBuffer(4));

const UNPACK: Readonly<Record<GgmlType, Unpack>> = {
  F32: (view, at, out, to) => {
    out[to] = view.getFloat32(at, true);
  },
  F16: (view, at, out, to) => {
    out[to] = half(view, at);
  },
  BF16: (view, at, out, to) => {
    wide.setUint32(0, view.getUint16(at, true) << 16);
    out[to] = wide.getFloat32(0);
  },
  Q4_0: (view, at, out, to) => {
    const scale = half(view, at);
    for (let i = 0; i < 16; i++) {
      const pair = view.getUint8(at + 2 + i);
      out[to + i] = scale * ((pair & 15) - 8);
      out[to + 16 + i] = scale * ((pair >> 4) - 8);
    }
  },
  Q4_1: (view, at, out, to) => {
    const [scale, least] = [half(view, at), half(view, at + 2)];
    for (let i = 0; i < 16; i++) {
      const pair = view.getUint8(at + 4 + i);
      out[to + i] = Math.fround(scale * (pair & 15)) + least;
      out[to + 16 + i] = Math.fround(scale * (pair >> 4)) + least;
    }
  },
  Q5_0: (view, at, out, to) => {
    const scale = half(view, at);
    const high = view.getUint32(at + 2, true);
    for (let i = 0; i < 16; i++) {
      const pair = view.getUint8(at + 6 + i);
      out[to + i] = scale * (((pair & 15) | (((high >>> i) & 1) << 4)) - 16);
      out[to + 16 + i] = scale * (((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
    }
  },
  Q5_1: (view, at, out, to) => {
    const [scale, least] = [half(view, at), half(view, at + 2)];
    const high = view.getUint32(at + 4, true);
    for (let i = 0; i < 16; i++) {
      const pair = view.getUint8(at + 8 + i);
      const [low, upper] = [(high >>> i) & 1, (high >>> (i + 16)) & 1];
      out[to + i] = Math.fround(scale * ((pair & 15) | (low << 4))) + least;
      out[to + 16 + i] = Math.fround(scale * ((pair >> 4) | (upper << 4))) + least;
    }
  },
  Q8_0: (view, at, out, to) => {
    const scale = half(view, at);
    for (let i = 0; i < 32; i++) out[to + i] = scale * view.getInt8(at + 2 + i);
  },
  Q4_K: (view, at, out, to) => {
    for (let group = 0; group < 8; group++) {
      const { scale, least } = groupScale(view, at, group);
      const shift = (group & 1) * 4;
      const from = at + 16 + (group >> 1) * 32;
      for (let i = 0; i < 32; i++) {
        const level = (view.getUint8(from + i) >> shift) & 15;
        out[to + group * 32 + i] = Math.fround(scale * level) - least;
      }
    }
  },
  Q5_K: (view, at, out, to) => {
    for (let group = 0; group < 8; group++) {
      const { scale, least } = groupScale(view, at, group);
      const shift = (group & 1) * 4;
      const from = at + 48 + (group >> 1) * 32;
      for (let i = 0; i < 32; i++) {
        const high = (view.getUint8(at + 16 + i) >> group) & 1;
        const level = ((view.getUint8(from + i) >> shift) & 15) | (high << 4);
        out[to + group * 32 + i] = Math.fround(scale * level) - least;
      }
    }
  },
  Q6_K: (view, at, out, to) => {
    const all = half(view, at + 208);
    for (let i = 0; i < 256; i++) {
      // Halves of 128; in each, quarters of 32 that share the bytes of their low and high bits.
      const [part, quarter, k] = [i >> 7, (i >> 5) & 3, i & 31];
      const low = view.getUint8(at + part * 64 + (quarter & 1) * 32 + k) >> ((quarter >> 1) * 4);
      const high = view.getUint8(at + 128 + part * 32 + k) >> (quarter * 2);
      const scale = Math.fround(all * view.getInt8(at + 192 + (i >> 4)));
      out[to + i] = scale * (((low & 15) | ((high & 3) << 4)) - 32);
    }
  },
};

/** Scale and least value of a group of 32 in a Q4_K or Q5_K block: 6 bits each, packed into 12 bytes. */
function groupScale(view: DataView, at: number, group: number): { scale: number; least: number } {
  const byte = (i: number): number => view.getUint8(at + 4 + i);
  const [scale, least] =
    group < 4
      ? [byte(group) & 63, byte(group + 4) & 63]
      : [
          (byte(group + 4) & 15) | ((byte(group - 4) >> 6) << 4),
          (byte(group + 4) >> 4) | ((byte(group) >> 6) << 4),
        ];
  return {
    scale: Math.fround(half(view, at) * scale),
    least: Math.fround(half(view, at + 2) * least),
  };
}
