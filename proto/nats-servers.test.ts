import assert from 'node:assert/strict';
import { test } from 'node:test';
import { UsageError } from './errors.ts';
import { checkNatsReach, parseNatsServers } from './nats-servers.ts';
import { LOOPBACK_ONLY } from './security.ts';

const WHERE = 'cluster.events';
const TLS = { tls: { ca: '', cert: '', key: '' }, token: undefined, insecure: false };

function codeOf(action: () => unknown): [code: string, message: string] {
  try {
    action();
  } catch (error) {
    assert.ok(error instanceof UsageError);
    return [error.code, error.message];
  }
  return ['', ''];
}

test('servers are named by one address or several, with a port or the usual one', () => {
  assert.deepEqual(parseNatsServers('nats://localhost', WHERE), [
    { host: 'localhost', port: 4222, url: 'nats://localhost:4222' },
  ]);
  assert.deepEqual(parseNatsServers(['tls://[::1]:80', 'nats://10.0.0.7:4223/'], WHERE), [
    { host: '::1', port: 80, url: 'tls://[::1]:80' },
    { host: '10.0.0.7', port: 4223, url: 'nats://10.0.0.7:4223' },
  ]);
});

test('what is no address is refused with what one looks like, and a password without repeating it', () => {
  const wrong = ['127.0.0.1:4222', 'http://a', 'nats://', 'nats://a:b', 'nats://a/b', 'nats://a:0'];
  for (const url of [...wrong, 'nats://a:70000', 'nats://a?tls=no', 'nats://a,nats://b', ''])
    assert.match(
      codeOf(() => parseNatsServers(url, WHERE)).join(': '),
      /^BAD_EVENTS_ADDRESS: cluster\.events .* write nats:\/\/host:4222|^BAD_ADDRESS: /,
      url,
    );
  assert.equal(codeOf(() => parseNatsServers([], WHERE))[0], 'BAD_EVENTS_ADDRESS');
  for (const url of ['nats://me:pa55@a:4222', 'nats://pa55@a', 'wss://me:pa55@a']) {
    const [code, message] = codeOf(() => parseNatsServers(url, WHERE));
    assert.equal(code, 'EVENTS_CREDENTIALS_IN_ADDRESS');
    assert.match(message, /VIDEOLOOM_NATS_CREDENTIALS/);
    assert.doesNotMatch(message, /pa55/);
  }
});

test('events leave the loopback over TLS alone, or with --insecure', () => {
  const check = (url: string, security: Parameters<typeof checkNatsReach>[1]): string =>
    codeOf(() => {
      checkNatsReach(parseNatsServers(url, WHERE), security);
    })[0];
  const insecure = { ...LOOPBACK_ONLY, insecure: true };
  assert.equal(check('nats://127.0.0.1', LOOPBACK_ONLY), '');
  assert.equal(check('nats://[::1]', LOOPBACK_ONLY), '');
  assert.equal(check('nats://10.0.0.7', LOOPBACK_ONLY), 'PLAIN_TEXT_OFF_LOOPBACK');
  assert.equal(check('nats://events.example', LOOPBACK_ONLY), 'PLAIN_TEXT_OFF_LOOPBACK');
  assert.equal(check('nats://10.0.0.7', insecure), '');
  assert.equal(check('nats://events.example', TLS), '');
  assert.equal(check('tls://events.example', TLS), '');
  assert.equal(check('tls://127.0.0.1', LOOPBACK_ONLY), 'EVENTS_TLS_MISSING');
  assert.equal(check('tls://10.0.0.7', insecure), 'EVENTS_TLS_MISSING');
});
