/**
 * Where the records of a JSON file of any size begin and end: the elements of an array, the values of an object (of its
 * arrays each element), or the lines of JSON Lines. The text of one record at a time is in memory and nothing is parsed
 * here, so that a fault costs its record; a parser of the whole file would give up at the first one.
 */
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';

/** Longer lines, elements and text files are not read. */
export const MAX_RECORD_BYTES = 16 * 2 ** 20;
const HEAD_BYTES = 2 ** 16;

/** The text of a record and where it is. */
export interface JsonPiece {
  /** For messages: `:line`, counted from 1, and where one line may hold many records also `#index`, counted from 0. */
  readonly place: string;
  /** Of an object: the key that the value, or the array it is an element of, stands under. */
  readonly key?: string;
  /** In the file. */
  readonly offset: number;
  readonly sizeBytes: number;
  /** Absent: more than {@link MAX_RECORD_BYTES}. */
  readonly bytes?: Uint8Array;
}

/** A file whose records cannot be told apart from `line` on. */
export class DamagedJson extends DataError {
  readonly line: number;

  constructor(code: 'JSON_DAMAGED' | 'JSON_TRUNCATED', line: number, message: string) {
    super(code, message);
    this.line = line;
  }
}

/**
 * The texts of the records of a JSON or JSON Lines file.
 * @throws DamagedJson after the pieces before the fault; StorageError
 */
export async function* jsonPieces(
  store: Store,
  { path, sizeBytes }: StoredFile,
  signal?: AbortSignal,
): AsyncGenerator<JsonPiece> {
  if (sizeBytes === 0) return;
  const options = signal === undefined ? {} : { signal };
  const range = { offset: 0, sizeBytes: Math.min(HEAD_BYTES, sizeBytes) };
  const head = await store.read(path, { ...options, range });
  const stream = await store.stream(path, options);
  try {
    yield* isJsonLines(path, head) ? linePieces(stream) : nestedPieces(stream);
  } finally {
    stream.destroy();
  }
}

/** By the name, or because the first of several lines is whole. */
function isJsonLines(path: string, head: Uint8Array): boolean {
  const text = new TextDecoder().decode(head).trimStart();
  if (text.startsWith('[')) return false;
  if (/\.(?:jsonl|ndjson)$/i.test(path)) return true;
  const [first = '', ...others] = text.split('\n');
  if (!others.some((line) => line.trim() !== '')) return false;
  try {
    JSON.parse(first);
    return true;
  } catch {
    return false;
  }
}

const [NEWLINE, QUOTE, BACKSLASH, COMMA, COLON] = [0x0a, 0x22, 0x5c, 0x2c, 0x3a] as const;
const [OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT] = [0x5b, 0x5d, 0x7b, 0x7d] as const;

