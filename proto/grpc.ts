/**
 * The one place where errors become gRPC statuses and back. A handler takes a request and gives a response (or an async
 * generator of them) and throws {@link VideoloomError}; `call`, `callStream` and `callBidi` throw the same error, code
 * and message, in the other process.
 */

import { once } from 'node:events';
import type { AddressInfo, Socket } from 'node:net';

import {
  ChannelCredentials,
  Client,
  InterceptingCall,
  logVerbosity,
  Metadata,
  Server,
  ServerCredentials,
  ServerInterceptingCall,
  setLogVerbosity,
  status as Status,
} from '@grpc/grpc-js';
import type {
  ChannelOptions,
  handleBidiStreamingCall,
  handleServerStreamingCall,
  handleUnaryCall,
  Interceptor,
  MethodDefinition,
  ServiceDefinition,
  ServiceError,
  ServerInterceptor,
  StatusObject,
  UntypedServiceImplementation,
} from '@grpc/grpc-js';

import { parseAddress, portError } from './address.ts';
import { whyRefused } from './connection-probe.ts';
import { messageOf, UsageError, VideoloomError } from './errors.ts';
import { createRpcListener } from './grpc-listener.ts';
import { identityOf, nameOfIdentity, type PeerIdentity, type Role } from './identity.ts';
import { isSameToken, TOKEN_REFUSED } from './join-token.ts';
import { secureContextOf, SERVER_NAME, serverIdentityCheck } from './secure-socket.ts';
import { checkReach, LOOPBACK_ONLY, type Security } from './security.ts';

/** Most bytes of one message, either way: longer things travel in chunks. */
export const MAX_MESSAGE_BYTES = 4 * 2 ** 20;

const OPTIONS: ChannelOptions = {
  // Without keepalive grpc-js never notices a peer that is gone without a FIN.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5000,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
  'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
  // The default of 64 KiB costs a round trip every 64 KiB.
  'grpc-node.flow_control_window': 16 * 2 ** 20,
};

/** After how long in silence the other side is asked for a sign of life, and after how long without one it is cut off. */
export interface Keepalive {
  readonly timeMs: number;
  readonly timeoutMs: number;
}

function keepaliveOptions(keepalive: Keepalive | undefined): ChannelOptions {
  if (keepalive === undefined) return {};
  return {
    'grpc.keepalive_time_ms': keepalive.timeMs,
    'grpc.keepalive_timeout_ms': keepalive.timeoutMs,
  };
}

/** How long the reader of a stream may take nothing before the stream is cut. */
const SLOW_READER_MS = 30_000;
/** Most memory of one connection, MiB: beyond it new streams are refused. */
const MAX_SESSION_MEBIBYTES = 64;

const CODE_KEY = 'videoloom-code';
const RETRYABLE_KEY = 'videoloom-retryable';

/** What an RPC answers with: a {@link VideoloomError} whose gRPC status is chosen where it is thrown. */
export class RpcError extends VideoloomError {
  readonly status: Status;

  constructor(
    status: Status,
    code: string,
    message: string,
    options: { readonly cause?: unknown; readonly retryable?: boolean } = {},
  ) {
    super(code, message, options);
    this.status = status;
  }
}

/** What a handler may need beside the request. */
export interface CallContext {
  /** Aborts when the caller has gone, cancelled, or let its deadline pass. */
  readonly signal: AbortSignal;
  /** Whom the caller's certificate names; undefined in plain text, where callers are not told apart. */
  readonly caller: PeerIdentity | undefined;
}

/** @throws RpcError PERMISSION_DENIED when the caller is known and has none of `roles` */
export function demandRole({ caller }: CallContext, ...roles: readonly Role[]): void {
  if (caller === undefined || roles.includes(caller.role)) return;
  throw notAllowed(caller, `this is for ${roles.join(' and ')} certificates`);
}

/** @throws RpcError PERMISSION_DENIED when the caller is known and is not this worker */
export function demandWorker({ caller }: CallContext, workerId: string): void {
  if (caller === undefined) return;
  if (caller.role === 'worker' && caller.workerId === workerId) return;
  throw notAllowed(caller, `it may not speak for worker ${JSON.stringify(workerId)}`);
}

function notAllowed(caller: PeerIdentity, what: string): RpcError {
  return new RpcError(
    Status.PERMISSION_DENIED,
    'PERMISSION_DENIED',
    `the certificate is of ${nameOfIdentity(caller)}: ${what}. ` +
      'Start each process under the id that its certificate bears.',
  );
}

