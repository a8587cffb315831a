import { createPrivateKey, X509Certificate } from 'node:crypto';
import { chmod, mkdir, readdir, readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { writeFileDurably } from '../proto/durable-file.ts';
import { messageOf, UsageError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { WORKER_ID, type PeerIdentity } from '../proto/identity.ts';
import { isJoinToken, newJoinToken } from '../proto/join-token.ts';
import { RUN_PLAN_FILE } from '../proto/run-plan.ts';
import {
  CA_CERTIFICATE,
  CA_KEY,
  identityFiles,
  NATS_FILES,
  TLS_FOLDER,
  TOKEN_FILE,
  WORKERS_FOLDER,
} from '../proto/security-folder.ts';
import {
  createAuthority,
  issueCertificate,
  issueServerCertificate,
  type KeyPair,
  type Validity,
} from './certificates.ts';

export interface InitTlsOptions {
  /** The folder to make, or the folder of a run that is there, in which it is `tls`. */
  readonly tls: string;
  /** How many of worker-0, worker-1, …; when left out 16, or none where `worker` or the folder has names. */
  readonly workers?: string | undefined;
  /** Ids of further workers. */
  readonly worker?: readonly string[] | undefined;
  /** Names and addresses at which a NATS server is reached, which gets a certificate for them. */
  readonly nats?: readonly string[] | undefined;
  /** How long the certificates of processes hold. */
  readonly days: string;
  readonly say: (text: string) => void;
}

const DEFAULT_WORKERS = 16;
const MAX_WORKERS = 10_000;
const AUTHORITY_DAYS = 3650;
const DAY_MS = 86_400_000;
/** Clocks of hosts may differ by as much. */
const CLOCK_SKEW_MS = 3_600_000;
const SECRET_MODE = 0o600;

/**
 * Makes or renews the folder that the processes of a run take their credentials from: an authority and a join token,
 * which stay, and certificates, which are made anew for everybody who has one already and everybody named.
 * @throws UsageError BAD_FLAG; TLS_FOLDER_INVALID for a folder that holds half of an authority, a broken token or runs
 */
export async function initTls(options: InitTlsOptions): Promise<void> {
  const days = wholeNumber('--days', options.days, AUTHORITY_DAYS);
  const folder = (await exists(join(options.tls, RUN_PLAN_FILE)))
    ? join(options.tls, TLS_FOLDER)
    : options.tls;
  await refuseFolderOfStages(folder);
  const workersFolder = join(folder, WORKERS_FOLDER);
  const known = await workersIn(workersFolder);
  const workers = new Set([...known, ...namedWorkers(options, known.length)]);
  const natsHosts = await namedHosts(options, join(folder, NATS_FILES.cert));

  await mkdir(workersFolder, { recursive: true, mode: 0o700 });
  for (const each of [folder, workersFolder]) await chmod(each, 0o700);
  const now = Date.now();
  const authority = await openAuthority(folder, {
    notBefore: new Date(now - CLOCK_SKEW_MS),
    notAfter: new Date(now + AUTHORITY_DAYS * DAY_MS),
  });
  await keepToken(join(folder, TOKEN_FILE));

  const notAfter = new Date(Math.min(now + days * DAY_MS, Date.parse(authority.cert.validTo)));
  const validity = { notBefore: new Date(now - CLOCK_SKEW_MS), notAfter };
  const identities: PeerIdentity[] = [
    { role: 'coordinator' },
    { role: 'operator' },
    ...[...workers].map((workerId) => ({ role: 'worker', workerId }) as const),
  ];
  for (const identity of identities) {
    const { cert, key } = issueCertificate(identity, authority, validity);
    await writePair(folder, identityFiles(identity), { cert, key });
  }
  if (natsHosts.length > 0) {
    const pair = issueServerCertificate('videoloom/nats', natsHosts, authority, validity);
    await writePair(folder, NATS_FILES, pair);
  }
  options.say(
    `${folder}: authority, join token and certificates of the coordinator, an operator, ${workers.size} workers` +
      `${natsHosts.length === 0 ? '' : ` and NATS at ${natsHosts.join(', ')}`}, ` +
      `valid until ${notAfter.toISOString().slice(0, 10)}\n` +
      `Copy it with its modes (cp -p, scp -p) to each host of the run, without ${CA_KEY}: who has that can make workers.\n`,
  );
}

/** Around the runs of a recipe with stages no process looks for the folder. @throws UsageError TLS_FOLDER_INVALID */
async function refuseFolderOfStages(folder: string): Promise<void> {
  const names = (await exists(folder)) ? await readdir(folder) : [];
  for (const name of names) {
    if (!(await exists(join(folder, name, RUN_PLAN_FILE)))) continue;
    throw new UsageError(
      'TLS_FOLDER_INVALID',
      `${folder} holds runs, ${name} among them: name another folder and give that with --tls, or name the folder of one run.`,
    );
  }
}

/** The key first: a certificate without its key would be refused, a key without its certificate is replaced. */
async function writePair(
  folder: string,
  files: { readonly cert: string; readonly key: string },
  { cert, key }: KeyPair,
): Promise<void> {
  await writeFileDurably(join(folder, files.key), key, SECRET_MODE);
  await writeFileDurably(join(folder, files.cert), cert, SECRET_MODE);
}

interface Authority {
  readonly cert: X509Certificate;
  readonly key: ReturnType<typeof createPrivateKey>;
}

/** The authority of the folder; a new one where there is none. */
async function openAuthority(folder: string, validity: Validity): Promise<Authority> {
  const [certPath, keyPath] = [join(folder, CA_CERTIFICATE), join(folder, CA_KEY)];
  const [hasCert, hasKey] = [await exists(certPath), await exists(keyPath)];
  if (!hasCert) {
    // A key alone is left by an init that was interrupted: nothing was ever signed with it.
    const made = createAuthority(validity);
    await writeFileDurably(keyPath, made.key, SECRET_MODE);
    await writeFileDurably(certPath, made.cert, SECRET_MODE);
  } else if (!hasKey) {
    throw new UsageError(
      'TLS_FOLDER_INVALID',
      `${folder} has ${CA_CERTIFICATE} without ${CA_KEY}: it is a copy for a host. Renew where the folder was made ` +
        'and copy it again, or name a new folder.',
    );
  }
  let authority: Authority;
  try {
    const cert = new X509Certificate(await readFile(certPath));
    authority = { cert, key: createPrivateKey(await readFile(keyPath)) };
  } catch (error) {
    throw new UsageError(
      'TLS_FOLDER_INVALID',
      `the authority in ${folder} cannot be read: ${messageOf(error)}. Name a new folder.`,
      { cause: error },
    );
  }
  if (!authority.cert.checkPrivateKey(authority.key)) {
    throw new UsageError(
      'TLS_FOLDER_INVALID',
      `${CA_KEY} in ${folder} is not the key of ${CA_CERTIFICATE}. Name a new folder.`,
    );
  }
  return authority;
}

async function keepToken(path: string): Promise<void> {
  if (!(await exists(path))) {
    await writeFileDurably(path, `${newJoinToken()}\n`, SECRET_MODE);
  } else if (!isJoinToken((await readFile(path, 'utf8')).trim())) {
    throw new UsageError(
      'TLS_FOLDER_INVALID',
      `${path} holds no join token of 43 letters and digits: remove it to have a new one made.`,
    );
  }
  await chmod(path, SECRET_MODE);
}

function namedWorkers({ workers, worker = [] }: InitTlsOptions, numKnown: number): string[] {
  const bad = worker.find((id) => !WORKER_ID.test(id));
  if (bad !== undefined) {
    throw new UsageError(
      'BAD_FLAG',
      `--worker ${JSON.stringify(bad)} is no id of a worker: up to 100 letters, digits, ".", "_" and "-".`,
    );
  }
  const implied = worker.length > 0 || numKnown > 0 ? 0 : DEFAULT_WORKERS;
  const count = workers === undefined ? implied : wholeNumber('--workers', workers, MAX_WORKERS);
  return [...worker, ...Array.from({ length: count }, (_, number) => `worker-${number}`)];
}

const HOST_NAME = /^(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*$/;

/** The hosts that are named, else those of the certificate that is there. */
async function namedHosts({ nats }: InitTlsOptions, certificate: string): Promise<string[]> {
  if (nats === undefined) {
    if (!(await exists(certificate))) return [];
    const names = new X509Certificate(await readFile(certificate)).subjectAltName ?? '';
    return names.split(', ').map((name) => name.replace(/^(DNS|IP Address):/, ''));
  }
  const bad = nats.find((host) => isIP(host) === 0 && !HOST_NAME.test(host));
  if (bad === undefined) return [...new Set(nats)];
  throw new UsageError(
    'BAD_FLAG',
    `--nats ${JSON.stringify(bad)} is neither a host name nor an address: write it without port, as events.example or 10.0.0.7.`,
  );
}

/** Ids of the workers that have certificates. */
async function workersIn(folder: string): Promise<string[]> {
  if (!(await exists(folder))) return [];
  const files = (await readdir(folder)).filter((name) => name.endsWith('.pem'));
  return files.map((name) => name.slice(0, -'.pem'.length)).filter((id) => WORKER_ID.test(id));
}

function wholeNumber(flag: string, text: string, most: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= 1 && value <= most) return value;
  throw new UsageError(
    'BAD_FLAG',
    `${flag} is "${text}", expected a whole number from 1 to ${most}.`,
  );
}
