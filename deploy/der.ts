/** The few pieces of DER that a certificate is made of. Source: ITU-T X.690, sections 8 and 10. */

/** A value with its tag and length. */
function element(tag: number, ...content: readonly Buffer[]): Buffer {
  const body = Buffer.concat(content);
  if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  const digits = length.subarray(length.findIndex((byte) => byte !== 0));
  return Buffer.concat([Buffer.from([tag, 0x80 | digits.length]), digits, body]);
}

export const sequence = (...items: readonly Buffer[]): Buffer => element(0x30, ...items);
export const set = (item: Buffer): Buffer => element(0x31, item);
export const octets = (content: Buffer): Buffer => element(0x04, content);
export const utf8 = (text: string): Buffer => element(0x0c, Buffer.from(text));
export const yes = (): Buffer => element(0x01, Buffer.from([0xff]));

/** A positive whole number, big-endian. */
export function integer(bytes: Buffer): Buffer {
  const first = bytes.findIndex((byte) => byte !== 0);
  const digits = first === -1 ? Buffer.alloc(1) : bytes.subarray(first);
  return element(0x02, ...(digits[0]! < 0x80 ? [] : [Buffer.alloc(1)]), digits);
}

/** @param unusedBits at the end of the last byte */
export function bits(content: Buffer, unusedBits = 0): Buffer {
  return element(0x03, Buffer.from([unusedBits]), content);
}

/** `[number]` around other elements. */
export function explicit(number: number, ...items: readonly Buffer[]): Buffer {
  return element(0xa0 | number, ...items);
}

/** `[number]` in the place of a primitive element's own tag. */
export function implicit(number: number, content: Buffer): Buffer {
  return element(0x80 | number, content);
}

/** An object identifier such as `2.5.4.3`. */
export function oid(dotted: string): Buffer {
  const [first, second, ...rest] = dotted.split('.').map(Number);
  const digits = [40 * first! + second!, ...rest].flatMap((arc) => {
    const base128 = [arc % 128];
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128))
      base128.unshift(0x80 | (left % 128));
    return base128;
  });
  return element(0x06, Buffer.from(digits));
}

/** A moment to the second; two digits of the year until 2049, as RFC 5280 (section 4.1.2.5) wants it. */
export function time(date: Date): Buffer {
  const digits = date.toISOString().replace(/[-:T]|\.\d+/g, '');
  return date.getUTCFullYear() < 2050
    ? element(0x17, Buffer.from(digits.slice(2)))
    : element(0x18, Buffer.from(digits));
}
