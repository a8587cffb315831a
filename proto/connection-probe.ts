/** Why a connection does not come about: gRPC tells that there is none, and keeps the reason to itself. */
import { setTimeout as delay } from 'node:timers/promises';
import { parseAddress } from './address.ts';
import { messageOf } from './errors.ts';
import { isAnswer, PREFACE, reasonOfGoAway } from './grpc-listener.ts';
import type { PeerIdentity } from './identity.ts';
import { printable } from './printable.ts';
import { connectedEvent, connectSocket } from './secure-socket.ts';
import type { Security } from './security.ts';

const PROBE_TIMEOUT_MS = 1000;
const SECOND_LOOK_MS = 200;
/** What an HTTP/2 client says first. Source: RFC 9113, sections 3.4 and 6.5. */
const GREETING = Buffer.concat([PREFACE, Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])]);

/** What one look gave: a reason, which a second look must confirm unless the other side has told it. */
type Finding = { readonly why: string; readonly isCertain: boolean } | undefined;

/**
 * Connects again and says what is wrong between the two sides; undefined when it is nothing that anybody would have to
 * mend: the other side is not there, is too slow, has just ended, or has meanwhile answered as it should. Where it has
 * answered before, only what it says itself is believed.
 */
export async function whyRefused(
  address: string,
  { security, peer }: { readonly security: Security; readonly peer: PeerIdentity },
  { hasAnswered }: { readonly hasAnswered: boolean },
): Promise<string | undefined> {
  const first = await look(address, security, peer);
  if (first === undefined || first.isCertain) return first?.why;
  // A tunnel or a load balancer takes connections for a server that is being started again, and ends them.
  if (hasAnswered) return undefined;
  // A process that is being killed ends connections, too, but takes no second one.
  await delay(SECOND_LOOK_MS);
  return (await look(address, security, peer))?.why;
}

function look(address: string, security: Security, peer: PeerIdentity): Promise<Finding> {
  return new Promise((resolve) => {
    const { host, port } = parseAddress(address);
    let [isConnected, heard] = [false, Buffer.alloc(0)];
    const socket = connectSocket({ host, port }, security, peer);
    const settle = (finding?: Finding): void => {
      clearTimeout(timer);
      resolve(finding);
      socket.destroy();
    };
    const timer = setTimeout(settle, PROBE_TIMEOUT_MS);
    socket.on(connectedEvent(socket), () => {
      isConnected = true;
      socket.write(GREETING);
    });
    socket.on('data', (chunk: Buffer) => {
      heard = Buffer.concat([heard, chunk]);
      const why = reasonOfGoAway(heard);
      if (why !== undefined) settle({ why: `it says: ${printable(why)}`, isCertain: true });
      else if (isAnswer(heard)) settle();
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.syscall !== undefined)
        settle(); // of the network
      else settle({ why: messageOf(error), isCertain: error.code !== 'ECONNRESET' });
    });
    socket.on('close', () => {
      if (!isConnected || heard.length > 0) settle();
      else if (security.tls === undefined)
        settle({ why: 'it ends connections in plain text at once', isCertain: false });
      else settle({ why: 'it ends this connection without a word', isCertain: false });
    });
  });
}
