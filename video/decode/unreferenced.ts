/**
 * Which packets hold a picture that no other picture refers to, told by their headers alone: such a packet can be left
 * out before the decoder and every other picture stays the same, bit for bit.
 *
 * Sources: ITU-T H.264, sec. 7.4.1 (nal_ref_idc) and 7.3.2.1.1 (sequence parameter set); ITU-T H.265, sec. 7.4.2.2
 * (sub-layer non-reference pictures); ISO/IEC 14496-15, sec. 5.3.3.1 and 8.3.3.1 (avcC, hvcC).
 */

/** Takes the packets of one stream in decoding order; true: nothing refers to this picture. False is always safe. */
export type IsUnreferenced = (packet: Buffer) => boolean;

/** `extradata`: the container's decoder configuration; without it parameter sets are looked for in the packets. */
export function h264Unreferenced(extradata: Buffer | null): IsUnreferenced {
  const isConfigured = extradata !== null && extradata.length > 6 && extradata[0] === 1;
  const lengthBytes = isConfigured ? (extradata[4]! & 3) + 1 : 0;
  // One of two fields may be referred to and the other not, and each may come in a packet of its own.
  let isProgressive: boolean | undefined;
  const readSps = (unit: Buffer): void => {
    isProgressive = isProgressive !== false && isFrameOnly(unit);
  };
  for (const unit of isConfigured ? avcParameterSets(extradata) : units(extradata, 0)) {
    if ((unit[0]! & 31) === H264.SPS) readSps(unit);
  }
  return (packet) => {
    let isUnreferenced: boolean | undefined;
    for (const unit of units(packet, lengthBytes)) {
      const type = unit[0]! & 31;
      if (type === H264.SPS) readSps(unit);
      if (type === H264.SLICE) isUnreferenced = isUnreferenced !== false && (unit[0]! & 0x60) === 0;
      else if (!H264.PASSED_OVER.has(type)) isUnreferenced = false;
    }
    return isUnreferenced === true && isProgressive === true;
  };
}

/** As `h264Unreferenced`; pictures of the highest temporal layer alone are promised to be nobody's reference. */
export function hevcUnreferenced(extradata: Buffer | null): IsUnreferenced {
  const isConfigured = extradata !== null && extradata.length > 22 && extradata[0] === 1;
  const lengthBytes = isConfigured ? (extradata[21]! & 3) + 1 : 0;
  let highest = -1;
  const readSps = (unit: Buffer): void => {
    highest = Math.max(highest, (unit[2]! >> 1) & 7); // sps_max_sub_layers_minus1
  };
  const typeOf = (unit: Buffer): number => (unit[0]! >> 1) & 63;
  for (const unit of isConfigured ? hevcParameterSets(extradata) : units(extradata, 0)) {
    if (typeOf(unit) === HEVC.SPS && unit.length > 2) readSps(unit);
  }
  return (packet) => {
    let isUnreferenced: boolean | undefined;
    for (const unit of units(packet, lengthBytes)) {
      if (unit.length < 3) return false;
      const type = typeOf(unit);
      const layer = ((unit[0]! & 1) << 5) | (unit[1]! >> 3);
      if (type === HEVC.SPS) readSps(unit);
      // Types below 16 come in pairs, the even one for pictures that their own sub-layer does not refer to.
      if (type < 16 && type % 2 === 0 && layer === 0 && (unit[1]! & 7) - 1 === highest) {
        isUnreferenced ??= true;
      } else if (!HEVC.PASSED_OVER.has(type)) isUnreferenced = false;
    }
    return isUnreferenced === true;
  };
}

const H264 = { SLICE: 1, SPS: 7, /** SEI, delimiter, filler */ PASSED_OVER: new Set([6, 9, 12]) };
const HEVC = {
  SPS: 33,
  /** Delimiter, filler, SEI before and after */ PASSED_OVER: new Set([35, 38, 39, 40]),
};

