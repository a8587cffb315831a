/** One connection's way to publish: into a JetStream stream that remembers, or to whoever listens now. */
import {
  DiscardPolicy,
  jetstream,
  JetStreamApiCodes,
  JetStreamApiError,
  jetstreamManager,
  StorageType,
  type JetStreamManager,
} from '@nats-io/jetstream';
import {
  headers,
  PermissionViolationError,
  type MsgHdrs,
  type NatsConnection,
} from '@nats-io/transport-node';

import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { NATS_REQUEST_MS } from '../../proto/nats.ts';
import {
  CLOUD_EVENT_TYPE,
  EVENT_STREAM,
  EVENT_SUBJECTS,
  eventSubject,
} from '../../proto/run-events.ts';
import type { OutgoingEvent } from './event-cursor.ts';

/** What became of an event: kept, kept before, seen by the server that keeps nothing, or more than it takes. */
export type Delivery = 'stored' | 'duplicate' | 'sent' | 'too-large';

export interface EventChannel {
  /** The stream that keeps the events; undefined: nobody does. */
  readonly stream: StreamMemory | undefined;
  /** Why there is none. */
  readonly whyNoStream: string;
  /** Settles when the server has it. @throws whatever kept it from that; nobody knows then whether it has */
  publish(event: OutgoingEvent): Promise<Delivery>;
}

/** What a stream knows of the run. */
export interface StreamMemory {
  readonly name: string;
  /** Older messages it has forgotten; 0: none. */
  readonly maxAgeMs: number;
  /** Id of the newest event of the run that it keeps. */
  lastId(): Promise<string | undefined>;
  /** Ids of all that it keeps. */
  ids(): Promise<ReadonlySet<string>>;
}

// Of the stream that is made where there is none; whoever wants another one makes it before, for the same subjects.
const MAX_AGE_DAYS = 30;
const MAX_BYTES = 256 * 2 ** 20;
/** What is sent twice within it is kept once, whatever the stream's newest event is. */
const DUPLICATES_SECONDS = 120;
const SECOND_NS = 1e9;
const NS_PER_MS = 1e6;

/** Finds or makes the stream. @throws whatever the connection throws */
export async function openEventChannel(
  connection: NatsConnection,
  runId: string,
): Promise<EventChannel> {
  const violations: string[] = [];
  void (async () => {
    for await (const status of connection.status())
      if (status.type === 'error' && status.error instanceof PermissionViolationError)
        violations.push(status.error.message);
  })();
  const found = await findStream(connection, runId);
  if (typeof found === 'string') {
    return {
      ...{ stream: undefined, whyNoStream: found },
      async publish(event) {
        if (isTooLarge(connection, event)) return 'too-large';
        violations.length = 0;
        connection.publish(event.subject, event.payload, { headers: headersOf(event) });
        // What the server has to say against it comes before its answer to this.
        await answered(connection, connection.flush());
        const [violation] = violations;
        if (violation !== undefined) throw new Error(violation);
        return 'sent';
      },
    };
  }
  const client = jetstream(connection, { timeout: NATS_REQUEST_MS });
  return {
    ...{ stream: found, whyNoStream: '' },
    async publish(event) {
      if (isTooLarge(connection, event)) return 'too-large';
      const options = { headers: headersOf(event), timeout: NATS_REQUEST_MS };
      const ack = await client.publish(event.subject, event.payload, options);
      return ack.duplicate ? 'duplicate' : 'stored';
    },
  };
}

/** The stream; else why there is none that this account may use. */
async function findStream(
  connection: NatsConnection,
  runId: string,
): Promise<StreamMemory | string> {
  try {
    const options = { timeout: NATS_REQUEST_MS, checkAPI: false };
    const manager = await jetstreamManager(connection, options);
    const subject = eventSubject(runId, 'run.started');
    const name = await manager.streams.find(subject).catch((error: unknown) => {
      if (!(error instanceof JetStreamApiError)) throw error;
      if (error.code !== JetStreamApiCodes.StreamNotFound) throw error;
      return undefined;
    });
    return await memoryOf(manager, name ?? (await makeStream(manager)), runId);
  } catch (error) {
    const cause = (error as { cause?: unknown }).cause;
    if (error instanceof PermissionViolationError || cause instanceof PermissionViolationError)
      return `this user may not use it (${messageOf(error)})`;
    const isOff =
      error instanceof JetStreamApiError &&
      error.code === JetStreamApiCodes.JetStreamNotEnabledForAccount;
    // A server that has it may take a moment after its start until it answers.
    const isWithout = (error as Error).name === 'JetStreamNotEnabled';
    if (isOff || (isWithout && connection.info?.jetstream !== true))
      return 'it is not enabled there';
    throw error;
  }
}

async function makeStream(manager: JetStreamManager): Promise<string> {
  await manager.streams.add({
    ...{ name: EVENT_STREAM, subjects: [EVENT_SUBJECTS], storage: StorageType.File },
    ...{ max_age: MAX_AGE_DAYS * 86_400 * SECOND_NS, max_bytes: MAX_BYTES },
    ...{ discard: DiscardPolicy.Old, duplicate_window: DUPLICATES_SECONDS * SECOND_NS },
    ...{ description: 'what happens to runs of Videoloom', allow_direct: true },
  });
  return EVENT_STREAM;
}

async function memoryOf(
  manager: JetStreamManager,
  name: string,
  runId: string,
): Promise<StreamMemory> {
  const { config } = await manager.streams.info(name);
  const subject = eventSubject(runId);
  return {
    ...{ name, maxAgeMs: config.max_age / NS_PER_MS },
    async lastId() {
      const last = await manager.streams.getMessage(name, { last_by_subj: subject });
      return last === null ? undefined : idOf(last.header);
    },
    async ids() {
      const ids = new Set<string>();
      for (let seq = 1; ;) {
        const query = { seq, next_by_subj: subject };
        const next = await manager.streams.getMessage(name, query);
        if (next === null) return ids;
        ids.add(idOf(next.header));
        seq = next.seq + 1;
      }
    },
  };
}

const ID_HEADER = 'Nats-Msg-Id';

function headersOf({ id }: OutgoingEvent): MsgHdrs {
  const own = headers();
  own.set(ID_HEADER, id);
  own.set('Content-Type', CLOUD_EVENT_TYPE);
  return own;
}

function idOf(header: MsgHdrs): string {
  return header.get(ID_HEADER);
}

/** Bytes of headers and their frame. */
const HEADROOM_BYTES = 1024;

function isTooLarge({ info }: NatsConnection, { payload }: OutgoingEvent): boolean {
  return Buffer.byteLength(payload) + HEADROOM_BYTES > (info?.max_payload ?? Infinity);
}

/** What the server answers, while there is a server that can. */
async function answered<T>(connection: NatsConnection, answer: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(notAnswered(`no answer within ${NATS_REQUEST_MS / 1000} s`));
    }, NATS_REQUEST_MS);
  });
  const ended = connection.closed().then((): never => {
    throw notAnswered('the connection has ended');
  });
  try {
    return await Promise.race([answer, late, ended]);
  } finally {
    clearTimeout(timer);
  }
}

function notAnswered(why: string): VideoloomError {
  return new VideoloomError('EVENTS_NOT_DELIVERED', why, { retryable: true });
}
