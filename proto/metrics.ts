import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

import type { Registry } from 'prom-client';

import { messageOf } from './errors.ts';
import { parseAddress, portError } from './address.ts';

/** A running `/metrics` endpoint. */
export interface MetricsServer {
  /** host:port that it listens on. */
  readonly address: string;
  /** Ends it and open scrapes; may be called twice. */
  close(): Promise<void>;
}

/** Processes to scrape, in the form of Prometheus's HTTP service discovery. */
export interface ScrapeTarget {
  /** host:port */
  readonly targets: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
}

/** What else of a run there is to scrape, for {@link serveMetrics}. */
export interface Discovery {
  readonly others: () => readonly ScrapeTarget[];
  /** Of the process that serves this. */
  readonly labels: Readonly<Record<string, string>>;
}

/**
 * Serves `registry` as Prometheus text at `/metrics`, and at `/sd` the processes to scrape where there is a `discovery`;
 * every other path is 404, every other method 405.
 * Source: Prometheus's documentation, "Writing HTTP service discovery".
 * @param address host:port; port 0 takes a free one. Anybody who reaches it can read it: loopback unless asked otherwise.
 * @throws VideoloomError PORT_IN_USE, BAD_ADDRESS
 */
export async function serveMetrics(
  registry: Registry,
  address = '127.0.0.1:0',
  discovery?: Discovery,
): Promise<MetricsServer> {
  const { host, port } = parseAddress(address);
  const server = createServer(
    { requestTimeout: 5000, headersTimeout: 5000, keepAliveTimeout: 5000, maxHeaderSize: 16_384 },
    (request, response) => {
      const path = (request.url ?? '').split('?', 1)[0];
      const isDiscovery = path === '/sd' && discovery !== undefined;
      if (path !== '/metrics' && !isDiscovery)
        return void response.writeHead(404).end('only /metrics is here\n');
      if (request.method !== 'GET' && request.method !== 'HEAD') {
        return void response.writeHead(405, { allow: 'GET, HEAD' }).end();
      }
      if (isDiscovery) {
        // Whoever asks has reached this process under that name; by its own it may stand for all addresses.
        const self = { targets: [request.headers.host ?? ''], labels: discovery.labels };
        const text = JSON.stringify([self, ...discovery.others()]);
        return void response.writeHead(200, { 'content-type': 'application/json' }).end(text);
      }
      registry.metrics().then(
        (text) => response.writeHead(200, { 'content-type': registry.contentType }).end(text),
        (error: unknown) => response.writeHead(500).end(`${messageOf(error)}\n`),
      );
    },
  );
  server.maxConnections = 32;
  // A scraper that stops reading must not hold its text for ever.
  server.setTimeout(10_000);
  server.listen(port, host);
  try {
    await once(server, 'listening');
  } catch (error) {
    throw portError(error, address, 'the metrics endpoint');
  }
  const { port: bound } = server.address() as AddressInfo;
  return {
    address: `${host.includes(':') ? `[${host}]` : host}:${bound}`,
    async close() {
      if (!server.listening) return;
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