async function* linePieces(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<JsonPiece> {
  const text = openText();
  let [line, offset] = [1, 0];
  const endLine = (): JsonPiece => {
    const piece = { place: `:${line}`, offset, ...text.take() };
    line++;
    offset += piece.sizeBytes + 1;
    return piece;
  };
  for await (const chunk of chunks) {
    let start = 0;
    for (let end; (end = chunk.indexOf(NEWLINE, start)) !== -1; start = end + 1) {
      text.add(chunk.subarray(start, end));
      const piece = endLine();
      if (!isBlank(piece)) yield piece;
    }
    text.add(chunk.subarray(start));
  }
  const piece = endLine();
  if (!isBlank(piece)) yield piece;
}

function isBlank({ bytes }: JsonPiece): boolean {
  return bytes?.every(isSpace) === true;
}

async function* nestedPieces(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<JsonPiece> {
  const text = openText();
  // How many brackets are open, and how many of them are around the values that are given.
  let [depth, base] = [0, 0];
  let [isObject, isOver, inPiece, inString, isEscaped] = [false, false, false, false, false];
  let key: string | undefined;
  let [line, pieceLine, pieceOffset, chunkOffset, index] = [1, 1, 0, 0, 0];

  for await (const chunk of chunks) {
    const pieces: JsonPiece[] = [];
    let failure: DamagedJson | undefined;
    let start = 0; // of the piece's text in this chunk
    const endPiece = (end: number): void => {
      text.add(chunk.subarray(start, end));
      inPiece = false;
      const { sizeBytes, bytes } = text.take();
      if (isObject && base === 1 && key === undefined) {
        key = bytes && keyOf(bytes);
        if (key === undefined) failure = damaged(line, 'a key of the object cannot be read');
        return;
      }
      const named = key === undefined ? {} : { key };
      const held = bytes === undefined ? {} : { bytes };
      const place = `:${pieceLine}#${index++}`;
      pieces.push({ place, offset: pieceOffset, sizeBytes, ...named, ...held });
      if (base === 1) key = undefined;
    };
    for (let i = 0; i < chunk.length && failure === undefined; i++) {
      if (inString) {
        const end = endOfString(chunk, i, isEscaped);
        isEscaped = end === -1 && endsInEscape(chunk, i, isEscaped);
        if (end === -1) break;
        inString = false;
        i = end;
        if (depth === base) endPiece(end + 1);
        continue;
      }
      const byte = chunk[i]!;
      if (byte === NEWLINE) line++;
      if (inPiece && depth > base) {
        if (byte === QUOTE) inString = true;
        else if (byte === OPEN_LIST || byte === OPEN_OBJECT) depth++;
        else if ((byte === CLOSE_LIST || byte === CLOSE_OBJECT) && --depth === base) {
          endPiece(i + 1);
        }
        continue;
      }
      if (inPiece) {
        // A number, true, false, null or what should have been one: ended by what follows, which is looked at next.
        if (!isSpace(byte) && !isStructure(byte)) continue;
        endPiece(i);
      }
      if (isSpace(byte) || byte === COMMA || byte === COLON) continue;
      if (depth === 0) {
        isObject = byte === OPEN_OBJECT;
        if (isOver) failure = damaged(line, 'there is more after the end');
        else if (!isObject && byte !== OPEN_LIST) {
          failure = damaged(line, 'it begins with neither [ nor {');
        }
        depth = base = 1;
      } else if (byte === CLOSE_LIST || byte === CLOSE_OBJECT) {
        depth = --base;
        isOver = base === 0;
        key = undefined;
      } else if (byte === OPEN_LIST && isObject && base === 1 && key !== undefined) {
        depth = base = 2;
      } else {
        [inPiece, start, pieceLine, pieceOffset] = [true, i, line, chunkOffset + i];
        if (byte === QUOTE) inString = true;
        else if (byte === OPEN_LIST || byte === OPEN_OBJECT) depth++;
      }
    }
    yield* pieces;
    if (failure !== undefined) throw failure;
    if (inPiece) text.add(chunk.subarray(start));
    chunkOffset += chunk.length;
  }
  if (!isOver) {
    const message = 'it ends within a record or before its last bracket: fetch the file again';
    throw new DamagedJson('JSON_TRUNCATED', inPiece ? pieceLine : line, message);
  }
}

/** Where the quote is that ends a string, most of a file's bytes being in strings; -1: not in this chunk. */
function endOfString(chunk: Uint8Array, from: number, isEscaped: boolean): number {
  for (let start = isEscaped ? from + 1 : from; ;) {
    const quote = chunk.indexOf(QUOTE, start);
    if (quote === -1 || numBackslashes(chunk, start, quote) % 2 === 0) return quote;
    start = quote + 1;
  }
}

function endsInEscape(chunk: Uint8Array, from: number, isEscaped: boolean): boolean {
  return numBackslashes(chunk, isEscaped ? from + 1 : from, chunk.length) % 2 === 1;
}

/** How many there are right before `end`. */
function numBackslashes(chunk: Uint8Array, start: number, end: number): number {
  let at = end;
  while (at > start && chunk[at - 1] === BACKSLASH) at--;
  return end - at;
}

/** Spaces, and the bytes of a byte order mark. */
function isSpace(byte: number): boolean {
  return (
    byte === 0x20 ||
    byte === NEWLINE ||
    byte === 0x0d ||
    byte === 0x09 ||
    byte === 0xef ||
    byte === 0xbb ||
    byte === 0xbf
  );
}

function isStructure(byte: number): boolean {
  return (
    byte === COMMA ||
    byte === COLON ||
    byte === OPEN_LIST ||
    byte === CLOSE_LIST ||
    byte === OPEN_OBJECT ||
    byte === CLOSE_OBJECT
  );
}

function keyOf(bytes: Uint8Array): string | undefined {
  try {
    const key: unknown = JSON.parse(new TextDecoder().decode(bytes));
    return typeof key === 'string' ? key : undefined;
  } catch {
    return undefined;
  }
}

function damaged(line: number, what: string): DamagedJson {
  return new DamagedJson(
    'JSON_DAMAGED',
    line,
    `${what}: write it as one array, or one record a line`,
  );
}

/** Gathers the text of one piece from its chunks, up to the limit. */
function openText(): {
  add(bytes: Uint8Array): void;
  take(): { readonly sizeBytes: number; readonly bytes?: Uint8Array };
} {
  let parts: Uint8Array[] = [];
  let sizeBytes = 0;
  return {
    add(bytes) {
      sizeBytes += bytes.length;
      if (sizeBytes > MAX_RECORD_BYTES) parts = [];
      else if (bytes.length > 0) parts.push(bytes);
    },
    take() {
      const taken = {
        sizeBytes,
        ...(sizeBytes > MAX_RECORD_BYTES
          ? {}
          : { bytes: parts.length === 1 ? parts[0]! : Buffer.concat(parts) }),
      };
      [parts, sizeBytes] = [[], 0];
      return taken;
    },
  };
}
