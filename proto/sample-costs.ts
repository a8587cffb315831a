/**
 * What each sample of the training split costs and which modules it needs, in a file beside the run's plan. It is
 * ordered by pool (samples of one signature and source), so that "sample k of a pool" is one small read, and nobody
 * has to hold a table of all samples in memory.
 */

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';

import { digestFile, writeFileDurably } from './durable-file.ts';
import { messageOf, UsageError, VideoloomError } from './errors.ts';

/** Name of the costs inside a run folder. */
export const SAMPLE_COSTS_FILE = 'costs.bin';

/** What `prepare` knows of the samples; one entry a row of the training split in each array. */
export interface SampleCosts {
  /** What training on it costs, in any unit: e.g. frames x patches + tokens, or that with attention's square. */
  readonly compute: Float32Array;
  /** What decoding it costs, in any unit. */
  readonly decode: Float32Array;
  /** Which modules it goes through, as the caller numbers their combinations; absent: all the same. */
  readonly signature?: Uint8Array;
  /** Which data source it is from; absent: all from one. */
  readonly source?: Uint8Array;
  /** Share of the draws by source, in any unit; absent: each sample as often as any other. */
  readonly sourceWeights?: readonly number[];
}

/** Samples of one signature and, where sources have weights, of one source. */
export interface SamplePool {
  readonly signature: number;
  readonly source: number;
  readonly numSamples: number;
  /** Share of the draws, in any unit: the number of its samples unless its source has a weight. */
  readonly weight: number;
}

/** A sample and what it costs. */
export interface CostedSample {
  /** Row of the training split. */
  readonly row: number;
  readonly compute: number;
  readonly decode: number;
}

/** An open file of costs. */
export interface SampleCostsReader {
  readonly numSamples: number;
  /** Ascending by signature, then source. */
  readonly pools: readonly SamplePool[];
  /** Sample `index` of a pool; they ascend by row. */
  sampleOf(pool: number, index: number): CostedSample;
  /** May be called twice. */
  close(): void;
}

// Little-endian. Magic and version, u32 pools, u32 samples; a pool: u8 signature, u8 source, u16 0, u32 samples, f64
// weight; an entry, by pool and row: u32 row, f32 compute, f32 decode.
const MAGIC = 'VLCOSTS1';
const HEADER_BYTES = 16;
const POOL_BYTES = 16;
const ENTRY_BYTES = 12;
const CHUNK_ENTRIES = 1 << 16;

/**
 * Writes the costs into a run folder. Gives what goes into `run.json` as `costsDigest`: SHA-256 of the file.
 * @throws UsageError COSTS_INVALID for lengths that differ, a cost that is negative or no number, a weight that is
 * missing or not positive
 */
export async function writeSampleCosts(folder: string, costs: SampleCosts): Promise<string> {
  checkCosts(costs);
  const path = join(folder, SAMPLE_COSTS_FILE);
  await writeFileDurably(path, encode(costs));
  return (await digestFile(path)).sha256;
}

/**
 * Opens the costs of a run.
 * @param expected what the plan says of them
 * @throws VideoloomError COSTS_MISSING; COSTS_CHANGED if they are not what the plan was made with
 */
export async function openSampleCosts(
  folder: string,
  expected: { readonly costsDigest: string; readonly numTrainSamples: number },
): Promise<SampleCostsReader> {
  const path = join(folder, SAMPLE_COSTS_FILE);
  let sha256: string;
  try {
    ({ sha256 } = await digestFile(path));
  } catch (error) {
    throw new VideoloomError(
      'COSTS_MISSING',
      `cannot read ${path}, which the run's plan was made with: ${messageOf(error)}. ` +
        'Put it back from a copy of the run folder, or train into a new folder.',
      { cause: error },
    );
  }
  if (sha256 !== expected.costsDigest) throw changed(path, `its SHA-256 is ${sha256}`);
  const reader = new FileReader(path);
  if (reader.numSamples === expected.numTrainSamples) return reader;
  reader.close();
  throw changed(path, `it has ${reader.numSamples} samples, not ${expected.numTrainSamples}`);
}

function changed(path: string, what: string): VideoloomError {
  return new VideoloomError(
    'COSTS_CHANGED',
    `${path} is not the file that the run's plan was made with: ${what}. The order of the samples depends on it: ` +
      'put it back from a copy of the run folder, or train into a new folder.',
  );
}

class FileReader implements SampleCostsReader {
  readonly numSamples: number;
  readonly pools: readonly SamplePool[];
  readonly #firstEntries: number[] = [];
  readonly #entriesStart: number;
  readonly #entry = Buffer.alloc(ENTRY_BYTES);
  #file: number | undefined;

