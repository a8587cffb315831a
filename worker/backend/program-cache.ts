import { createHash, randomUUID } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';

import type { PjrtClient } from '../pjrt/client.ts';
import type { XlaFlags } from '../pjrt/compile-options.ts';
import type { PjrtExecutable } from '../pjrt/executable.ts';
import { compileApart } from './compile-apart.ts';
import type { DeviceOptions } from './devices.ts';

/** Bytes of compiled programs that are kept; the least recently used go first. */
const MAX_CACHE_BYTES = 2 * 2 ** 30;
/** The folder is looked through with a process's first new program, and then after so many bytes of them. */
const PRUNE_BYTES = MAX_CACHE_BYTES / 64;
/** Of programs of single ops, which are some kilobytes each. */
const MAX_OP_BYTES = 2 ** 26;
const DIGEST_BYTES = 32;
const TEMPORARY = '.tmp';
const STALE_MS = 60 * 60_000;

/** Compiles programs, or loads what an earlier process compiled from the same text with the same plugin and flags. */
export interface ProgramCache {
  /** `isLarge`: whether the program is to be compiled in a process of its own; see {@link compileApart}. */
  compile(mlir: string, isLarge?: () => boolean): Promise<PjrtExecutable>;
  /** The same for a single op, on the first device, with this thread held until it is done. */
  compileOp(mlir: string): PjrtExecutable;
}

export interface ProgramCacheOptions {
  readonly cacheDir: string;
  readonly devices: DeviceOptions;
  readonly flags: XlaFlags;
  /** Size of the plugin's thread pool: compiled code depends on it. */
  readonly threads: number;
  /** Of the devices that programs run on, in `client.devices`. */
  readonly deviceIndices: readonly number[];
}

/**
 * A cache in `cacheDir`, shared by any number of processes: entries are written under temporary names and renamed, and
 * one that is damaged or that the plugin refuses is compiled again.
 */
export async function openProgramCache(
  client: PjrtClient,
  { cacheDir, devices, flags, threads, deviceIndices }: ProgramCacheOptions,
): Promise<ProgramCache> {
  const { pluginPath } = devices;
  const folder = path.join(cacheDir, 'programs');
  const { size, mtimeMs } = await stat(pluginPath);
  const { platformName, platformVersion } = client;
  const plugin = { pluginPath, size, mtimeMs, platformName, platformVersion };
  // The plugin obeys it beside `flags`. Where it is not set, JSON leaves the field out.
  const environmentFlags = process.env['XLA_FLAGS'] || undefined;
  const key = JSON.stringify([
    { ...plugin, flags, threads, deviceIndices, environmentFlags },
    await machine(client),
  ]);
  const opFolder = path.join(folder, 'ops');
  let newBytes = PRUNE_BYTES;
  let newOpBytes = 0;
  let hasPrunedOps = false;
  const fileOf = (within: string, mlir: string) => {
    const digest = createHash('sha256').update(key).update(mlir).digest('hex');
    return path.join(within, `${digest}.pjrt`);
  };
  // Another process would find a GPU's memory taken.
  let mayCompileApart = platformName === 'cpu';
  const loadApart = async (mlir: string, file: string): Promise<PjrtExecutable | undefined> => {
    const reply = await compileApart({ devices, flags, deviceIndices, mlir, folder, file });
    const made = reply === 'stored' ? await load(client, file) : undefined;
    // A child that was killed says nothing of the next.
    if (reply !== 'failed' && made === undefined) mayCompileApart = false;
    return made;
  };
  return {
    compileOp(mlir) {
      const file = fileOf(opFolder, mlir);
      const cached = loadSync(client, file);
      if (cached !== undefined) return cached;
      const executable = client.compileSync(mlir, { flags });
      if (!hasPrunedOps) void pruneIfThere(opFolder, MAX_OP_BYTES);
      hasPrunedOps = true;
      if (newOpBytes < MAX_OP_BYTES) newOpBytes += storeSync(opFolder, file, executable);
      return executable;
    },
    async compile(mlir, isLarge = () => false) {
      const file = fileOf(folder, mlir);
      const cached = await load(client, file);
      if (cached !== undefined) return cached;
      const made = mayCompileApart && isLarge() ? await loadApart(mlir, file) : undefined;
      const executable = made ?? (await client.compile(mlir, { flags, deviceIndices }));
      newBytes += made === undefined ? await store(folder, file, executable) : await sizeOf(file);
      if (newBytes >= PRUNE_BYTES) {
        newBytes = 0;
        await pruneIfThere(folder, MAX_CACHE_BYTES);
      }
      return executable;
    },
  };
}