interface Authenticated {
  getAuthContext(): { sslPeerCertificate?: Parameters<typeof identityOf>[0] };
}

function callerOf(call: Authenticated): PeerIdentity | undefined {
  const certificate = call.getAuthContext().sslPeerCertificate;
  return certificate === undefined ? undefined : identityOf(certificate);
}

/** A unary handler from an async function. */
export function unary<Request, Response>(
  handler: (request: Request, context: CallContext) => Response | Promise<Response>,
): handleUnaryCall<Request, Response> {
  return (call, callback) => {
    const controller = new AbortController();
    call.on('cancelled', () => {
      controller.abort(callerGone());
    });
    const answer = async (): Promise<Response> =>
      handler(call.request, { signal: controller.signal, caller: callerOf(call) });
    answer().then(
      (response) => {
        callback(null, response);
      },
      (error: unknown) => {
        callback(toStatus(error));
      },
    );
  };
}

/**
 * A server-streaming handler from an async generator; it is resumed as fast as the caller reads.
 * @param slowReaderMs how long a caller may take nothing before the stream is cut
 */
export function serverStream<Request, Response>(
  handler: (request: Request, context: CallContext) => AsyncIterable<Response>,
  slowReaderMs = SLOW_READER_MS,
): handleServerStreamingCall<Request, Response> {
  return (call) => {
    const controller = new AbortController();
    call.on('cancelled', () => {
      controller.abort(callerGone());
    });
    const { signal } = controller;
    const context = { signal, caller: callerOf(call) };
    void respond(call, { signal, slowReaderMs }, () => handler(call.request, context));
  };
}

/** A bidirectional handler: from the caller's messages to an async generator of answers. */
export function bidi<Request, Response>(
  handler: (requests: AsyncIterable<Request>, context: CallContext) => AsyncIterable<Response>,
): handleBidiStreamingCall<Request, Response> {
  return (call) => {
    const controller = new AbortController();
    call.on('cancelled', () => {
      controller.abort(callerGone());
    });
    const { signal } = controller;
    // A handler may stop reading and go on answering, so the end of reading must not destroy the call.
    const requests: AsyncIterable<Request> = {
      [Symbol.asyncIterator]: () =>
        call.iterator({ destroyOnReturn: false }) as AsyncIterableIterator<Request>,
    };
    const context = { signal, caller: callerOf(call) };
    void respond(call, { signal, slowReaderMs: SLOW_READER_MS }, () => handler(requests, context));
  };
}

interface ResponseWriter<Response> {
  readonly destroyed: boolean;
  write(response: Response): boolean;
  end(): unknown;
  once(event: 'drain', listener: () => void): unknown;
  emit(event: 'error', error: unknown): boolean;
}

/** Writes what `responses` yields, waiting for `drain`; ends the generator as soon as the caller has gone. */
async function respond<Response>(
  call: ResponseWriter<Response> & NodeJS.EventEmitter,
  { signal, slowReaderMs }: { readonly signal: AbortSignal; readonly slowReaderMs: number },
  responses: () => AsyncIterable<Response>,
): Promise<void> {
  try {
    for await (const response of responses()) {
      if (signal.aborted) return;
      if (!call.write(response)) await drained(call, signal, slowReaderMs);
    }
    if (!signal.aborted) call.end();
  } catch (error) {
    // grpc-js sends an emitted error as the call's status.
    if (!signal.aborted) call.emit('error', toStatus(error));
  }
}

/** @throws RpcError SLOW_READER; whatever `signal` says */
async function drained(
  call: NodeJS.EventEmitter,
  signal: AbortSignal,
  slowReaderMs: number,
): Promise<void> {
  const late = new AbortController();
  const timer = setTimeout(() => {
    late.abort();
  }, slowReaderMs);
  try {
    await once(call, 'drain', { signal: AbortSignal.any([signal, late.signal]) });
  } catch (error) {
    if (signal.aborted || !late.signal.aborted) throw error;
    throw new RpcError(
      Status.RESOURCE_EXHAUSTED,
      'SLOW_READER',
      `the caller has read nothing of the stream for ${slowReaderMs} ms: call again and read faster`,
      { retryable: true },
    );
  } finally {
    clearTimeout(timer);
  }
}

function callerGone(): RpcError {
  return new RpcError(
    Status.CANCELLED,
    'CANCELLED',
    'the caller has gone or let its deadline pass',
  );
}