  constructor(path: string) {
    this.#file = openSync(path, 'r');
    const header = this.#read(Buffer.alloc(HEADER_BYTES), 0);
    const numPools = header.readUInt32LE(8);
    this.numSamples = header.readUInt32LE(12);
    this.#entriesStart = HEADER_BYTES + numPools * POOL_BYTES;
    const size = this.#entriesStart + this.numSamples * ENTRY_BYTES;
    if (header.toString('latin1', 0, 8) !== MAGIC || fstatSync(this.#file).size !== size) {
      this.close();
      throw changed(path, 'it is of another format');
    }
    const table = this.#read(Buffer.alloc(numPools * POOL_BYTES), HEADER_BYTES);
    let first = 0;
    this.pools = Array.from({ length: numPools }, (_, i) => {
      const at = i * POOL_BYTES;
      const numSamples = table.readUInt32LE(at + 4);
      this.#firstEntries.push(first);
      first += numSamples;
      return {
        signature: table.readUInt8(at),
        source: table.readUInt8(at + 1),
        numSamples,
        weight: table.readDoubleLE(at + 8),
      };
    });
  }

  sampleOf(pool: number, index: number): CostedSample {
    const place = this.#firstEntries[pool]! + index;
    const entry = this.#read(this.#entry, this.#entriesStart + place * ENTRY_BYTES);
    return {
      row: entry.readUInt32LE(0),
      compute: entry.readFloatLE(4),
      decode: entry.readFloatLE(8),
    };
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }

  /** Small reads at random places: the system's page cache is the only copy that is needed. */
  #read(into: Buffer, position: number): Buffer {
    const numRead = readSync(this.#file!, into, 0, into.length, position);
    if (numRead === into.length) return into;
    throw new VideoloomError(
      'COSTS_CHANGED',
      `${SAMPLE_COSTS_FILE} of the run ends at byte ${position + numRead}: it was cut short while the run had it open. ` +
        'Put it back from a copy of the run folder and start the run again.',
    );
  }
}

function* encode(costs: SampleCosts): Generator<Uint8Array> {
  const { compute, decode } = costs;
  const { pools, poolOf } = poolsOf(costs);
  const head = Buffer.alloc(HEADER_BYTES + pools.length * POOL_BYTES);
  head.write(MAGIC, 'latin1');
  head.writeUInt32LE(pools.length, 8);
  head.writeUInt32LE(compute.length, 12);
  for (const [i, { signature, source, numSamples, weight }] of pools.entries()) {
    const at = HEADER_BYTES + i * POOL_BYTES;
    head.writeUInt8(signature, at);
    head.writeUInt8(source, at + 1);
    head.writeUInt32LE(numSamples, at + 4);
    head.writeDoubleLE(weight, at + 8);
  }
  yield head;
  const rows = rowsByPool(pools, poolOf, compute.length);
  for (let first = 0; first < rows.length; first += CHUNK_ENTRIES) {
    const part = rows.subarray(first, first + CHUNK_ENTRIES);
    const chunk = Buffer.alloc(part.length * ENTRY_BYTES);
    for (const [i, row] of part.entries()) {
      chunk.writeUInt32LE(row, i * ENTRY_BYTES);
      chunk.writeFloatLE(compute[row]!, i * ENTRY_BYTES + 4);
      chunk.writeFloatLE(decode[row]!, i * ENTRY_BYTES + 8);
    }
    yield chunk;
  }
}

/** The pools, and the number of the pool that a row is in. */
function poolsOf({ compute, signature, source, sourceWeights }: SampleCosts): {
  pools: SamplePool[];
  poolOf: (row: number) => number;
} {
  // Sources without weights need no order of their own.
  const keyOf = (row: number): number =>
    256 * (signature?.[row] ?? 0) + (sourceWeights === undefined ? 0 : (source?.[row] ?? 0));
  const counts = new Uint32Array(65_536);
  const bySource = new Uint32Array(256);
  for (let row = 0; row < compute.length; row++) {
    const key = keyOf(row);
    counts[key]!++;
    bySource[key % 256]!++;
  }
  const keys = [...counts.keys()].filter((key) => counts[key]! > 0);
  const numbers = new Uint16Array(65_536);
  for (const [number, key] of keys.entries()) numbers[key] = number;
  const pools = keys.map((key): SamplePool => {
    const [numSamples, from] = [counts[key]!, key % 256];
    // A source that has several signatures gives each as many of its draws as it has samples of it.
    const weight =
      sourceWeights === undefined
        ? numSamples
        : (sourceWeights[from]! * numSamples) / bySource[from]!;
    return { signature: Math.floor(key / 256), source: from, numSamples, weight };
  });
  return { pools, poolOf: (row) => numbers[keyOf(row)]! };
}

/** All rows, by pool and ascending within one (a counting sort). */
function rowsByPool(
  pools: readonly SamplePool[],
  poolOf: (row: number) => number,
  numRows: number,
): Uint32Array {
  const rows = new Uint32Array(numRows);
  const next = new Uint32Array(pools.length);
  for (let pool = 1; pool < pools.length; pool++)
    next[pool] = next[pool - 1]! + pools[pool - 1]!.numSamples;
  for (let row = 0; row < numRows; row++) rows[next[poolOf(row)]!++] = row;
  return rows;
}

function checkCosts({ compute, decode, signature, source, sourceWeights }: SampleCosts): void {
  const others = { decode, signature, source };
  for (const [name, { length }] of Object.entries(others).filter(hasValue)) {
    if (length !== compute.length)
      throw invalid(`there are ${compute.length} compute costs, but ${name} has ${length} entries`);
  }
  for (const [name, values] of Object.entries({ compute, decode })) {
    const row = values.findIndex((cost) => !(cost >= 0 && cost < Infinity));
    if (row >= 0) throw invalid(`the ${name} cost of sample ${row} is ${values[row]}`);
  }
  if (sourceWeights === undefined) return;
  const present = new Set(source ?? [0]);
  for (const number of present) {
    const weight = sourceWeights[number];
    if (weight === undefined || !(weight > 0 && weight < Infinity))
      throw invalid(`the weight of data source ${number} is ${weight}; it has to be above 0`);
  }
  for (const number of sourceWeights.keys()) {
    if (!present.has(number))
      throw invalid(`data source ${number} has a weight, but no sample in the training split`);
  }
}

function hasValue<T>(entry: [string, T | undefined]): entry is [string, T] {
  return entry[1] !== undefined;
}

function invalid(what: string): UsageError {
  return new UsageError('COSTS_INVALID', `${what}: correct the costs and weights of the data.`);
}
