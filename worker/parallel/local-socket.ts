import { createHash } from 'node:crypto';
import { platform } from 'node:os';
import { parseAddress } from '../../proto/address.ts';

/** What the workers of one machine know of each other. */
export interface LocalPeer {
  readonly runId: string;
  readonly workerId: string;
  /** host:port where the peer accepts TCP. */
  readonly tensorAddress: string;
}

/**
 * Name of the Unix socket on which a worker also accepts connections: between processes of one machine it takes two thirds
 * of the processor time of TCP. Linux's abstract names leave no file, are seen in one network namespace only, as loopback
 * is, and this one cannot be taken beforehand by somebody who does not know the run.
 * @returns undefined where there are no abstract names
 */
export function localSocketOf({ runId, workerId, tensorAddress }: LocalPeer): string | undefined {
  if (platform() !== 'linux') return undefined;
  const { port } = parseAddress(tensorAddress);
  const digest = createHash('sha256')
    .update(JSON.stringify([runId, workerId, port]))
    .digest('hex');
  return `\0videoloom-${digest.slice(0, 32)}`;
}

/** Whether an address names the machine that `ownAddress` names; a wrong yes costs one refused connection. */
export function isSameHost(address: string, ownAddress: string): boolean {
  const { host } = parseAddress(address);
  return isLoopback(host) || host === parseAddress(ownAddress).host;
}

export function isLoopback(ip: string): boolean {
  return /^(::ffff:)?127\.|^::1$|^localhost$/.test(ip);
}
