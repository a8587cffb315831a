import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  DeliverPolicy,
  jetstream,
  JetStreamApiCodes,
  JetStreamApiError,
  jetstreamManager,
  type JetStreamClient,
  type JetStreamManager,
  type JsMsg,
} from '@nats-io/jetstream';
import type { Msg, NatsConnection } from '@nats-io/transport-node';
import pc from 'picocolors';
import { UsageError, VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { connectNats, NATS_CREDENTIALS_VARIABLE, type NatsOptions } from '../proto/nats.ts';
import { checkNatsReach, parseNatsServers, type NatsServer } from '../proto/nats-servers.ts';
import { printable } from '../proto/printable.ts';
import { eventSubject, LAST_EVENTS, type CloudEvent } from '../proto/run-events.ts';
import { readRunPlan, RUN_PLAN_FILE } from '../proto/run-plan.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { hasEnded, lastEventOf } from './reports/left-run.ts';

export interface EventsOptions {
  readonly server?: string;
  readonly new?: boolean;
  readonly json?: boolean;
  readonly tls?: string;
  readonly insecure?: boolean;
  readonly env: NodeJS.ProcessEnv;
}

/**
 * Prints a run's events as lines: those that the server keeps, then those that come, until the run ends.
 * @throws UsageError EVENTS_NOT_CONFIGURED; VideoloomError EVENTS_NOT_CONNECTED
 */
export async function showEvents(run: string, options: EventsOptions): Promise<void> {
  const isFolder = await exists(join(run, RUN_PLAN_FILE));
  const plan = isFolder ? await readRunPlan(run) : undefined;
  const urls = options.server ?? plan?.events;
  if (urls === undefined) {
    throw new UsageError(
      'EVENTS_NOT_CONFIGURED',
      `nothing says where the events of ${run} are: give --server nats://host:4222, or the folder of a run that was trained ` +
        'with cluster.events=nats://host:4222.',
    );
  }
  const servers = parseNatsServers(urls, '--server');
  const security = await openSecurity({
    as: { role: 'operator' },
    ...{ tls: options.tls, insecure: options.insecure, env: options.env },
    runFolder: isFolder ? run : undefined,
  });
  checkNatsReach(servers, security);
  const credentialsFile = options.env[NATS_CREDENTIALS_VARIABLE];
  const connection = await firstOf(servers, {
    security,
    credentialsFile,
    name: 'videoloom events',
  });
  const runId = plan?.runId ?? run;
  try {
    const source = await openSource(connection, runId, options, async () =>
      isFolder && (await hasEnded(run)) ? lastEventOf(run, runId) : undefined,
    );
    if (source.isEmpty) {
      say(
        `${runId} has ended: ${options.new === true ? 'nothing new comes' : 'nothing is kept of it'}`,
      );
      return;
    }
    let isOver = false;
    for await (const message of source.messages) {
      const event = message.json<CloudEvent>();
      process.stdout.write(`${options.json === true ? JSON.stringify(event) : lineOf(event)}\n`);
      // Behind the end of a run that was looked at again stands that it was.
      isOver =
        source.lastId === undefined
          ? LAST_EVENTS.has(nameOf(event))
          : isOver || source.lastId === event.id;
      if (isOver && isNewest(message)) return;
    }
    if (source.isQuiet()) {
      say(`${runId} has ended, and its last events have not come: they are in its journal alone`);
      return;
    }
  } finally {
    await connection.close();
  }
  throw connectionEnded();
}

function connectionEnded(): VideoloomError {
  return new VideoloomError('EVENTS_NOT_CONNECTED', 'the server has ended the connection.');
}

/** A connection to the first server that gives one. */
async function firstOf(
  servers: readonly NatsServer[],
  reader: NatsOptions,
): Promise<NatsConnection> {
  for (const server of servers.slice(0, -1)) {
    const connection = await connectNats(server, reader).catch(() => undefined);
    if (connection !== undefined) return connection;
  }
  return connectNats(servers.at(-1)!, reader);
}

/** Nothing that is kept comes after it. */
function isNewest(message: Msg | JsMsg): boolean {
  return !('info' in message) || message.info.pending === 0;
}

const NOTHING: AsyncIterable<never> = {
  [Symbol.asyncIterator]: () => ({ next: () => Promise.resolve({ done: true, value: undefined }) }),
};
const FIND_AGAIN_MS = 500;
/** A run that has ended may still be delivering its last events for so long, or never will. */
const QUIET_MS = 10_000;

/** Where a run's events come from. */
interface Source {
  readonly messages: AsyncIterable<Msg | JsMsg>;
  /** The last event there is of a run that was over when they were subscribed to. */
  readonly lastId: string | undefined;
  /** Nothing is kept and nothing comes. */
  readonly isEmpty: boolean;
  /** They ended as the last event did not come for {@link QUIET_MS}. */
  isQuiet(): boolean;
}

/** @param endOf id of the last event of a run that has ended, where its folder tells */
async function openSource(
  connection: NatsConnection,
  runId: string,
  { new: isNew = false }: EventsOptions,
  endOf: () => Promise<string | undefined>,
): Promise<Source> {
  const subject = eventSubject(runId);
  const isQuiet = (): boolean => false;
  const nothing = { messages: NOTHING, lastId: undefined, isEmpty: true, isQuiet };
  if (connection.info?.jetstream !== true) {
    const messages = connection.subscribe(subject);
    // Asked after the subscription: the end of a run that ends now is heard.
    if ((await endOf()) !== undefined) return nothing;
    return { messages, lastId: undefined, isEmpty: false, isQuiet };
  }
  const manager = await jetstreamManager(connection, { checkAPI: false });
  let stream = await findStream(manager, runId);
  const isThere = stream !== undefined;
  if (!isThere) {
    // The first run that publishes there makes it.
    if ((await endOf()) !== undefined) return nothing;
    say(`${connection.getServer()} keeps no events yet: waiting for those of ${runId}`);
  }
  while (stream === undefined) {
    await delay(FIND_AGAIN_MS);
    if (connection.isClosed()) throw connectionEnded();
    stream = await findStream(manager, runId);
  }
  const client = jetstream(connection);
  // All that a stream keeps which was not there before is new. A number: a consumer that is made again, after a restart of
  // the server, begins where it is to.
  const first =
    isNew && isThere ? (await manager.streams.info(stream)).state.last_seq + 1 : undefined;
  const lastId = await endOf();
  const isComplete = lastId !== undefined && (await newestId(client, stream, subject)) === lastId;
  const consumer = await client.consumers.get(stream, {
    filter_subjects: [subject],
    ...(first === undefined
      ? { deliver_policy: DeliverPolicy.All }
      : { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: first }),
  });
  // A consumption that nobody reads would keep this process.
  if (isComplete && (await consumer.info(true)).num_pending === 0) return nothing;
  const messages = await consumer.consume();
  if (lastId === undefined) return { messages, lastId, isEmpty: false, isQuiet };
  let wasQuiet = false;
  let quietMs = 0;
  // In pieces: a reader of this process's output that stands still stops the clock, too.
  const timer = setInterval(() => {
    quietMs += QUIET_MS / 10;
    wasQuiet = quietMs >= QUIET_MS;
    if (wasQuiet) messages.stop();
  }, QUIET_MS / 10);
  async function* untilQuiet(): AsyncGenerator<JsMsg> {
    try {
      for await (const message of messages) {
        quietMs = 0;
        yield message;
      }
    } finally {
      clearInterval(timer);
    }
  }
  return { messages: untilQuiet(), lastId, isEmpty: false, isQuiet: () => wasQuiet };
}

/** Id of the newest message of a subject that a stream keeps; undefined where it keeps none. */
async function newestId(
  client: JetStreamClient,
  stream: string,
  subject: string,
): Promise<string | undefined> {
  // What an operator may do: a consumer, and no look at single messages.
  const newest = await client.consumers.get(stream, {
    filter_subjects: [subject],
    deliver_policy: DeliverPolicy.Last,
  });
  if ((await newest.info(true)).num_pending === 0) return undefined;
  return (await newest.next())?.json<CloudEvent>().id;
}

/** `2026-11-28 20:42:03  checkpoint.committed  step 300  sizeBytes 1043210`. */
function lineOf(event: CloudEvent): string {
  const { time, data } = event;
  const fields = Object.entries(data).map(([name, value]) => {
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    return `${pc.dim(name)} ${printable(text)}`;
  });
  const at = time.slice(0, 19).replace('T', ' ');
  return [printable(at), pc.bold(printable(nameOf(event))), ...fields].join('  ');
}

function nameOf({ type }: CloudEvent): string {
  return type.slice('videoloom.'.length);
}

/** The stream that keeps a run's events; undefined where the server has none yet. */
async function findStream(manager: JetStreamManager, runId: string): Promise<string | undefined> {
  try {
    return await manager.streams.find(eventSubject(runId, 'run.started'));
  } catch (error) {
    const isMissing =
      error instanceof JetStreamApiError && error.code === JetStreamApiCodes.StreamNotFound;
    if (isMissing) return undefined;
    throw error;
  }
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
