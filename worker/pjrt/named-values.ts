import { arrayOf, bytesAt, PJRT_NamedValue, type Struct, textAt, wordsAt } from './structs.ts';

/** Options of a client by name; integers and other numbers are told apart by their value, lists are of integers. */
export type NamedValues = Readonly<Record<string, string | number | boolean | readonly number[]>>;

// Source: PJRT_NamedValue_Type in pjrt_c_api.h.
const [STRING, INT64, INT64_LIST, FLOAT, BOOL] = [0, 1, 2, 3, 4];
const utf8 = new TextEncoder();

/** An array of PJRT_NamedValue. */
export function writeNamedValues(values: NamedValues): { list: Struct<string>; count: number } {
  const structs = Object.entries(values).map(([key, value]) => {
    const name = utf8.encode(key);
    return PJRT_NamedValue({ name, name_size: name.length, ...encode(value) });
  });
  return { list: arrayOf(structs), count: structs.length };
}

function encode(value: NamedValues[string]) {
  if (typeof value === 'string') {
    const text = utf8.encode(value);
    return { type: STRING, value: text, value_size: text.length };
  }
  if (typeof value === 'boolean') return { type: BOOL, value: Number(value), value_size: 1 };
  if (typeof value !== 'number')
    return {
      type: INT64_LIST,
      value: BigInt64Array.from(value, BigInt),
      value_size: value.length,
    };
  return Number.isInteger(value)
    ? { type: INT64, value, value_size: 1 }
    : { type: FLOAT, value: floatBits(value), value_size: 1 };
}

/** Reads `count` PJRT_NamedValue at `address`; 64-bit integers become numbers, lists arrays of them. */
export function readNamedValues(
  address: bigint,
  count: number,
): Map<string, string | number | boolean | number[]> {
  const values = new Map<string, string | number | boolean | number[]>();
  let at = address;
  for (let i = 0; i < count; i++) {
    const sizeBytes = wordsAt(at, 1)[0]!;
    const [, , name, nameSize, type, word, size] = wordsAt(at, 7) as unknown as bigint[];
    const key = textAt(name!, nameSize!);
    const kind = Number(type! & 0xffffffffn);
    if (kind === STRING) values.set(key, textAt(word!, size!));
    else if (kind === INT64) values.set(key, Number(BigInt.asIntN(64, word!)));
    else if (kind === FLOAT)
      values.set(key, new Float32Array(new BigUint64Array([word!]).buffer)[0]!);
    else if (kind === BOOL) values.set(key, (word! & 0xffn) !== 0n);
    else values.set(key, Array.from(new BigInt64Array(bytesAt(word!, size! * 8n).buffer), Number));
    at += (sizeBytes + 7n) & ~7n;
  }
  return values;
}

function floatBits(value: number): number {
  return new Uint32Array(new Float32Array([value]).buffer)[0]!;
}
