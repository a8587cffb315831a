/**
 * Publishes the events of a run while it goes on. The journal is the outbox: nothing is held in memory but the one event
 * in flight, whatever the server does, and no step ever waits for it.
 *
 * Once each: the newest event in the stream says what has arrived, also after a restart, on another machine, or where it
 * is not known of the one in flight. Without a stream an event is sent from this coordinator's start on, at most once to
 * those who listen, save the one in flight when a connection breaks.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { NatsConnection } from '@nats-io/transport-node';
import type { Registry } from 'prom-client';

import { messageOf, VideoloomError } from '../../proto/errors.ts';
import type { Log } from '../../proto/log.ts';
import { connectNats, type NatsOptions } from '../../proto/nats.ts';
import type { NatsServer } from '../../proto/nats-servers.ts';
import { openRng } from '../../proto/random.ts';
import { openEventChannel, type EventChannel, type StreamMemory } from './event-channel.ts';
import { eventIds, openEventCursor, type EventCursor, type OutgoingEvent } from './event-cursor.ts';
import { openEventMetrics, type EventMetrics } from './event-metrics.ts';
import { Wake } from './wake.ts';

export interface EventPublisherOptions extends Omit<NatsOptions, 'name'> {
  readonly runId: string;
  /** Path of the journal. */
  readonly journal: string;
  /** Tried by turns. */
  readonly servers: readonly NatsServer[];
  readonly log: Log;
  readonly registry: Registry;
  readonly wallTime: () => Date;
}

export interface EventPublisher {
  /** Says that the journal has a record of this number now; the first time begins. */
  journaled(seq: number): void;
  /** Delivers what the journal has, for at most `limitMs`, and says what was not. May be called twice. */
  end(limitMs: number): Promise<void>;
}

/** Before a further attempt to connect: a random part of a time that doubles from the first to the last. */
const [FIRST_RETRY_MS, LAST_RETRY_MS] = [200, 10_000];
/** The journal is looked at so often at most, however fast steps are. */
const LOOK_EVERY_MS = 50;
/** The same complaint is not repeated within. */
const COMPLAIN_EVERY_MS = 60_000;

/** @see EventPublisher */
export function openEventPublisher(options: EventPublisherOptions): EventPublisher {
  return new Publisher(options);
}

class Publisher implements EventPublisher {
  readonly #options: EventPublisherOptions;
  readonly #metrics: EventMetrics;
  readonly #wake = new Wake();
  #work: Promise<void> | undefined;
  #connection: NatsConnection | undefined;
  #cursor: EventCursor | undefined;
  /** First record of this coordinator, and the last one that was journaled. */
  #firstSeq = 0;
  #lastSeq = 0;
  /** Of the newest event that was delivered. */
  #deliveredId: string | undefined;
  #state: 'running' | 'ending' | 'ended' = 'running';
  #numFailures = 0;
  #complaint = { text: '', nextMs: 0 };