/** NAL units with a length of so many bytes before each; 0: start codes between them. */
function* units(bytes: Buffer | null, lengthBytes: number): Generator<Buffer> {
  if (!bytes) return;
  if (lengthBytes > 0) {
    for (let at = 0; at + lengthBytes < bytes.length;) {
      const from = at + lengthBytes;
      at = from + bytes.readUIntBE(at, lengthBytes);
      if (at > from) yield bytes.subarray(from, at);
    }
    return;
  }
  for (let at = bytes.indexOf(START_CODE); at >= 0;) {
    const next = bytes.indexOf(START_CODE, at + 3);
    if (at + 3 < bytes.length) yield bytes.subarray(at + 3, next < 0 ? bytes.length : next);
    at = next;
  }
}
const START_CODE = Buffer.from([0, 0, 1]);

function* avcParameterSets(config: Buffer): Generator<Buffer> {
  for (let at = 6, left = config[5]! & 31; left > 0 && at + 2 < config.length; left--) {
    const size = config.readUInt16BE(at);
    yield config.subarray(at + 2, at + 2 + size);
    at += 2 + size;
  }
}

function* hevcParameterSets(config: Buffer): Generator<Buffer> {
  let at = 23;
  for (let arrays = config[22]!; arrays > 0 && at + 3 <= config.length; arrays--) {
    let left = config.readUInt16BE(at + 1);
    at += 3;
    for (; left > 0 && at + 2 < config.length; left--) {
      const size = config.readUInt16BE(at);
      yield config.subarray(at + 2, at + 2 + size);
      at += 2 + size;
    }
  }
}

/** Profiles whose parameter sets tell more of colour. */
const HIGH_PROFILES = new Set([100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135]);

/** frame_mbs_only_flag of a sequence parameter set: whether there are no fields. */
function isFrameOnly(unit: Buffer): boolean {
  const bits = new BitReader(withoutEmulation(unit.subarray(1)));
  const profile = bits.take(8);
  bits.take(16);
  bits.exp();
  if (HIGH_PROFILES.has(profile)) {
    const chroma = bits.exp();
    if (chroma === 3) bits.take(1);
    bits.exp();
    bits.exp();
    bits.take(1);
    if (bits.take(1) === 1) {
      for (let list = 0; list < (chroma === 3 ? 12 : 8); list++) {
        if (bits.take(1) === 0) continue;
        let [last, next] = [8, 8];
        for (let i = 0; i < (list < 6 ? 16 : 64); i++) {
          if (next !== 0) next = (last + bits.signedExp() + 256) % 256;
          if (next !== 0) last = next;
        }
      }
    }
  }
  bits.exp();
  const orderType = bits.exp();
  if (orderType === 0) bits.exp();
  if (orderType === 1) {
    bits.take(1);
    bits.exp();
    bits.exp();
    for (let left = Math.min(bits.exp(), 255); left > 0; left--) bits.exp();
  }
  bits.exp();
  bits.take(1);
  bits.exp();
  bits.exp();
  return bits.take(1) === 1;
}

/** Source: ITU-T H.264, sec. 7.4.1.1. */
function withoutEmulation(bytes: Buffer): Buffer {
  const kept: number[] = [];
  for (const [i, byte] of bytes.entries()) {
    if (byte !== 3 || i < 2 || bytes[i - 1] !== 0 || bytes[i - 2] !== 0) kept.push(byte);
  }
  return Buffer.from(kept);
}

/** Zeros follow after the end. */
class BitReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  take(count: number): number {
    let value = 0;
    for (; count > 0; count--, this.#at++) {
      value = value * 2 + (((this.#bytes[this.#at >> 3] ?? 0) >> (7 - (this.#at & 7))) & 1);
    }
    return value;
  }

  /** Unsigned Exp-Golomb. Source: ITU-T H.264, sec. 9.1. */
  exp(): number {
    let zeros = 0;
    while (zeros < 32 && this.take(1) === 0) zeros++;
    return 2 ** zeros - 1 + this.take(zeros);
  }

  signedExp(): number {
    const code = this.exp();
    return code % 2 === 1 ? (code + 1) / 2 : -code / 2;
  }
}
