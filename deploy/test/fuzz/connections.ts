import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { parseAddress } from '../../../proto/address.ts';

/** A connection that expects the worst; undefined when it is refused. */
export async function open(address: string): Promise<Socket | undefined> {
  const socket = connect(parseAddress(address));
  socket.on('error', () => undefined);
  socket.resume();
  const outcome = new AbortController();
  try {
    await Promise.race([
      once(socket, 'connect', { signal: outcome.signal }),
      once(socket, 'close', { signal: outcome.signal }),
    ]);
  } catch {
    // An error of the socket: it is closed.
  } finally {
    outcome.abort();
  }
  return socket.destroyed ? undefined : socket;
}

/** Sends, and gives the other side a moment to be hurt by it. */
export async function send(socket: Socket, bytes: Buffer): Promise<void> {
  if (socket.destroyed) return;
  await new Promise<void>((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      socket.off('close', done);
      resolve();
    };
    const timer = setTimeout(done, 500);
    socket.once('close', done);
    socket.write(bytes, done);
  });
}