  constructor(options: EventPublisherOptions) {
    this.#options = options;
    this.#metrics = openEventMetrics(
      options.registry,
      () => this.#lastSeq - Math.max(this.#cursor?.seq ?? 0, this.#firstSeq - 1),
    );
    this.#metrics.connected(false);
  }

  journaled(seq: number): void {
    if (this.#firstSeq === 0) this.#firstSeq = seq;
    this.#lastSeq = seq;
    this.#work ??= this.#run();
    this.#wake.tell();
  }

  async end(limitMs: number): Promise<void> {
    if (this.#state !== 'running') return;
    this.#state = 'ending';
    this.#numFailures = 0;
    this.#wake.tell();
    const limit = new AbortController();
    await Promise.race([
      this.#work,
      sleep(limitMs, undefined, { signal: limit.signal }).catch(() => undefined),
    ]);
    limit.abort();
    this.#state = 'ended';
    this.#wake.tell();
    // Without a connection it is waited for one, which may take longer, or all is done: neither touches the cursor again.
    const connection = this.#connection;
    if (connection !== undefined) {
      await connection.close();
      await this.#work;
    }
    await this.#tellUndelivered();
    await this.#cursor?.close();
  }

  /** Server after server, until the run has ended. Never rejects: nobody is to lose a step over it. */
  async #run(): Promise<void> {
    const { servers, runId } = this.#options;
    for (let attempt = 0; !this.#isEnded(); attempt++) {
      const server = servers[attempt % servers.length]!;
      try {
        const name = `videoloom coordinator of ${runId}`;
        this.#connection = await connectNats(server, { ...this.#options, name });
        // It may have taken until the end.
        if (this.#isEnded()) return;
        const channel = await openEventChannel(this.#connection, runId);
        this.#welcome(server, channel);
        await this.#takePlace(channel.stream);
        await this.#deliver(this.#connection, channel);
        return;
      } catch (error) {
        if (this.#isEnded()) return;
        this.#complain(server, error);
        if (error instanceof VideoloomError && error.code === 'JOURNAL_NOT_FOLLOWED') return;
      } finally {
        this.#metrics.connected(false);
        await this.#connection?.close();
        this.#connection = undefined;
      }
      await this.#backOff();
    }
  }

  /** Sends until the end, or throws when the connection breaks. */
  async #deliver(connection: NatsConnection, channel: EventChannel): Promise<void> {
    const cursor = this.#cursor!;
    const tell = (): void => {
      this.#wake.tell();
    };
    void connection.closed().then(tell);
    while (!this.#isEnded()) {
      // The end may come while the journal is read: it is then read once more.
      const isEnding = this.#state === 'ending';
      const event = await cursor.peek();
      if (event !== undefined) {
        await this.#send(event, channel);
        cursor.advance();
        this.#deliveredId = event.id;
        this.#numFailures = 0;
      } else if (isEnding) return;
      else {
        await this.#wake.wait();
        if (connection.isClosed()) throw new Error('the connection has ended');
        if (this.#state === 'running') await sleep(LOOK_EVERY_MS);
      }
    }
  }

  async #send(event: OutgoingEvent, channel: EventChannel): Promise<void> {
    const { stream } = channel;
    // It would be forgotten at once, and was sent long ago.
    const ageMs = this.#options.wallTime().getTime() - event.timeMs;
    if (stream !== undefined && stream.maxAgeMs > 0 && ageMs > stream.maxAgeMs) return;
    try {
      const delivery = await channel.publish(event);
      this.#metrics.published(delivery);
      if (delivery === 'too-large') this.#metrics.dropped('too-large');
    } catch (error) {
      this.#metrics.published('failed');
      throw error;
    }
  }

  /** Puts the cursor behind what has arrived. */
  async #takePlace(stream: StreamMemory | undefined): Promise<void> {
    this.#cursor ??= await this.#openCursor();
    if (stream === undefined) {
      // Unlike what any stream would say.
      this.#deliveredId ??= '';
      await skipUntil(this.#cursor, ({ seq }) => seq >= this.#firstSeq);
      return;
    }
    const last = await stream.lastId();
    // As it was left, the one in flight aside; or nothing has ever arrived.
    if (last === this.#deliveredId) return;
    if (last !== undefined && (await this.#cursor.peek())?.id === last) {
      this.#cursor.advance();
      this.#deliveredId = last;
      return;
    }
    await this.#findPlace(last === undefined ? new Set() : new Set([last]));
    if (last === undefined || this.#deliveredId === last) return;
    // The newest is of another run of this name, or of a history of this one that was given up: what is common counts.
    await this.#findPlace(await stream.ids());
  }

  /** Reads the journal again, up to its last event that is among `ids`. */
  async #findPlace(ids: ReadonlySet<string>): Promise<void> {
    let numBehind = 0;
    let number = 0;
    this.#deliveredId = undefined;
    for await (const id of eventIds(this.#options.journal, this.#options.runId)) {
      number++;
      if (!ids.has(id)) continue;
      numBehind = number;
      this.#deliveredId = id;
    }
    const fresh = await this.#openCursor();
    await this.#cursor?.close();
    this.#cursor = fresh;
    await skipUntil(fresh, () => numBehind-- === 0);
  }

  #openCursor(): Promise<EventCursor> {
    return openEventCursor(this.#options.journal, this.#options.runId);
  }

  async #backOff(): Promise<void> {
    const mostMs = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(this.#numFailures, 10));
    const share = openRng(process.pid, 'events', ++this.#numFailures).uniform();
    const untilMs = performance.now() + share * mostMs;
    // The end of the run cuts it short once; after that there is not much time to wait.
    const state = this.#state;
    for (let leftMs = share * mostMs; leftMs > 0; leftMs = untilMs - performance.now()) {
      await this.#wake.wait(leftMs);
      if (this.#state !== state) return;
    }
  }

  #welcome({ url }: NatsServer, { stream, whyNoStream }: EventChannel): void {
    this.#metrics.connected(true);
    const text =
      stream === undefined
        ? `events are sent to ${url}, which keeps none of them: it has no JetStream for us, ${whyNoStream}`
        : `events go to the stream ${stream.name} of ${url}`;
    if (text !== this.#complaint.text) this.#options.log.info(text);
    this.#complaint = { text, nextMs: Infinity };
  }

  #complain({ url }: NatsServer, error: unknown): void {
    const { code = 'EVENTS_NOT_DELIVERED' } = error as { code?: string };
    const reason = messageOf(error).replace(` to ${url}`, '');
    const text = `events do not get to ${url}: ${reason}; the run goes on, and they wait in its journal`;
    const nowMs = performance.now();
    if (text === this.#complaint.text && nowMs < this.#complaint.nextMs) return;
    this.#complaint = { text, nextMs: nowMs + COMPLAIN_EVERY_MS };
    this.#options.log.warn({ code }, text);
  }

  /** Nobody connected, or somebody did, and not all of them arrived. */
  async #tellUndelivered(): Promise<void> {
    let number = 0;
    try {
      const cursor = (this.#cursor ??= await this.#openCursor());
      const isOwn = ({ seq }: OutgoingEvent): boolean => seq >= this.#firstSeq;
      if (this.#deliveredId === undefined) await skipUntil(cursor, isOwn);
      for (; (await cursor.peek()) !== undefined; number++) cursor.advance();
    } catch (error) {
      this.#options.log.warn(
        `how many events were not delivered is not known: ${messageOf(error)}`,
      );
    }
    if (number === 0) return;
    this.#metrics.dropped('end', number);
    this.#options.log.warn(
      { code: 'EVENTS_NOT_DELIVERED', events: number },
      `${number} events were not delivered before the end; they are in the journal. \`videoloom coordinator --run FOLDER\` ` +
        'sends them, where the server has JetStream.',
    );
  }

  #isEnded(): boolean {
    return this.#state === 'ended';
  }
}

async function skipUntil(
  cursor: EventCursor,
  isThere: (event: OutgoingEvent) => boolean,
): Promise<void> {
  for (let event = await cursor.peek(); event !== undefined; event = await cursor.peek()) {
    if (isThere(event)) return;
    cursor.advance();
  }
}