/** The gRPC status of anything thrown; bugs become INTERNAL and print their stack here, where they are. */
function toStatus(error: unknown): StatusObject & Error {
  const metadata = new Metadata();
  let code: Status = Status.INTERNAL;
  if (error instanceof VideoloomError) {
    metadata.set(CODE_KEY, error.code);
    if (error.retryable) metadata.set(RETRYABLE_KEY, '1');
    code = Status.FAILED_PRECONDITION;
    if (error.retryable) code = Status.UNAVAILABLE;
    if (error instanceof UsageError) code = Status.INVALID_ARGUMENT;
    if (error instanceof RpcError) code = error.status;
  } else {
    process.stderr.write(
      `${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    );
  }
  return Object.assign(new Error(messageOf(error)), { code, details: messageOf(error), metadata });
}

/** What grpc-js says when it has no connection, and keeps the reason to itself. */
const NOT_CONNECTED = /^No connection established/;

async function whatFailed(error: ServiceError, what: string, channel: Channel): Promise<RpcError> {
  if (!NOT_CONNECTED.test(error.details)) return fromStatus(error, what, channel.address);
  const { address, dialled, hasAnswered } = channel;
  const why = await whyRefused(address, dialled, { hasAnswered });
  if (why === undefined) return fromStatus(error, what, address);
  return new RpcError(
    Status.UNAUTHENTICATED,
    'CONNECTION_REFUSED',
    `${what}: ${address} is there, but no connection comes about: ${why}. Both sides need --tls folders of one ` +
      '`videoloom init --tls`, or neither; running that again renews certificates',
    { cause: error },
  );
}

function fromStatus(error: ServiceError, what: string, address: string): RpcError {
  const code = error.metadata.get(CODE_KEY)[0]?.toString();
  if (code !== undefined) {
    const retryable = error.metadata.get(RETRYABLE_KEY).length > 0;
    return new RpcError(error.code, code, error.details, { cause: error, retryable });
  }
  // A peer that ends in the middle of a call shows as a reset stream, too, or as one that was cancelled: Node makes that
  // up, and who cancels a call here is told its own reason.
  const isReset = error.code === Status.INTERNAL && error.details.includes('RST_STREAM');
  if (isReset || error.code === Status.CANCELLED) error.code = Status.UNAVAILABLE;
  const retryable = error.code === Status.UNAVAILABLE || error.code === Status.DEADLINE_EXCEEDED;
  return new RpcError(
    error.code,
    Status[error.code],
    `${what} at ${address} failed: ${error.details || error.message}`,
    { cause: error, retryable },
  );
}

/** Limits of one call. */
export interface CallOptions {
  /** Time until the call fails with DEADLINE_EXCEEDED. Infinity only for streams that end with their peer. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

/** A connection to one server; it connects at the first call and again after a loss. `close()` ends it. */
export class Channel extends Client {
  readonly address: string;
  readonly dialled: DialOptions;
  /** A call has had a response: the two sides fit together. */
  hasAnswered = false;

  constructor(
    address: string,
    dialled: DialOptions,
    ...[credentials, options]: [ChannelCredentials, ChannelOptions]
  ) {
    super(address, credentials, options);
    this.address = address;
    this.dialled = dialled;
  }
}

/** Whom a channel goes to and what protects it. */
export interface DialOptions {
  readonly security: Security;
  /** Whose certificate has to be there. */
  readonly peer: PeerIdentity;
  /** How soon a peer is noticed that is gone without a word; by default late, for connections that nothing hangs on. */
  readonly keepalive?: Keepalive;
}

/**
 * Opens a connection to host:port, in plain text on the loopback when left out how; nothing is sent before the first call.
 * @throws UsageError BAD_ADDRESS, PLAIN_TEXT_OFF_LOOPBACK
 */
export function dial(
  address: string,
  dialled: DialOptions = { security: LOOPBACK_ONLY, peer: { role: 'coordinator' } },
): Channel {
  const { security, peer, keepalive } = dialled;
  checkReach(security, address, 'this process would connect to');
  const { tls, token } = security;
  const credentials =
    tls === undefined
      ? ChannelCredentials.createInsecure()
      : ChannelCredentials.createFromSecureContext(secureContextOf(tls), {
          checkServerIdentity: serverIdentityCheck(peer),
        });
  return new Channel(address, dialled, credentials, {
    ...OPTIONS,
    ...keepaliveOptions(keepalive),
    ...(token === undefined ? {} : { interceptors: [presentToken(token)] }),
    // An address as the name of a server is not allowed in TLS, and names are not what is checked.
    ...(tls === undefined ? {} : { 'grpc.ssl_target_name_override': SERVER_NAME }),
    // A proxy of the environment is for the world outside, not for the cluster.
    'grpc.enable_http_proxy': 0,
    'grpc.use_local_subchannel_pool': 1,
    'grpc.initial_reconnect_backoff_ms': 200,
    'grpc.max_reconnect_backoff_ms': 2000,
    // A coordinator that is moved has its name at another address: half a minute would be lost before that is looked up.
    'grpc.dns_min_time_between_resolutions_ms': 1000,
  });
}

const TOKEN_KEY = 'authorization';

/** Sends the join token with each call. */
function presentToken(token: string): Interceptor {
  return (options, nextCall) =>
    new InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.set(TOKEN_KEY, `Bearer ${token}`);
        next(metadata, listener);
      },
    });
}

/** Lets calls through that bear the join token, before their handler sees them. */
function demandToken(token: string): ServerInterceptor {
  const refusal = new Metadata();
  refusal.set(CODE_KEY, 'TOKEN_REFUSED');
  return (_, call) =>
    new ServerInterceptingCall(call, {
      start(next) {
        next({
          onReceiveMetadata(metadata, proceed) {
            const bearer = metadata.get(TOKEN_KEY)[0]?.toString();
            if (isSameToken(`Bearer ${token}`, bearer)) proceed(metadata);
            else
              call.sendStatus({
                code: Status.UNAUTHENTICATED,
                details: TOKEN_REFUSED,
                metadata: refusal,
              });
          },
        });
      },
    });
}

/** Calls a unary method: `call(channel, CoordinatorServiceService.join, request, { timeoutMs })`. @throws RpcError */
export function call<Request, Response>(
  channel: Channel,
  method: MethodDefinition<Request, Response>,
  request: Request,
  { timeoutMs, signal }: CallOptions,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const sent = channel.makeUnaryRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      new Metadata(),
      { deadline: deadlineAfter(timeoutMs) },
      (error, response) => {
        signal?.removeEventListener('abort', cancel);
        channel.hasAnswered ||= error === null;
        if (error === null) resolve(response!);
        else if (signal?.aborted) reject(asError(signal.reason));
        else whatFailed(error, method.path, channel).then(reject, reject);
      },
    );
    const cancel = (): void => {
      sent.cancel();
    };
    signal?.addEventListener('abort', cancel, { once: true });
  });
}

/** Calls a server-streaming method; leaving the loop cancels the call. @throws RpcError */
export async function* callStream<Request, Response>(
  channel: Channel,
  method: MethodDefinition<Request, Response>,
  request: Request,
  { timeoutMs, signal }: CallOptions,
): AsyncGenerator<Response, void, undefined> {
  signal?.throwIfAborted();
  const stream = channel.makeServerStreamRequest(
    method.path,
    method.requestSerialize,
    method.responseDeserialize,
    request,
    new Metadata(),
    { deadline: deadlineAfter(timeoutMs) },
  );
  yield* received<Response>(stream, method.path, channel, signal);
}

/**
 * Calls a bidirectional method: sends what `requests` yields, as fast as the peer reads, and yields its answers.
 * Leaving the loop cancels the call and ends `requests`. @throws RpcError, or what `requests` threw
 */
export async function* callBidi<Request, Response>(
  channel: Channel,
  method: MethodDefinition<Request, Response>,
  requests: AsyncIterable<Request>,
  { timeoutMs, signal }: CallOptions,
): AsyncGenerator<Response, void, undefined> {
  signal?.throwIfAborted();
  const stream = channel.makeBidiStreamRequest(
    method.path,
    method.requestSerialize,
    method.responseDeserialize,
    new Metadata(),
    { deadline: deadlineAfter(timeoutMs) },
  );
  const over = new AbortController();
  const source = requests[Symbol.asyncIterator]();
  let failure: unknown;
  const send = async (): Promise<void> => {
    for (;;) {
      const next = await source.next();
      if (next.done === true || over.signal.aborted) break;
      if (!stream.write(next.value)) await once(stream, 'drain', { signal: over.signal });
    }
    stream.end();
  };
  send().catch((error: unknown) => {
    failure ??= over.signal.aborted ? undefined : error;
    stream.cancel();
  });
  try {
    yield* received<Response>(stream, method.path, channel, signal);
  } catch (error) {
    throw failure ?? error;
  } finally {
    over.abort();
    // Not awaited: a source that sleeps between two beats would hold up the end.
    source.return?.().catch(() => undefined);
  }
}

interface ResponseReader {
  on(event: 'error', listener: (error: Error) => void): unknown;
  cancel(): void;
  [Symbol.asyncIterator](): AsyncIterator<unknown>;
}

async function* received<Response>(
  stream: ResponseReader,
  what: string,
  channel: Channel,
  signal: AbortSignal | undefined,
): AsyncGenerator<Response, void, undefined> {
  // grpc-js may emit the status after the reader has left; without a listener that would end the process.
  stream.on('error', () => undefined);
  const cancel = (): void => {
    stream.cancel();
  };
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    for await (const response of stream as AsyncIterable<Response>) {
      channel.hasAnswered = true;
      yield response;
    }
  } catch (error) {
    if (signal?.aborted) throw asError(signal.reason);
    throw isServiceError(error) ? await whatFailed(error, what, channel) : error;
  } finally {
    signal?.removeEventListener('abort', cancel);
    stream.cancel();
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && 'metadata' in error && 'details' in error;
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(messageOf(reason));
}

function deadlineAfter(timeoutMs: number): number {
  return timeoutMs === Infinity ? Infinity : Date.now() + timeoutMs;
}

/** A service and the handlers of its methods. */
export interface ServedService {
  readonly definition: ServiceDefinition;
  readonly handlers: UntypedServiceImplementation;
}

/** A running gRPC server. */
export interface RpcServer {
  /** host:port that it listens on. */
  readonly address: string;
  readonly port: number;
  /** Takes no more calls, lets the open ones end for at most `graceMs`, then cuts them. May be called twice. */
  close(graceMs?: number): Promise<void>;
}

/**
 * Serves on host:port, in plain text on the loopback when left out how; port 0 takes a free one.
 * @param refused is told why a connection got no further
 * @throws VideoloomError PORT_IN_USE, CANNOT_LISTEN, BAD_ADDRESS, PLAIN_TEXT_OFF_LOOPBACK
 */
export async function serve(
  services: readonly ServedService[],
  address: string,
  security: Security = LOOPBACK_ONLY,
  refused?: (reason: string) => void,
  keepalive?: Keepalive,
): Promise<RpcServer> {
  checkReach(security, address, 'the gRPC server would listen on');
  const { host, port: wanted } = parseAddress(address);
  // grpc-js would print what is thrown here a second time, without a word on how to mend it.
  setLogVerbosity(logVerbosity.NONE);
  const server = new Server({
    ...OPTIONS,
    ...keepaliveOptions(keepalive),
    'grpc.max_concurrent_streams': 1000,
    'grpc-node.max_session_memory': MAX_SESSION_MEBIBYTES,
    interceptors: security.token === undefined ? [] : [demandToken(security.token)],
  });
  for (const { definition, handlers } of services) server.addService(definition, handlers);
  outliveEndedStreams(server);
  // TLS is done before gRPC sees a connection, so that it can be bounded in number and time.
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const inject = (socket: Socket): void => {
    injector.injectConnection(socket);
  };
  const listener = createRpcListener(security, inject, refused);
  listener.server.listen(wanted, host);
  try {
    await once(listener.server, 'listening');
  } catch (error) {
    throw portError(error, address, 'the gRPC server');
  }
  const { port } = listener.server.address() as AddressInfo;
  let closing: Promise<void> | undefined;
  return {
    address: `${host.includes(':') ? `[${host}]` : host}:${port}`,
    port,
    close(graceMs = 0) {
      closing ??= new Promise((resolve) => {
        listener.server.close();
        listener.endStrangers();
        const cut = setTimeout(() => {
          server.forceShutdown();
        }, graceMs);
        server.tryShutdown(() => {
          clearTimeout(cut);
          server.forceShutdown();
          resolve();
        });
      });
      return closing;
    },
  };
}

type StreamHandler = (...args: unknown[]) => void;

/**
 * Keeps the process when a caller ends a stream at once: grpc-js 1.14 answers a request that it does not take without a
 * look at whether its stream is still there, and what Node throws then is caught by nobody.
 */
function outliveEndedStreams(server: Server): void {
  const internals = server as unknown as Record<string, StreamHandler | undefined>;
  for (const name of ['_channelzHandler', '_streamHandler']) {
    const handle = internals[name];
    if (handle === undefined) continue;
    internals[name] = (...args) => {
      try {
        handle.apply(server, args);
      } catch (error) {
        const { code = '' } = error as NodeJS.ErrnoException;
        if (!code.startsWith('ERR_HTTP2_') && code !== 'ERR_STREAM_DESTROYED') throw error;
      }
    };
  }
}
