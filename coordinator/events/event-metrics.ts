import { Counter, Gauge } from 'prom-client';
import type { Registry } from 'prom-client';

import type { Delivery } from './event-channel.ts';

/** What is counted of a run's events. */
export interface EventMetrics {
  published(result: Delivery | 'failed'): void;
  /** Events that nobody will get. */
  dropped(reason: 'too-large' | 'end', number?: number): void;
  connected(isConnected: boolean): void;
}

/** Registers them. `pendingRecords` is asked for at each scrape. */
export function openEventMetrics(registry: Registry, pendingRecords: () => number): EventMetrics {
  const registers = [registry];
  const publishes = new Counter({
    name: 'videoloom_nats_publish_total',
    help: 'Attempts to publish an event, by what became of them.',
    labelNames: ['result'],
    registers,
  });
  const drops = new Counter({
    name: 'videoloom_events_dropped_total',
    help: 'Events that are in the journal alone: larger than the server takes, or not delivered when the run ended.',
    labelNames: ['reason'],
    registers,
  });
  for (const reason of ['too-large', 'end']) drops.inc({ reason }, 0);
  const connection = new Gauge({
    name: 'videoloom_nats_connected',
    help: 'Whether there is a connection to a NATS server.',
    registers,
  });
  new Gauge({
    name: 'videoloom_events_pending_records',
    help: 'Records of the journal whose events are not delivered yet.',
    registers,
    collect() {
      this.set(pendingRecords());
    },
  });
  return {
    published(result) {
      publishes.inc({ result });
    },
    dropped(reason, number = 1) {
      drops.inc({ reason }, number);
    },
    connected(isConnected) {
      connection.set(isConnected ? 1 : 0);
    },
  };
}
