import { createSocket } from 'node:dgram';
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { parseAddress } from '../proto/address.ts';

const LOOPBACK = '127.0.0.1';

/**
 * The address of this machine on the way to `address`, as a host to listen on: the workers of one run reach each other
 * where they reach its coordinator, on the loopback or on a network.
 */
export async function ownHostTowards(address: string): Promise<string> {
  const { host, port } = parseAddress(address);
  try {
    const target = await lookup(host);
    const socket = createSocket(target.family === 6 ? 'udp6' : 'udp4');
    try {
      // That chooses a way there, and sends nothing.
      socket.connect(port, target.address);
      await once(socket, 'connect');
      const own = socket.address().address;
      return own.includes(':') ? `[${own}]` : own;
    } finally {
      socket.close();
    }
  } catch {
    // There is no way there now: the call to the coordinator says why.
    return LOOPBACK;
  }
}
