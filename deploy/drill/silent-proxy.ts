import { once, setMaxListeners } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';

/**
 * A TCP proxy that can fall silent: then it forwards nothing in either direction and closes nothing, as a network does
 * that has lost a route. What was sent meanwhile arrives once the route is back, as TCP's own repetitions make it.
 */
export interface SilentProxy {
  /** host:port that stands for the target. */
  readonly address: string;
  /** Until `speak`, nothing gets through. */
  fallSilent(): void;
  speak(): void;
  close(): void;
}

/** Opens a proxy on the loopback for `target`, host:port. */
export async function openSilentProxy(target: string): Promise<SilentProxy> {
  const at = target.lastIndexOf(':');
  const [host, port] = [target.slice(0, at).replace(/^\[|\]$/g, ''), Number(target.slice(at + 1))];
  const sockets = new Set<Socket>();
  /** What begins once there is a route. */
  const waiting = new Set<() => void>();
  let silent = false;

  const join = (near: Socket): void => {
    const far = connect({ host, port });
    setMaxListeners(0, near, far);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('data', (chunk: Buffer) => {
        if (!to.write(chunk)) from.pause();
      });
      to.on('drain', () => {
        if (!silent) from.resume();
      });
      // An end is a packet, too: it does not get through while there is no route.
      const end = (): void => {
        if (silent) waiting.add(end);
        // Nobody listens there: without the proxy, the caller would have been told so.
        else if (from === far && far.bytesRead === 0) near.resetAndDestroy();
        else to.destroy();
      };
      from.on('close', () => {
        sockets.delete(from);
        end();
      });
      from.on('error', () => undefined);
    }
    far.on('connect', () => {
      if (!silent) near.resume();
    });
  };
  const server = createServer({ pauseOnConnect: true }, (near) => {
    near.on('error', () => undefined);
    if (!silent) {
      join(near);
      return;
    }
    waiting.add(() => {
      if (!near.destroyed) join(near);
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    address: `127.0.0.1:${(server.address() as { port: number }).port}`,
    fallSilent() {
      silent = true;
      for (const socket of sockets) socket.pause();
    },
    speak() {
      silent = false;
      for (const socket of sockets) socket.resume();
      const begun = [...waiting];
      waiting.clear();
      for (const begin of begun) begin();
    },
    close() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