/** What compiled code depends on: the devices, and on the host the instruction set. */
async function machine({ devices }: PjrtClient): Promise<readonly unknown[]> {
  const cpuInfo = await readFile('/proc/cpuinfo', 'utf8').catch(() => ''); // Linux alone has it
  const features = /^(?:flags|Features)\s*:.*$/m.exec(cpuInfo)?.[0];
  const kinds = devices.map(({ kind }) => kind);
  return [
    kinds,
    os.arch(),
    os.cpus()[0]?.model,
    features,
    process.env['NPROC'] ?? os.availableParallelism(),
  ];
}

async function load(client: PjrtClient, file: string): Promise<PjrtExecutable | undefined> {
  try {
    const body = bodyOf(await readFile(file));
    const executable = body && (await client.deserialize(body));
    const now = new Date();
    // What was used last goes last. Of another user's cache that is not ours to say.
    if (executable) await utimes(file, now, now).catch(() => undefined);
    return executable;
  } catch {
    // Not there, unreadable, or of another build of the plugin: in each case compiling is the remedy.
    return undefined;
  }
}

function loadSync(client: PjrtClient, file: string): PjrtExecutable | undefined {
  try {
    const body = bodyOf(readFileSync(file));
    const executable = body && client.deserializeSync(body);
    if (executable) touchSync(file);
    return executable;
  } catch {
    return undefined; // as in `load`
  }
}

function touchSync(file: string): void {
  const now = new Date();
  try {
    utimesSync(file, now, now);
  } catch {
    // as in `load`
  }
}

/** Gives the bytes that it wrote. */
function storeSync(folder: string, file: string, executable: PjrtExecutable): number {
  const temporary = path.join(folder, `.${randomUUID()}${TEMPORARY}`);
  try {
    const body = executable.serialize();
    mkdirSync(folder, { recursive: true });
    writeFileSync(temporary, Buffer.concat([sha256(body), body]));
    renameSync(temporary, file);
    return body.length;
  } catch {
    rmSync(temporary, { force: true }); // as in `store`
    return 0;
  }
}

/** What an entry holds, unless it is damaged. */
function bodyOf(entry: Buffer): Buffer | undefined {
  const body = entry.subarray(DIGEST_BYTES);
  return sha256(body).equals(entry.subarray(0, DIGEST_BYTES)) ? body : undefined;
}

/** Gives the bytes that it wrote. */
export async function store(
  folder: string,
  file: string,
  executable: PjrtExecutable,
): Promise<number> {
  const temporary = path.join(folder, `.${randomUUID()}${TEMPORARY}`);
  try {
    const body = executable.serialize();
    await mkdir(folder, { recursive: true });
    await writeFile(temporary, Buffer.concat([sha256(body), body]));
    await rename(temporary, file);
    return body.length;
  } catch {
    // A full or read-only disk, or a plugin that cannot serialize, costs the next process a compilation, no more.
    await rm(temporary, { force: true }).catch(() => undefined);
    return 0;
  }
}

async function sizeOf(file: string): Promise<number> {
  return (await stat(file).catch(() => undefined))?.size ?? 0;
}

/** What fails is done the next time. */
async function pruneIfThere(folder: string, maxBytes: number): Promise<void> {
  await prune(folder, maxBytes).catch(() => undefined);
}

/** Removes the least recently used programs beyond `maxBytes`, and what processes left behind that were killed. */
async function prune(folder: string, maxBytes: number): Promise<void> {
  const entries = await Promise.all(
    (await readdir(folder)).map(async (name) => {
      const file = path.join(folder, name);
      // Another process may have removed it.
      const { size, mtimeMs } = await stat(file).catch(() => ({ size: 0, mtimeMs: Infinity }));
      return { file, size, mtimeMs };
    }),
  );
  entries.sort((a, b) => b.mtimeMs - a.mtimeMs);
  let total = 0;
  for (const { file, size, mtimeMs } of entries) {
    const isStale = file.endsWith(TEMPORARY) && Date.now() - mtimeMs > STALE_MS;
    if (file.endsWith('.pjrt')) total += size;
    if (isStale || (file.endsWith('.pjrt') && total > maxBytes)) await rm(file, { force: true });
  }
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest();
}
