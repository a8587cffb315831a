/**
 * TCP connections between all workers of one generation.
 *
 * Each worker dials every other and reads from the connection; what it sends goes over the one that the peer dialled. A
 * connection belongs to one generation and closes with it, so nothing that is left of an older one can reach a newer.
 */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { crc32c } from '@node-rs/crc32';
import { isLoopback, parseAddress, portError } from '../../proto/address.ts';
import { messageOf } from '../../proto/errors.ts';
import { type PeerIdentity } from '../../proto/identity.ts';
import { PROTOCOL_VERSION } from '../../proto/protocol.ts';
import { connectedEvent, connectSocket, createSocketServer } from '../../proto/secure-socket.ts';
import { checkReach, LOOPBACK_ONLY, type Security } from '../../proto/security.ts';
import type { MeshGeneration, MeshMember } from './collectives.ts';
import { encodeHeader, FRAME_KIND, FrameCorrupt, tagOf } from './frame.ts';
import type { FrameHeader, FrameKind } from './frame.ts';
import { FrameReader, type FrameSink } from './frame-reader.ts';
import {
  credentialsRefusal,
  parseRefusal,
  receiveHello,
  refusalOf,
  sendHello,
  sendRefusal,
  sendWelcome,
  type Hello,
} from './handshake.ts';
import {
  isSameHost,
  localSocketOf,
  prepareLocalSockets,
  sweepLocalSockets,
} from './local-socket.ts';
import { MeshError, PeerLost } from './mesh-errors.ts';
import { unpaceLoopback } from './socket-options.ts';

/** Frames handed to a connection and not yet taken by the kernel: one on its way, one ready behind it. */
export const MAX_FRAMES_IN_FLIGHT = 2;
const MAX_CONNECTIONS = 4096;
const REDIAL_MS = { first: 20, most: 500 } as const;

/** One collective operation as the mesh sees it: which frames go to whom, and where those of the others go. */
export interface Exchange {
  /** For messages, and compared between workers. */
  readonly name: string;
  readonly step: number;
  /** Whether the loss of any peer ends it at once, also of one from which nothing is awaited. */
  readonly needsEveryone?: boolean;
  /**
   * The exchange begins.
   * @param advance to be called when `next` may have more for somebody by other means than a frame; answers whether the
   *     exchange still goes on
   */
  start?(advance: () => boolean): void;
  numOutgoing(rank: number): number;
  numIncoming(rank: number): number;
  /** The next frame for a peer; undefined when it has to wait for something that is still to be received. */
  next(rank: number): OutgoingFrame | undefined;
  /** Where a payload goes; undefined when there is no place before something else was received. */
  place(rank: number, header: FrameHeader): Uint8Array | undefined;
  received(rank: number, header: FrameHeader, payload: Uint8Array): void;
}

export interface OutgoingFrame {
  readonly kind: FrameKind;
  readonly chunk: number;
  /** Not copied: its bytes must stay until the exchange ends or the mesh is aborted. */
  readonly payload: Uint8Array;
}

export interface MeshOptions {
  /** host:port to listen on; port 0 takes a free one. */
  readonly listenAddress: string;
  /** Host that peers are told to connect to, where it differs from the one listened on (0.0.0.0). */
  readonly advertisedHost?: string;
  readonly runId: string;
  readonly workerId: string;
  /** How long an operation waits without any progress, and `configure` for its peers. */
  readonly timeoutMs: number;
  /** `remote` (the default) sends checksums of payloads except inside one machine. */
  readonly checksums?: 'remote' | 'always';
  /** What connections off this process need; plain text on the loopback when left out. */
  readonly security?: Security;
  /** Whether workers of one machine may use Unix sockets instead of TCP; true when left out. */
  readonly localSockets?: boolean;
  /** Called for every frame that was sent or received, and every piece that was added, in a running exchange. */
  readonly onProgress?: () => void;
}

