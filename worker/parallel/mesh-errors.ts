import { VideoloomError } from '../../proto/errors.ts';

/** What ends a collective. Every one is mended by the next generation. */
export type MeshErrorCode =
  | 'GENERATION_CHANGED' // the coordinator opened another one, or this worker left this one
  | 'PEER_LOST'
  | 'PEER_REFUSED' // the peer does not accept this worker
  | 'PEER_TIMEOUT' // the peer is there and silent
  | 'FRAME_CORRUPT'
  | 'COLLECTIVE_MISMATCH' // workers run different operations
  | 'NO_SHARED_MEMORY'; // what was agreed on cannot be mapped

/** An operation between workers that could not be finished. */
export class MeshError extends VideoloomError {
  /** The peer at fault; undefined where none is. */
  readonly rank: number | undefined;

  constructor(
    code: MeshErrorCode,
    message: string,
    options: { rank?: number; cause?: unknown } = {},
  ) {
    super(code, message, { cause: options.cause, retryable: true });
    this.rank = options.rank;
  }
}

/** A peer's process or host is gone, or the connection to it broke: PEER_LOST. */
export class PeerLost extends MeshError {
  constructor(rank: number, message: string, cause?: unknown) {
    super('PEER_LOST', message, { rank, cause });
  }
}
