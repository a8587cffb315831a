/**
 * The folder that `videoloom init --tls` makes and every process of a run reads its credentials from. A host needs the
 * authority's certificate, the token, and certificate and key of the processes that run on it, never the authority's key.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf, UsageError } from './errors.ts';
import { exists } from './exists.ts';
import { nameOfIdentity, type PeerIdentity } from './identity.ts';
import { isJoinToken } from './join-token.ts';
import type { Security, TlsCredentials } from './security.ts';

/** Where the folder is looked for when nobody names one. */
export const TLS_DIR_VARIABLE = 'VIDEOLOOM_TLS_DIR';
/** The folder's name inside a run folder. */
export const TLS_FOLDER = 'tls';

export const CA_CERTIFICATE = 'ca.pem';
export const CA_KEY = 'ca.key';
export const TOKEN_FILE = 'token';
/** Of the certificates of workers, one pair of files each. */
export const WORKERS_FOLDER = 'workers';

/** Of a NATS server that takes the events of runs. */
export const NATS_FILES = { cert: 'nats.pem', key: 'nats.key' } as const;

/** Whether a file may be one of this folder, wherever it lies: it goes nowhere with the files of a run. */
export function mayBeSecret(path: string): boolean {
  return /(^|\/)tls\/|\.(key|pem)$|(^|\/)token$/.test(path);
}

/**
 * Refuses a run folder that is such a folder itself, as one becomes that did not hold its run yet: its secrets would lie
 * among the files of the run, and no process would look for them there.
 * @throws UsageError SECRETS_IN_RUN_FOLDER
 */
export async function refuseSecretsIn(runFolder: string): Promise<void> {
  for (const name of [CA_KEY, TOKEN_FILE]) {
    if (!(await exists(join(runFolder, name)))) continue;
    throw new UsageError(
      'SECRETS_IN_RUN_FOLDER',
      `${runFolder} holds ${name} of \`videoloom init --tls\`, which must not lie among the files of a run: move what it ` +
        `made (*.pem, *.key, ${TOKEN_FILE}, ${WORKERS_FOLDER}/) to a folder of its own and give that with --tls; a run ` +
        `finds it by itself in ${TLS_FOLDER}/ of its own folder, which is one for each stage.`,
    );
  }
}

/** Where certificate and key of a process are, relative to the folder. */
export function identityFiles(identity: PeerIdentity): { cert: string; key: string } {
  const name = identity.role === 'worker' ? join(WORKERS_FOLDER, identity.workerId) : identity.role;
  return { cert: `${name}.pem`, key: `${name}.key` };
}

export interface SecurityOptions {
  /** Whose credentials are read. */
  readonly as: PeerIdentity;
  /** `--tls`: the folder, or the run folder it is in. */
  readonly tls?: string | undefined;
  /** `--insecure` */
  readonly insecure?: boolean | undefined;
  /** Where the folder is named or found when `tls` is not given: in the environment, then in the run folder. */
  readonly env: NodeJS.ProcessEnv;
  readonly runFolder?: string | undefined;
}

/**
 * The security of a process as its flags, its environment and its run folder have it.
 * @throws UsageError TLS_FOLDER_INVALID, SECRET_EXPOSED, CERTIFICATE_EXPIRED, each with the mend
 */
export async function openSecurity(options: SecurityOptions): Promise<Security> {
  const { as, insecure = false } = options;
  const folder = await findFolder(options);
  if (folder === undefined) return { tls: undefined, token: undefined, insecure };
  const token = (await readSecret(join(folder, TOKEN_FILE), folder)).trim();
  if (!isJoinToken(token)) {
    throw invalid(folder, `${TOKEN_FILE} holds no join token of 43 letters and digits.`);
  }
  if (insecure) return { tls: undefined, token, insecure };
  const files = identityFiles(as);
  const cert = await readText(join(folder, files.cert), folder, as);
  const key = await readSecret(join(folder, files.key), folder, as);
  const ca = await readText(join(folder, CA_CERTIFICATE), folder);
  checkCertificate({ ca, cert, key }, folder, as);
  return { tls: { ca, cert, key }, token, insecure };
}