/** Counts since the start of the process. */
export interface MeshStats {
  sentBytes: number;
  receivedBytes: number;
  /** Connections that did not prove to be a peer. */
  refusedConnections: number;
  /** Connections and frames of generations that are over. */
  staleConnections: number;
  staleFrames: number;
}

/** Both directions between this worker and one peer. */
interface Link {
  readonly member: MeshMember;
  reader: FrameReader | undefined;
  /** The peer has welcomed the reader. */
  welcomed: boolean;
  writer: Socket | undefined;
  framesInFlight: number;
  checksums: boolean;
  /** Why nothing can be read any more. */
  readerEnd: MeshError | undefined;
  redial: NodeJS.Timeout | undefined;
  lastDialError: string | undefined;
  /** The Unix socket of a peer on this machine, until it was tried in vain. */
  localSocket: string | undefined;
}

interface Running {
  readonly exchange: Exchange;
  readonly sequence: number;
  readonly tag: number;
  /** By rank: frames not handed out, not yet in the kernel, not yet received. */
  readonly toHandOut: number[];
  readonly toSend: number[];
  readonly toReceive: number[];
  /** By rank: when a frame of this exchange last came; 0 = none did. */
  readonly lastHeard: number[];
  readonly watch: Watch;
  readonly resolve: () => void;
  readonly reject: (error: MeshError) => void;
}

/** Listens for peers. @throws VideoloomError PORT_IN_USE, CANNOT_LISTEN, PLAIN_TEXT_OFF_LOOPBACK */
export async function openMesh(options: MeshOptions): Promise<Mesh> {
  const { listenAddress, security = LOOPBACK_ONLY } = options;
  checkReach(security, listenAddress, `worker ${options.workerId} would take gradients on`);
  const { host, port } = parseAddress(listenAddress);
  let mesh: Mesh | undefined = undefined as Mesh | undefined;
  const server = createSocketServer({
    security,
    maxConnections: MAX_CONNECTIONS,
    accept: (socket, caller) => mesh?.accept(socket, caller),
    refused: () => mesh?.refuse(),
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => {
      reject(portError(error, options.listenAddress, `worker ${options.workerId}`));
    });
    server.listen(port, host, resolve);
  });
  mesh = new Mesh(server, options);
  await mesh.listenLocally();
  return mesh;
}

export class Mesh {
  /** host:port for the peers. */
  readonly address: string;
  readonly stats: MeshStats = {
    sentBytes: 0,
    receivedBytes: 0,
    refusedConnections: 0,
    staleConnections: 0,
    staleFrames: 0,
  };
  readonly #options: MeshOptions;
  readonly #server: Server;
  /** Accepts from this machine. */
  #localServer: Server | undefined;
  #localPath = '';
  /** For a process that exits without closing anything. */
  readonly #unlink = (): void => {
    rmSync(this.#localPath, { force: true });
  };
  /** Accepted connections that no link has: greeting, or of a generation that is not here yet. */
  readonly #strangers = new Set<Socket>();
  readonly #parked = new Map<Socket, Hello>();

