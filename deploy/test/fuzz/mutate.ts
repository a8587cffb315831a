import type { Rng } from '../../../proto/random.ts';

/** Bytes as somebody hostile or broken sends them in the place of `bytes`. */
export function mutate(rng: Rng, bytes: Buffer): Buffer {
  let result: Buffer = Buffer.from(bytes);
  for (let times = 1 + rng.integer(3); times > 0; times--) result = mutateOnce(rng, result);
  return result;
}

function mutateOnce(rng: Rng, bytes: Buffer): Buffer {
  const at = rng.integer(bytes.length + 1);
  switch (rng.integer(7)) {
    case 0: // bits
      if (at < bytes.length) bytes[at]! ^= 1 << rng.integer(8);
      return bytes;
    case 1: // cut short
      return bytes.subarray(0, at);
    case 2: // rubbish within
      return Buffer.concat([bytes.subarray(0, at), randomBytes(rng, 64), bytes.subarray(at)]);
    case 3: // again
      return Buffer.concat([bytes, bytes.subarray(at)]);
    case 4: // a length of protobuf beyond all there is
      return Buffer.concat([
        bytes.subarray(0, at),
        Buffer.from('0affffffff0f', 'hex'),
        bytes.subarray(at),
      ]);
    case 5: // groups within groups
      return Buffer.concat([bytes.subarray(0, at), Buffer.alloc(rng.integer(2000), 0x0b)]);
    default: // a number that never ends
      return Buffer.concat([bytes.subarray(0, at), Buffer.alloc(1 + rng.integer(20), 0xff)]);
  }
}

export function randomBytes(rng: Rng, most: number): Buffer {
  return Buffer.from(Array.from({ length: 1 + rng.integer(most) }, () => rng.integer(256)));
}
