import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';

import type { PjrtClient } from '../pjrt/client.ts';
import type { XlaFlags } from '../pjrt/compile-options.ts';
import type { PjrtExecutable } from '../pjrt/executable.ts';

/** Bytes of compiled programs that are kept; the least recently used go first. */
const MAX_CACHE_BYTES = 2 * 2 ** 30;
const DIGEST_BYTES = 32;

/** Compiles programs, or loads what an earlier process compiled from the same text with the same plugin and flags. */
export interface ProgramCache {
  compile(mlir: string): Promise<PjrtExecutable>;
}

export interface ProgramCacheOptions {
  readonly cacheDir: string;
  readonly pluginPath: string;
  readonly flags: XlaFlags;
  /** Size of the plugin's thread pool: compiled code depends on it. */
  readonly threads: number;
}

/**
 * A cache in `cacheDir`, shared by any number of processes: entries are written under temporary names and renamed, and
 * one that is damaged or that the plugin refuses is compiled again.
 */
export async function openProgramCache(
  client: PjrtClient,
  { cacheDir, pluginPath, flags, threads }: ProgramCacheOptions,
): Promise<ProgramCache> {
  const folder = path.join(cacheDir, 'programs');
  const { size, mtimeMs } = await stat(pluginPath);
  const { platformName, platformVersion } = client;
  const key = JSON.stringify([
    { pluginPath, size, mtimeMs, platformName, platformVersion, flags, threads },
    await machine(client),
  ]);
  return {
    async compile(mlir) {
      const digest = createHash('sha256').update(key).update(mlir).digest('hex');
      const file = path.join(folder, `${digest}.pjrt`);
      const cached = await load(client, file);
      if (cached !== undefined) return cached;
      const executable = await client.compile(mlir, { flags });
      await store(folder, file, executable);
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
    const entry = await readFile(file);
    const body = entry.subarray(DIGEST_BYTES);
    if (!sha256(body).equals(entry.subarray(0, DIGEST_BYTES))) return undefined;
    const executable = await client.deserialize(body);
    const now = new Date();
    await utimes(file, now, now);
    return executable;
  } catch {
    // Not there, unreadable, or of another build of the plugin: in each case compiling is the remedy.
    return undefined;
  }
}

async function store(folder: string, file: string, executable: PjrtExecutable): Promise<void> {
  const temporary = path.join(folder, `.${randomUUID()}.tmp`);
  try {
    const body = executable.serialize();
    await mkdir(folder, { recursive: true });
    await writeFile(temporary, Buffer.concat([sha256(body), body]));
    await rename(temporary, file);
    await prune(folder);
  } catch {
    // A full or read-only disk, or a plugin that cannot serialize, costs the next process a compilation, no more.
    await rm(temporary, { force: true }).catch(() => undefined);
  }
}

async function prune(folder: string): Promise<void> {
  const names = (await readdir(folder)).filter((name) => name.endsWith('.pjrt'));
  const entries = await Promise.all(
    names.map(async (name) => {
      const file = path.join(folder, name);
      const { size, mtimeMs } = await stat(file);
      return { file, size, mtimeMs };
    }),
  );
  entries.sort((a, b) => b.mtimeMs - a.mtimeMs);
  let total = 0;
  for (const { file, size } of entries) {
    total += size;
    if (total > MAX_CACHE_BYTES) await rm(file, { force: true });
  }
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest();
}
