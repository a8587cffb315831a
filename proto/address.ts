import { BlockList, isIP } from 'node:net';

import { messageOf, UsageError, VideoloomError } from './errors.ts';

/** Splits `host:port` or `[v6]:port`. @throws UsageError BAD_ADDRESS */
export function parseAddress(address: string): { host: string; port: number } {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) {
    throw new UsageError(
      'BAD_ADDRESS',
      `"${address}" is no address: write host:port, for example 127.0.0.1:7077 (port 0 takes a free one).`,
    );
  }
  return { host: (match[1] ?? match[2])!, port };
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8, 'ipv4');
LOOPBACK.addAddress('::1', 'ipv6');

/** Whether a host is this machine's loopback: its addresses (IPv4-mapped ones too) and `localhost`, no other name. */
export function isLoopback(host: string): boolean {
  const family = isIP(host);
  if (family === 0) return host === 'localhost';
  return LOOPBACK.check(host, family === 4 ? 'ipv4' : 'ipv6');
}

/** Whether a host leads to the machine that it is used on: its loopback, and what stands for all of its addresses. */
export function meansOwnMachine(host: string): boolean {
  return isLoopback(host) || host === '0.0.0.0' || host === '::';
}

/** Where others reach who listens on `address`: at `host` where that stands for all addresses of its machine. */
export function reachedAt(address: string, host: string): string {
  const own = parseAddress(address);
  return own.host === '0.0.0.0' || own.host === '::' ? `${host}:${own.port}` : address;
}

/** What went wrong when `what` could not listen on `address`, as an error that says how to choose another. */
export function portError(error: unknown, address: string, what: string): VideoloomError {
  const reason = messageOf(error);
  if (/EADDRINUSE/.test(reason)) {
    return new VideoloomError(
      'PORT_IN_USE',
      `${what} cannot listen on ${address}: the port is taken by another process. ` +
        'Choose another port, or port 0 to take a free one.',
      { cause: error },
    );
  }
  return new VideoloomError(
    'CANNOT_LISTEN',
    `${what} cannot listen on ${address}: ${reason}. Choose an address of this machine.`,
    { cause: error },
  );
}
