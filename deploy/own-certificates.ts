import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exists } from '../proto/exists.ts';
import type { PeerIdentity } from '../proto/identity.ts';
import {
  CA_KEY,
  identityFiles,
  TLS_DIR_VARIABLE,
  TLS_FOLDER,
  TOKEN_FILE,
} from '../proto/security-folder.ts';
import type { Prepared } from './cluster.ts';
import type { LauncherOptions } from './launcher.ts';
import { leaderOf } from './leader.ts';

/**
 * A run on several machines gets certificates of its own where nobody names others: made at its first start, and again
 * where some are missing or soon too old, with the same authority and token.
 * @throws UsageError of `initTls`
 */
export async function makeCertificates(
  { folder, workers }: Pick<Prepared, 'folder' | 'workers'>,
  {
    hosts = [],
    startsNoWorkers = false,
    tls,
    insecure = false,
    env,
  }: Pick<LauncherOptions, 'hosts' | 'startsNoWorkers' | 'tls' | 'insecure' | 'env'>,
  nowMs = Date.now(),
): Promise<void> {
  if (tls !== undefined || (env[TLS_DIR_VARIABLE] ?? '') !== '' || insecure) return;
  const own = join(folder, TLS_FOLDER);
  const isThere = await exists(join(own, TOKEN_FILE));
  if (!isThere && hosts.length === 0 && !startsNoWorkers) return;
  // The lock will say so; whoever it trains with reads the folder.
  if ((await leaderOf(folder))?.isAlive === true) return;
  // Somebody has put a copy there that makes none.
  if (isThere && !(await exists(join(own, CA_KEY)))) return;
  const identities: PeerIdentity[] = [
    ...([{ role: 'coordinator' }, { role: 'operator' }] as const),
    ...Array.from({ length: workers }, (_, i) => ({
      role: 'worker' as const,
      workerId: `worker-${i}`,
    })),
  ];
  const lasting = identities.map((identity) =>
    isFresh(join(own, identityFiles(identity).cert), nowMs),
  );
  if ((await Promise.all(lasting)).every(Boolean)) return;
  const { initTls } = await import('./init-tls.ts');
  await initTls({ tls: folder, workers: String(workers), days: '90', say: () => undefined });
}

/**
 * Whether a certificate is there with more than a third of its life left. Processes read it when they start: a run that is
 * started now may train for weeks.
 */
async function isFresh(file: string, nowMs: number): Promise<boolean> {
  const text = await readFile(file, 'utf8').catch(() => undefined);
  if (text === undefined) return false;
  const { validFrom, validTo } = new X509Certificate(text);
  const endMs = Date.parse(validTo);
  return endMs - nowMs > (endMs - Date.parse(validFrom)) / 3;
}
