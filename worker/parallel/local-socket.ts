import { createHash } from 'node:crypto';
import { lstat, mkdir, readdir, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { platform, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { isLoopback, parseAddress } from '../../proto/address.ts';

/** What the workers of one machine know of each other. */
export interface LocalPeer {
  readonly runId: string;
  readonly workerId: string;
  /** host:port where the peer accepts TCP. */
  readonly tensorAddress: string;
}

/** Length of a path that every system takes for a socket (`sun_path`). */
const MAX_PATH_BYTES = 103;
const MAX_SWEPT = 1000;

/**
 * Path of the Unix socket on which a worker also accepts connections: between processes of one machine it takes two thirds
 * of the processor time of TCP. What flows there is plain; the folder keeps out everybody but this user.
 * @returns undefined where there can be none
 */
export function localSocketOf({ runId, workerId, tensorAddress }: LocalPeer): string | undefined {
  if (platform() === 'win32') return undefined;
  const { port } = parseAddress(tensorAddress);
  const digest = createHash('sha256')
    .update(JSON.stringify([runId, workerId, port]))
    .digest('hex');
  const path = join(tmpdir(), `videoloom-${process.getuid!()}`, `${digest.slice(0, 24)}.sock`);
  return Buffer.byteLength(path) > MAX_PATH_BYTES ? undefined : path;
}

/**
 * Makes the folder of a {@link localSocketOf}, and removes the sockets there whose process was killed.
 * @returns false when somebody else has made it or may look into it: then no connection may go through it
 */
export async function prepareLocalSockets(path: string): Promise<boolean> {
  const folder = dirname(path);
  try {
    await mkdir(folder, { mode: 0o700 }).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    });
    const stat = await lstat(folder);
    const isOurs = stat.isDirectory() && stat.uid === process.getuid!();
    if (!isOurs || (stat.mode & 0o077) !== 0) return false;
    await removeAbandoned(folder);
    return true;
  } catch {
    return false; // TCP does it, too
  }
}

/** Removes the sockets of killed processes beside `path`, for whoever leaves last. */
export async function sweepLocalSockets(path: string): Promise<void> {
  await removeAbandoned(dirname(path)).catch(() => undefined);
}

async function removeAbandoned(folder: string): Promise<void> {
  const sockets = (await readdir(folder)).filter((name) => name.endsWith('.sock'));
  for (const name of sockets.slice(0, MAX_SWEPT)) {
    const socket = join(folder, name);
    if (await isAbandoned(socket)) await rm(socket, { force: true });
  }
}

/** Whether nobody listens on a Unix socket any more. */
async function isAbandoned(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      resolve(error.code === 'ECONNREFUSED');
    });
  });
}

/** Whether an address names the machine that `ownAddress` names; a wrong yes costs one refused connection. */
export function isSameHost(address: string, ownAddress: string): boolean {
  const { host } = parseAddress(address);
  return isLoopback(host) || host === parseAddress(ownAddress).host;
}
