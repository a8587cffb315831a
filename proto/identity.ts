/** Who a process of a run is, as its certificate says: a SPIFFE id in the subject's alternative name. */
import type { DetailedPeerCertificate, PeerCertificate } from 'node:tls';

/** What a process may do: lead the run, train in it, or look at it and stop it. */
export type Role = 'coordinator' | 'worker' | 'operator';

/** One process; only workers have names. */
export type PeerIdentity =
  | { readonly role: 'worker'; readonly workerId: string }
  | { readonly role: Exclude<Role, 'worker'> };

/** What a worker may be called. */
export const WORKER_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;

const DOMAIN = 'spiffe://videoloom';
const UNNAMED: readonly Exclude<Role, 'worker'>[] = ['coordinator', 'operator'];

/** The identity as the URI that stands in a certificate. Source: SPIFFE-ID, section 2. */
export function identityUri(identity: PeerIdentity): string {
  return identity.role === 'worker'
    ? `${DOMAIN}/worker/${identity.workerId}`
    : `${DOMAIN}/${identity.role}`;
}

/** The identity for messages: `worker "worker-0"`, `the coordinator`. */
export function nameOfIdentity(identity: PeerIdentity): string {
  if (identity.role === 'worker') return `worker "${identity.workerId}"`;
  return identity.role === 'coordinator' ? 'the coordinator' : 'an operator';
}

/**
 * The identity that a certificate proves; undefined for one that carries any other or any further alternative name.
 * The chain is for whoever shook hands to check.
 */
export function identityOf(
  certificate: PeerCertificate | DetailedPeerCertificate,
): PeerIdentity | undefined {
  const names = certificate.subjectaltname;
  if (names === undefined) return undefined;
  const role = UNNAMED.find((candidate) => names === `URI:${DOMAIN}/${candidate}`);
  if (role !== undefined) return { role };
  const prefix = `URI:${DOMAIN}/worker/`;
  const workerId = names.slice(prefix.length);
  return names.startsWith(prefix) && WORKER_ID.test(workerId)
    ? { role: 'worker', workerId }
    : undefined;
}

export function isSameIdentity(a: PeerIdentity, b: PeerIdentity): boolean {
  return identityUri(a) === identityUri(b);
}