  #generation: MeshGeneration = { number: 0, members: [] };
  #rank = 0;
  /** By rank; undefined at this worker's own. */
  #links: (Link | undefined)[] = [];
  /** Why the generation is over; undefined while it goes on. */
  #failure: MeshError | undefined = new MeshError(
    'GENERATION_CHANGED',
    'no generation is open yet',
  );
  #opening: { resolve: () => void; reject: (error: MeshError) => void } | undefined;
  #running: Running | undefined;
  #sequence = 0;
  #last: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(server: Server, options: MeshOptions) {
    this.#server = server;
    this.#options = options;
    const { address, family, port } = server.address() as AddressInfo;
    const host = options.advertisedHost ?? address;
    this.address =
      family === 'IPv6' && host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
  }

  /** Accepts on a Unix socket as well, where there is one; TCP remains for whoever does not find it. */
  async listenLocally(): Promise<void> {
    const path = localSocketOf({ ...this.#options, tensorAddress: this.address });
    if (path === undefined || this.#options.localSockets === false) return;
    if (!(await prepareLocalSockets(path))) return;
    const server = createServer();
    server.maxConnections = MAX_CONNECTIONS;
    server.on('connection', (socket) => {
      this.accept(socket, undefined);
    });
    await new Promise<void>((resolve) => {
      server.once('error', () => {
        resolve();
      });
      server.listen(path, () => {
        this.#localServer = server;
        this.#localPath = path;
        process.once('exit', this.#unlink);
        resolve();
      });
    });
  }

  /** Takes a connection of somebody whose certificate, where there is one, says that it is `caller`. */
  accept(socket: Socket, caller: PeerIdentity | undefined): void {
    void this.#greet(socket, caller);
  }

  /** Counts a connection that never got so far. */
  refuse(): void {
    this.stats.refusedConnections++;
  }

  get generation(): MeshGeneration {
    return this.#generation;
  }

  /** This worker's place in the generation. */
  get rank(): number {
    return this.#rank;
  }

  /** Connects to all members of a generation and leaves the one before. @throws MeshError */
  async configure(generation: MeshGeneration): Promise<void> {
    const { number, members } = generation;
    assert(number > this.#generation.number, 'generations only grow');
    assert(!this.#closed, 'the mesh is open');
    const sorted = [...members].sort((a, b) => a.rank - b.rank);
    const self = sorted.find(({ workerId }) => workerId === this.#options.workerId);
    assert(self !== undefined, 'this worker is a member');
    assert(
      sorted.every(({ rank }, index) => rank === index),
      'ranks are 0 to W - 1',
    );

    const { security = LOOPBACK_ONLY } = this.#options;
    for (const { tensorAddress } of members)
      checkReach(security, tensorAddress, `worker ${self.workerId} would take gradients from`);

    this.#leave(new MeshError('GENERATION_CHANGED', `generation ${number} has begun`));
    this.#generation = { number, members: sorted };
    this.#rank = self.rank;
    this.#failure = undefined;
    this.#sequence = 0;
    this.#links = sorted.map((member) =>
      member === self ? undefined : newLink(member, this.#localSocketOf(member)),
    );

    const opened = new Promise<void>((resolve, reject) => {
      this.#opening = { resolve, reject };
    });
    for (const link of this.#peers()) this.#dial(link, REDIAL_MS.first);
    for (const [socket, hello] of [...this.#parked]) this.#admit(socket, hello);
    const watch = new Watch(this.#options.timeoutMs, () => {
      this.#fail(this.#unreachable());
    });
    this.#checkOpen();
    try {
      await opened;
    } finally {
      watch.stop();
    }
  }

  /**
   * Runs an exchange after those before it. Resolves when everything of the peers is here and everything for them is
   * with the kernel.
   * @throws MeshError; then the generation is over for this worker
   */
  run(exchange: Exchange): Promise<void> {
    const { number } = this.#generation;
    const result = this.#last.then(async () => {
      if (this.#failure !== undefined) throw this.#failure;
      if (number !== this.#generation.number) {
        throw new MeshError('GENERATION_CHANGED', `generation ${number} is over`);
      }
      await this.#start(exchange);
    });
    this.#last = result.catch(() => undefined);
    return result;
  }

  /** Ends the generation for this worker: pending operations reject with GENERATION_CHANGED. */
  abort(reason: string): void {
    this.#leave(new MeshError('GENERATION_CHANGED', reason));
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#leave(new MeshError('GENERATION_CHANGED', 'this worker has left'));
    for (const socket of this.#strangers) socket.destroy();
    if (this.#localServer !== undefined) {
      this.#localServer.close();
      process.off('exit', this.#unlink);
      await sweepLocalSockets(this.#localPath);
    }
    await new Promise<void>((resolve) => {
      this.#server.close(() => {
        resolve();
      });
    });
  }

  // --- Exchanges

  async #start(exchange: Exchange): Promise<void> {
    const sequence = ++this.#sequence;
    const count = (frames: (rank: number) => number) =>
      this.#links.map((link, rank) => (link === undefined ? 0 : frames(rank)));
    const toSend = count((rank) => exchange.numOutgoing(rank));
    await new Promise<void>((resolve, reject) => {
      this.#running = {
        ...{ exchange, sequence, tag: tagOf(exchange.name), resolve, reject },
        ...{
          toSend,
          toHandOut: [...toSend],
          toReceive: count((rank) => exchange.numIncoming(rank)),
        },
        lastHeard: this.#links.map(() => 0),
        watch: new Watch(this.#options.timeoutMs, () => {
          this.#fail(this.#late());
        }),
      };
      const running = this.#running;
      exchange.start?.(() => {
        if (this.#running !== running) return false;
        this.#progress(running);
        this.#advance();
        return true;
      });
      this.#checkPeers();
      this.#advance();
    });
  }

  #progress(running: Running): void {
    running.watch.progress();
    this.#options.onProgress?.();
  }

  /** After anything that may let something else go on. */
  #advance(): void {
    for (const link of this.#peers()) this.#send(link);
    for (const link of this.#peers()) link.reader?.resume();
    this.#finishIfDone();
  }

  #send(link: Link): void {
    const running = this.#running;
    const { rank } = link.member;
    while (
      running !== undefined &&
      link.framesInFlight < MAX_FRAMES_IN_FLIGHT &&
      running.toHandOut[rank]! > 0
    ) {
      const frame = running.exchange.next(rank);
      if (frame === undefined) return;
      running.toHandOut[rank]!--;
      this.#write(link, running, frame);
    }
  }

  #write(link: Link, running: Running, { kind, chunk, payload }: OutgoingFrame): void {
    const writer = link.writer!;
    link.framesInFlight++;
    const header = encodeHeader({
      generation: this.#generation.number,
      step: running.exchange.step,
      sequence: running.sequence,
      tag: running.tag,
      ...{ kind, chunk, length: payload.length },
      checksum: link.checksums ? crc32c(payload) : undefined,
    });
    const taken = (error?: Error | null): void => {
      if (error) return; // the connection's `close` tells the rest
      link.framesInFlight--;
      this.stats.sentBytes += header.length + payload.length;
      if (this.#running !== running) return;
      running.toSend[link.member.rank]!--;
      this.#progress(running);
      this.#send(link);
      this.#finishIfDone();
    };
    writer.cork(); // header and payload leave in one system call
    if (payload.length === 0) {
      writer.write(header, taken);
    } else {
      writer.write(header);
      writer.write(payload, taken);
    }
    writer.uncork();
  }

  #place(link: Link, header: FrameHeader): Uint8Array | undefined {
    const running = this.#running;
    const { rank } = link.member;
    if (header.kind <= FRAME_KIND.refused) {
      if (link.welcomed) throw new FrameCorrupt('a second handshake');
      return Buffer.alloc(header.length);
    }
    if (!link.welcomed) throw new FrameCorrupt('data before the handshake');
    if (header.generation < this.#generation.number) return Buffer.alloc(header.length);
    if (header.generation > this.#generation.number) throw new FrameCorrupt('a generation to come');
    if (running === undefined || header.sequence > running.sequence) return undefined;
    if (header.sequence < running.sequence) throw new FrameCorrupt('an operation that is over');
    if (header.tag !== running.tag || header.step !== running.exchange.step) {
      throw this.#mismatch(link, running.exchange);
    }
    if (running.toReceive[rank] === 0) throw this.#mismatch(link, running.exchange);
    return running.exchange.place(rank, header);
  }

  #received(link: Link, header: FrameHeader, payload: Uint8Array): void {
    this.stats.receivedBytes += payload.length;
    if (header.kind === FRAME_KIND.welcome) {
      link.welcomed = true;
      this.#checkOpen();
      return;
    }
    if (header.kind === FRAME_KIND.refused) {
      const { stale, message } = parseRefusal(payload);
      throw new MeshError(
        stale ? 'GENERATION_CHANGED' : 'PEER_REFUSED',
        `${nameOf(link)} refuses: ${message}`,
        { rank: link.member.rank },
      );
    }
    if (header.generation < this.#generation.number) {
      this.stats.staleFrames++;
      return;
    }
    const running = this.#running!;
    const { rank } = link.member;
    running.toReceive[rank]!--;
    running.lastHeard[rank] = performance.now();
    this.#progress(running);
    running.exchange.received(rank, header, payload);
    this.#advance();
  }

  #finishIfDone(): void {
    const running = this.#running;
    if (running === undefined) return;
    if (running.toSend.some((left) => left > 0) || running.toReceive.some((left) => left > 0))
      return;
    this.#running = undefined;
    running.watch.stop();
    running.resolve();
  }

  // --- Failures

  /** The first failure of a generation is the one that every pending and later operation gets. */
  #fail(error: MeshError): void {
    this.#failure ??= error;
    this.#opening?.reject(this.#failure);
    this.#opening = undefined;
    const running = this.#running;
    this.#running = undefined;
    running?.watch.stop();
    running?.reject(this.#failure);
  }

  #leave(reason: MeshError): void {
    this.#fail(reason);
    for (const link of this.#peers()) {
      clearTimeout(link.redial);
      link.reader?.destroy();
      // What the kernel holds already still reaches a peer that is behind.
      link.writer?.destroy();
    }
    this.#links = [];
  }

  /** Whether a peer is gone without which the running exchange cannot end. */
  #checkPeers(): void {
    const running = this.#running;
    if (running === undefined) return;
    for (const link of this.#peers()) {
      const { rank } = link.member;
      const isNeeded = running.exchange.needsEveryone === true || running.toReceive[rank]! > 0;
      if (isNeeded && link.readerEnd !== undefined) {
        this.#fail(link.readerEnd);
        return;
      }
      if (running.toSend[rank]! > 0 && link.writer?.writable !== true) {
        this.#fail(lost(link, running.exchange));
        return;
      }
    }
  }

  #readerEnded(link: Link, error: Error | undefined, inFrame: boolean, redialMs: number): void {
    if (!this.#links.includes(link)) return;
    link.reader = undefined;
    if (error instanceof MeshError) {
      this.#fail(error);
    } else if (error instanceof FrameCorrupt) {
      this.#fail(
        new MeshError('FRAME_CORRUPT', `from ${nameOf(link)}: ${error.message}`, {
          ...{ rank: link.member.rank, cause: error },
        }),
      );
    } else if (!link.welcomed && this.#opening !== undefined) {
      if (link.localSocket !== undefined) {
        link.localSocket = undefined;
        this.#dial(link, redialMs);
        return;
      }
      link.lastDialError = error === undefined ? 'it closed the connection' : messageOf(error);
      link.redial = setTimeout(() => {
        this.#dial(link, Math.min(2 * redialMs, REDIAL_MS.most));
      }, redialMs);
    } else {
      link.readerEnd = lost(link, this.#running?.exchange, inFrame, error);
      this.#checkPeers();
    }
  }

  #late(): MeshError {
    const { exchange, toReceive, toSend, lastHeard } = this.#running!;
    // A peer that had sent everything and is gone may be what another, that still needed it, has given up for.
    const gone = this.#peers().find(({ readerEnd }) => readerEnd !== undefined);
    if (gone !== undefined) return gone.readerEnd!;
    const waitedFor = this.#peers().filter(
      ({ member: { rank } }) => toReceive[rank]! > 0 || toSend[rank]! > 0,
    );
    // Who has sent least recently holds up the others, whose frames then miss as well.
    const earliest = Math.min(...waitedFor.map(({ member: { rank } }) => lastHeard[rank]!));
    const late = waitedFor.filter(({ member: { rank } }) => lastHeard[rank] === earliest);
    return new MeshError(
      'PEER_TIMEOUT',
      `"${exchange.name}" of step ${exchange.step} had no progress for ${this.#options.timeoutMs} ms: ` +
        `waiting for ${late.map(nameOf).join(', ')}. Look there for a stalled decoder or a swapping host`,
      late.length === 0 ? {} : { rank: late[0]!.member.rank },
    );
  }

  #unreachable(): MeshError {
    const missing = this.#peers().filter((link) => !isOpen(link));
    const names = missing.map((link) =>
      link.lastDialError === undefined ? nameOf(link) : `${nameOf(link)} (${link.lastDialError})`,
    );
    return new MeshError(
      'PEER_TIMEOUT',
      `generation ${this.#generation.number}: not connected within ${this.#options.timeoutMs} ms: ` +
        `${names.join(', ')}. Can this host reach that address?`,
      missing.length === 0 ? {} : { rank: missing[0]!.member.rank },
    );
  }

  #mismatch(link: Link, { name, step }: Exchange): MeshError {
    return new MeshError(
      'COLLECTIVE_MISMATCH',
      `${nameOf(link)} runs another operation than "${name}" of step ${step}, which rank ${this.#rank} runs: ` +
        'the workers do not run the same program or config',
      { rank: link.member.rank },
    );
  }

  // --- Connections

  #peers(): Link[] {
    return this.#links.filter((link) => link !== undefined);
  }

  #localSocketOf({ tensorAddress, workerId }: MeshMember): string | undefined {
    const { localSockets, runId } = this.#options;
    // Without a folder of its own this worker trusts nobody's.
    if (localSockets === false || this.#localServer === undefined) return undefined;
    if (!isSameHost(tensorAddress, this.address)) return undefined;
    return localSocketOf({ runId, workerId, tensorAddress });
  }

  #dial(link: Link, redialMs: number): void {
    const { number } = this.#generation;
    const address =
      link.localSocket === undefined
        ? parseAddress(link.member.tensorAddress)
        : { path: link.localSocket };
    const sink: FrameSink = {
      place: (header) => this.#place(link, header),
      received: (header, payload) => {
        this.#received(link, header, payload);
      },
      ended: (error, inFrame) => {
        this.#readerEnded(link, error, inFrame, redialMs);
      },
    };
    const { security = LOOPBACK_ONLY } = this.#options;
    const { workerId } = link.member;
    const reader = new FrameReader(address, sink, (options) =>
      connectSocket(options, security, { role: 'worker', workerId }),
    );
    link.reader = reader;
    reader.socket.once(connectedEvent(reader.socket), () => {
      unpaceLoopback(reader.socket);
      sendHello(reader.socket, {
        token: security.token,
        protocolVersion: PROTOCOL_VERSION,
        runId: this.#options.runId,
        workerId: this.#options.workerId,
        toWorkerId: link.member.workerId,
        generation: number,
      });
    });
  }

  async #greet(socket: Socket, caller: PeerIdentity | undefined): Promise<void> {
    this.#strangers.add(socket);
    socket.on('close', () => {
      this.#strangers.delete(socket);
      this.#parked.delete(socket);
    });
    socket.on('error', () => undefined); // `close` follows
    try {
      const hello = await receiveHello(socket);
      const refusal = credentialsRefusal(hello, caller, this.#options.security ?? LOOPBACK_ONLY);
      if (refusal === undefined) {
        this.#admit(socket, hello);
      } else {
        this.stats.refusedConnections++;
        sendRefusal(socket, this.#generation.number, { stale: false, message: refusal });
      }
    } catch {
      this.stats.refusedConnections++;
      socket.destroy();
    }
  }

  #admit(socket: Socket, hello: Hello): void {
    this.#parked.delete(socket);
    const { number } = this.#generation;
    const refusal = refusalOf(hello, this.#options);
    if (refusal === undefined && hello.generation > number) {
      this.#parked.set(socket, hello); // the coordinator told the peer first
      return;
    }
    const link = this.#peers().find(({ member }) => member.workerId === hello.workerId);
    const stale =
      refusal === undefined && (hello.generation < number || this.#failure !== undefined);
    if (refusal !== undefined || stale || link === undefined) {
      if (stale) this.stats.staleConnections++;
      else this.stats.refusedConnections++;
      sendRefusal(socket, number, {
        stale,
        message:
          refusal ??
          (stale
            ? `generation ${hello.generation} is over, the worker is in ${number}`
            : `worker ${hello.workerId} is no member of generation ${number}`),
      });
      return;
    }
    this.#strangers.delete(socket);
    unpaceLoopback(socket);
    link.writer?.destroy();
    link.writer = socket;
    link.checksums = this.#options.checksums === 'always' || leavesMachine(socket);
    socket.on('close', () => {
      if (link.writer === socket) this.#checkPeers();
    });
    socket.on('data', () => socket.destroy()); // a peer has nothing more to say here
    sendWelcome(socket, number);
    this.#checkOpen();
  }

  #checkOpen(): void {
    if (!this.#peers().every(isOpen)) return;
    this.#opening?.resolve();
    this.#opening = undefined;
  }
}

/** Calls back when nothing has made progress for some time. */
class Watch {
  readonly #timeoutMs: number;
  readonly #expired: () => void;
  #lastProgress = performance.now();
  #stopped = false;
  #timer: NodeJS.Timeout;

  constructor(timeoutMs: number, expired: () => void) {
    this.#timeoutMs = timeoutMs;
    this.#expired = expired;
    this.#timer = setTimeout(this.#check, timeoutMs);
  }

  progress(): void {
    this.#lastProgress = performance.now();
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#stopped = true;
  }

  readonly #check = (): void => {
    const leftMs = this.#lastProgress + this.#timeoutMs - performance.now();
    if (leftMs > 0) {
      this.#timer = setTimeout(this.#check, leftMs);
      return;
    }
    // This process may itself have been busy for so long: what came meanwhile is read before the second look.
    const seen = this.#lastProgress;
    setImmediate(() => {
      if (this.#stopped) return;
      if (this.#lastProgress === seen) this.#expired();
      else this.#check();
    });
  };
}

function newLink(member: MeshMember, localSocket: string | undefined): Link {
  return {
    member,
    reader: undefined,
    welcomed: false,
    writer: undefined,
    framesInFlight: 0,
    checksums: true,
    readerEnd: undefined,
    redial: undefined,
    lastDialError: undefined,
    localSocket,
  };
}

function isOpen({ welcomed, writer }: Link): boolean {
  return welcomed && writer !== undefined;
}

function nameOf({ member: { rank, workerId, tensorAddress } }: Link): string {
  return `rank ${rank} (worker ${workerId} at ${tensorAddress})`;
}

function lost(link: Link, exchange?: Exchange, inFrame = false, cause?: Error): PeerLost {
  const during =
    exchange === undefined ? '' : ` during "${exchange.name}" of step ${exchange.step}`;
  const where = inFrame ? ' in the middle of a frame' : '';
  const why = cause === undefined ? '' : `: ${messageOf(cause)}`;
  return new PeerLost(
    link.member.rank,
    `the connection to ${nameOf(link)} closed${during}${where}${why}. ` +
      'The run goes on without it once the coordinator has opened the next generation',
    cause,
  );
}

/** A Unix socket has no address. */
function leavesMachine({ remoteAddress }: Socket): boolean {
  return remoteAddress !== undefined && !isLoopback(remoteAddress);
}
