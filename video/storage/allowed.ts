/**
 * Which URLs may be fetched. Data sets name URLs, and whoever wrote the data set is not to reach, through the machine
 * that reads it, what that machine alone can reach: the cloud's metadata address, services of the private network.
 */

import { lookup } from 'node:dns';
import { isIP, type LookupFunction } from 'node:net';
import ipaddr from 'ipaddr.js';
import { redactUrl } from './paths.ts';
import { StorageError } from './store.ts';

/** What is allowed beyond and below the rule: any public address by `https`, `http` and `s3`. */
export interface UrlPolicy {
  /** If given, the only hosts (of `s3`: buckets) to read from; `*.example.org` stands for all below that name. */
  readonly hosts?: readonly string[];
  /** Also addresses that are not public: a store of one's own. */
  readonly allowPrivate?: boolean;
}

/**
 * The URL, looked at as far as that goes without a look-up of its host; {@link allowedLookup} does the rest.
 * @throws StorageError URL_REFUSED
 */
export function checkUrl(location: string, policy: UrlPolicy): URL {
  if (!URL.canParse(location)) throw refused(location, 'is no URL: correct it');
  const url = new URL(location);
  if (!SCHEMES.includes(url.protocol)) {
    throw refused(
      location,
      'has a scheme that is not read: use https, http, s3 or a path below the root',
    );
  }
  if (policy.hosts !== undefined && !policy.hosts.some((host) => isHost(url.hostname, host))) {
    throw refused(
      location,
      `is on a host that is not among the allowed ones (${policy.hosts.join(', ')}): add it to them`,
    );
  }
  // `URL` has turned 2130706433, 0x7f.1 and 127.1 into 127.0.0.1. Sockets look no literal address up: it is now or never.
  const literal = url.hostname.replace(/^\[|\]$/g, '');
  if (url.protocol !== 's3:' && isIP(literal) !== 0 && !isAllowedAddress(literal, policy))
    throw refused(location, privateAddress(literal));
  return url;
}

/**
 * The look-up of a socket that connects to allowed addresses alone. What it gives is what is connected to, so that
 * there is no second answer from the name server to fool it with.
 */
export function allowedLookup(policy: UrlPolicy): LookupFunction {
  return (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, addresses) => {
      if (error !== null) {
        callback(error, '');
        return;
      }
      const hidden = addresses.find(({ address }) => !isAllowedAddress(address, policy));
      const [first] = addresses;
      if (hidden !== undefined) callback(refused(hostname, privateAddress(hidden.address)), '');
      else if (options.all === true) callback(null, addresses);
      else callback(null, first!.address, first!.family);
    });
  };
}

/** Whether a socket may connect to it: to public unicast addresses, and by leave to any. */
export function isAllowedAddress(address: string, { allowPrivate = false }: UrlPolicy): boolean {
  if (allowPrivate) return true;
  const parsed = ipaddr.process(address); // takes ::ffff:127.0.0.1 as 127.0.0.1
  const bytes = parsed.toByteArray();
  // 64:ff9b::/96 holds an IPv4 address that a gateway (NAT64) connects to.
  if (parsed.range() === 'rfc6052')
    return ipaddr.fromByteArray(bytes.slice(12)).range() === 'unicast';
  // Of IPv6, 2000::/3 is what has been given out. Source: RFC 4291, sec. 2.4, and IANA's registry.
  const isGlobal = parsed.kind() === 'ipv4' || bytes[0]! >> 5 === 1;
  return isGlobal && parsed.range() === 'unicast';
}

function isHost(hostname: string, allowed: string): boolean {
  const [name, wanted] = [hostname.toLowerCase(), allowed.toLowerCase()];
  return wanted.startsWith('*.') ? name.endsWith(wanted.slice(1)) : name === wanted;
}

function privateAddress(address: string): string {
  return (
    `leads to ${address}, which is no public address: a data set must not reach into a private network. If the ` +
    'store is your own, allow private addresses (allowPrivate).'
  );
}

/** That a location may not be fetched. */
export function refused(location: string, problem: string): StorageError {
  return new StorageError('URL_REFUSED', `${redactUrl(location)} ${problem}`);
}

const SCHEMES = ['https:', 'http:', 's3:'];
