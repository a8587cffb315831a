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

/**
 * Serves `registry` as Prometheus text at `/metrics`; every other path is 404, every other method 405.
 * @param address host:port; port 0 takes a free one. Anybody who reaches it can read it: loopback unless asked otherwise.
 * @throws VideoloomError PORT_IN_USE, BAD_ADDRESS
 */
export async function serveMetrics(
  registry: Registry,
  address = '127.0.0.1:0',
): Promise<MetricsServer> {
  const { host, port } = parseAddress(address);
  const server = createServer(
    { requestTimeout: 5000, headersTimeout: 5000, keepAliveTimeout: 5000, maxHeaderSize: 16_384 },
    (request, response) => {
      const path = (request.url ?? '').split('?', 1)[0];
      if (path !== '/metrics') return void response.writeHead(404).end('only /metrics is here\n');
      if (request.method !== 'GET' && request.method !== 'HEAD') {
        return void response.writeHead(405, { allow: 'GET, HEAD' }).end();
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
