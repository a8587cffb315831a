import { join } from 'node:path';
import { DeliverPolicy, jetstream, jetstreamManager, type JsMsg } from '@nats-io/jetstream';
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
  try {
    for await (const message of await messagesOf(connection, plan?.runId ?? run, options)) {
      const event = message.json<CloudEvent>();
      process.stdout.write(`${options.json === true ? JSON.stringify(event) : lineOf(event)}\n`);
      if (LAST_EVENTS.has(nameOf(event)) && isNewest(message)) return;
    }
  } finally {
    await connection.close();
  }
  throw new VideoloomError('EVENTS_NOT_CONNECTED', 'the server has ended the connection.');
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

async function messagesOf(
  connection: NatsConnection,
  runId: string,
  { new: isNew = false }: EventsOptions,
): Promise<AsyncIterable<Msg | JsMsg>> {
  const subject = eventSubject(runId);
  if (connection.info?.jetstream !== true) return connection.subscribe(subject);
  const manager = await jetstreamManager(connection, { checkAPI: false });
  const stream = await manager.streams.find(eventSubject(runId, 'run.started'));
  const consumer = await jetstream(connection).consumers.get(stream, {
    filter_subjects: [subject],
    deliver_policy: isNew ? DeliverPolicy.New : DeliverPolicy.All,
  });
  return consumer.consume();
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
