/**
 * X.509 certificates of a run: an authority and what it signs, ECDSA on P-256. Node makes keys and signatures; only the
 * form around them is written here. Source: RFC 5280, section 4.1 and 4.2.1.
 */
import {
  createHash,
  generateKeyPairSync,
  randomBytes,
  sign,
  X509Certificate,
  type KeyObject,
} from 'node:crypto';
import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';
import { identityUri, type PeerIdentity } from '../proto/identity.ts';
import {
  bits,
  explicit,
  implicit,
  integer,
  octets,
  oid,
  sequence,
  set,
  time,
  utf8,
  yes,
} from './der.ts';

/** A certificate and its private key, PEM. */
export interface KeyPair {
  readonly cert: string;
  readonly key: string;
}

/** From when to when a certificate holds. */
export interface Validity {
  readonly notBefore: Date;
  readonly notAfter: Date;
}

const ECDSA_WITH_SHA256 = sequence(oid('1.2.840.10045.4.3.2'));
const KEY_USAGE = { digitalSignature: 0x80, signsCertificates: 0x06 };

/** An authority that signs its own certificate and nothing but those of processes. */
export function createAuthority(validity: Validity): KeyPair {
  const { publicKey, privateKey } = newKeys();
  // No two authorities have one name, so that a certificate of another says so.
  const subject = commonName(`Videoloom run authority ${randomBytes(8).toString('hex')}`);
  const cert = certificate({
    ...{ subject, issuer: subject, publicKey, signer: privateKey, validity },
    extensions: [
      extension('2.5.29.19', sequence(yes(), integer(Buffer.from([0]))), { isCritical: true }),
      extension('2.5.29.15', bits(Buffer.from([KEY_USAGE.signsCertificates]), 1), {
        isCritical: true,
      }),
      extension('2.5.29.14', octets(keyIdentifier(publicKey))),
    ],
  });
  return { cert, key: pemOf(privateKey) };
}

interface Authority {
  readonly cert: X509Certificate;
  readonly key: KeyObject;
}

/** A certificate of one process with a key of its own. */
export function issueCertificate(
  identity: PeerIdentity,
  authority: Authority,
  validity: Validity,
): KeyPair {
  const uri = identityUri(identity);
  const name = uri.slice('spiffe://'.length).slice(-64);
  return issue(name, [implicit(6, Buffer.from(uri))], authority, validity);
}

/**
 * A certificate of a server that is no process of a run, for the names and addresses that it is reached at: it proves no
 * identity, so that no process takes it for one of its own.
 */
export function issueServerCertificate(
  name: string,
  hosts: readonly string[],
  authority: Authority,
  validity: Validity,
): KeyPair {
  const names = hosts.map((host) =>
    isIP(host) === 0
      ? implicit(2, Buffer.from(host))
      : implicit(7, Buffer.from(ipaddr.parse(host).toByteArray())),
  );
  return issue(name, names, authority, validity);
}

function issue(
  name: string,
  alternativeNames: readonly Buffer[],
  authority: Authority,
  validity: Validity,
): KeyPair {
  const { publicKey, privateKey } = newKeys();
  const cert = certificate({
    subject: commonName(name),
    issuer: subjectOf(authority.cert),
    ...{ publicKey, signer: authority.key, validity },
    extensions: [
      extension('2.5.29.19', sequence(), { isCritical: true }),
      extension('2.5.29.15', bits(Buffer.from([KEY_USAGE.digitalSignature]), 7), {
        isCritical: true,
      }),
      // Processes call and are called.
      extension('2.5.29.37', sequence(oid('1.3.6.1.5.5.7.3.1'), oid('1.3.6.1.5.5.7.3.2'))),
      extension('2.5.29.17', sequence(...alternativeNames)),
      extension('2.5.29.14', octets(keyIdentifier(publicKey))),
      extension('2.5.29.35', sequence(implicit(0, keyIdentifier(authority.cert.publicKey)))),
    ],
  });
  return { cert, key: pemOf(privateKey) };
}

interface CertificateParts {
  readonly subject: Buffer;
  readonly issuer: Buffer;
  readonly publicKey: KeyObject;
  readonly signer: KeyObject;
  readonly validity: Validity;
  readonly extensions: readonly Buffer[];
}

function certificate(parts: CertificateParts): string {
  const { subject, issuer, publicKey, signer, validity, extensions } = parts;
  const serial = randomBytes(16);
  serial[0] = (serial[0]! & 0x7f) | 0x40; // positive and of one length
  const body = sequence(
    explicit(0, integer(Buffer.from([2]))), // version 3
    integer(serial),
    ECDSA_WITH_SHA256,
    issuer,
    sequence(time(validity.notBefore), time(validity.notAfter)),
    subject,
    publicKey.export({ type: 'spki', format: 'der' }),
    explicit(3, sequence(...extensions)),
  );
  const signature = sign('sha256', body, { key: signer, dsaEncoding: 'der' });
  const text = sequence(body, ECDSA_WITH_SHA256, bits(signature)).toString('base64');
  const lines = text.match(/.{1,64}/g)!.join('\n');
  return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`;
}

function newKeys(): { publicKey: KeyObject; privateKey: KeyObject } {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' });
}

function pemOf(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }) as string;
}

function commonName(text: string): Buffer {
  return sequence(set(sequence(oid('2.5.4.3'), utf8(text))));
}

/** The name of an authority of {@link createAuthority}, which has a common name alone. */
function subjectOf({ subject }: X509Certificate): Buffer {
  return commonName(subject.replace(/^CN=/, ''));
}

/** SHA-1 of the key itself, without the algorithm around it; a name, no proof. Source: RFC 5280, section 4.2.1.2. */
function keyIdentifier(publicKey: KeyObject): Buffer {
  // On P-256 the point, 65 bytes, is the end of the whole.
  const point = publicKey.export({ type: 'spki', format: 'der' }).subarray(-65);
  return createHash('sha1').update(point).digest();
}

function extension(id: string, value: Buffer, { isCritical = false } = {}): Buffer {
  return sequence(oid(id), ...(isCritical ? [yes()] : []), octets(value));
}