/** When the certificate of a process runs out; undefined for one without. Connections are refused from then on. */
export function endOfCertificate({ tls }: Security): Date | undefined {
  return tls && new Date(new X509Certificate(tls.cert).validTo);
}

async function findFolder({ tls, env, runFolder }: SecurityOptions): Promise<string | undefined> {
  const variable = env[TLS_DIR_VARIABLE];
  const named = tls ?? (variable === '' ? undefined : variable);
  if (named === undefined) {
    const own = runFolder === undefined ? undefined : join(runFolder, TLS_FOLDER);
    return own !== undefined && (await exists(join(own, TOKEN_FILE))) ? own : undefined;
  }
  for (const folder of [named, join(named, TLS_FOLDER)])
    if (await exists(join(folder, TOKEN_FILE))) return folder;
  throw invalid(named, `it has no ${TOKEN_FILE}.`);
}

function checkCertificate(tls: TlsCredentials, folder: string, as: PeerIdentity): void {
  let certificate: X509Certificate;
  let [isOfAuthority, hasItsKey] = [false, false];
  try {
    certificate = new X509Certificate(tls.cert);
    const authority = new X509Certificate(tls.ca);
    isOfAuthority = certificate.checkIssued(authority) && certificate.verify(authority.publicKey);
    hasItsKey = certificate.checkPrivateKey(createPrivateKey(tls.key));
  } catch (error) {
    throw invalid(folder, `a certificate or key cannot be read (${messageOf(error)}).`);
  }
  if (!isOfAuthority)
    throw invalid(
      folder,
      `the certificate of ${nameOfIdentity(as)} is not from its ${CA_CERTIFICATE}.`,
    );
  if (!hasItsKey) {
    const { cert, key } = identityFiles(as);
    throw invalid(folder, `${key} is not the key of ${cert}.`);
  }
  if (Date.parse(certificate.validTo) <= Date.now()) {
    throw new UsageError(
      'CERTIFICATE_EXPIRED',
      `the certificate of ${nameOfIdentity(as)} in ${folder} was valid until ${certificate.validTo}: ` +
        `renew all with \`videoloom init --tls ${folder}\` where ${CA_KEY} is, and start the processes again.`,
    );
  }
}

async function readText(path: string, folder: string, as?: PeerIdentity): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    const make =
      as?.role === 'worker'
        ? ` Make them with \`videoloom init --tls ${folder} --worker ${as.workerId}\`.`
        : '';
    throw invalid(folder, `${messageOf(error)}.${make}`);
  }
}

async function readSecret(path: string, folder: string, as?: PeerIdentity): Promise<string> {
  const text = await readText(path, folder, as);
  await checkSecretMode(path);
  return text;
}

/**
 * As Postgres has it: a secret is the owner's alone, or root's and readable by one group, as mounted secrets are.
 * @throws UsageError SECRET_EXPOSED
 */
export async function checkSecretMode(path: string): Promise<void> {
  const { mode, uid } = await stat(path);
  const forbidden = uid === 0 && process.getuid?.() !== 0 ? 0o037 : 0o077;
  if ((mode & forbidden) === 0) return;
  throw new UsageError(
    'SECRET_EXPOSED',
    `${path} can be read or written by others (mode ${(mode & 0o777).toString(8)}): run \`chmod 600 ${path}\`, ` +
      'and make a new one if others may have seen it.',
  );
}

function invalid(folder: string, what: string): UsageError {
  return new UsageError(
    'TLS_FOLDER_INVALID',
    `${folder} is no complete folder of certificates: ${what} ` +
      'Folders are made by `videoloom init --tls DIR`, and copied with their modes (cp -p, scp -p).',
  );
}
