/** The secret of a run: 256 random bits, base64url. */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';

const TOKEN = /^[A-Za-z0-9_-]{43}$/;

/** A new token. Not of the run's seeded randomness: it has to be unknown to all. */
export function newJoinToken(): string {
  return randomBytes(32).toString('base64url');
}

export function isJoinToken(text: string): boolean {
  return TOKEN.test(text);
}

/**
 * Whether the presented token is the expected one, in a time that says nothing about either: digests of one length are
 * compared to their end.
 */
export function isSameToken(expected: string, presented: string | undefined): boolean {
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(expected), digest(presented ?? ''));
}

/** What somebody is told whose token is missing or another run's. */
export const TOKEN_REFUSED =
  'the join token is missing or is not the one of this run: start the process with the --tls folder that ' +
  '`videoloom init --tls` made for the run, or a copy of it';
