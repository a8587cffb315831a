import { status } from '@grpc/grpc-js';

import { RpcError } from './grpc.ts';

/** Version of what coordinator and workers say to each other; grows with every change that breaks the other side. */
export const PROTOCOL_VERSION = 5;

/**
 * Refuses a peer that speaks another version.
 * @param peer what the other side is, for the message: `worker w0 on host a`.
 * @throws RpcError PROTOCOL_MISMATCH (FAILED_PRECONDITION); the message says which side is older.
 */
export function checkProtocolVersion(theirs: number, us: string, peer: string): void {
  if (theirs === PROTOCOL_VERSION) return;
  const [older, newer] = theirs < PROTOCOL_VERSION ? [peer, us] : [us, peer];
  throw new RpcError(
    status.FAILED_PRECONDITION,
    'PROTOCOL_MISMATCH',
    `${peer} speaks protocol version ${theirs}, ${us} speaks ${PROTOCOL_VERSION}: ${older} is older. ` +
      `Update Videoloom there to the release that ${newer} runs, then start it again.`,
  );
}
