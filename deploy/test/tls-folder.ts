/** Certificates for tests, right ones and wrong ones, made as `videoloom init --tls` makes them. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { PeerIdentity } from '../../proto/identity.ts';
import { identityFiles, openSecurity } from '../../proto/security-folder.ts';
import type { Security } from '../../proto/security.ts';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { issueCertificate, type Validity } from '../certificates.ts';
import { initTls } from '../init-tls.ts';

/** A folder of `videoloom init --tls` in a temporary place. */
export interface TlsFolder {
  readonly folder: string;
  readonly token: string;
  /** What a process of the run has. */
  as(identity: PeerIdentity): Promise<Security>;
  /** A certificate of the folder's authority that holds at another time, in the place of the one there. */
  reissue(identity: PeerIdentity, validity: Validity): Promise<void>;
  read(name: string): Promise<string>;
  /** The private keys, each as the one line of its text that says most. */
  keys(): Promise<string[]>;
}

export async function makeTlsFolder(workers = 2): Promise<TlsFolder> {
  const folder = await temporaryFolder('tls');
  await initTls({ tls: folder, workers: String(workers), days: '2', say: () => undefined });
  const read = (name: string): Promise<string> => readFile(join(folder, name), 'utf8');
  return {
    folder,
    token: (await read('token')).trim(),
    read,
    async keys() {
      const names = (await readdir(folder, { recursive: true })).filter((name) =>
        name.endsWith('.key'),
      );
      return Promise.all(names.map(async (name) => (await read(name)).split('\n')[1]!));
    },
    as(identity) {
      return openSecurity({ as: identity, tls: folder, env: {} });
    },
    async reissue(identity, validity) {
      const authority = {
        cert: new X509Certificate(await read('ca.pem')),
        key: createPrivateKey(await read('ca.key')),
      };
      const { cert, key } = issueCertificate(identity, authority, validity);
      const files = identityFiles(identity);
      await writeFile(join(folder, files.cert), cert);
      await writeFile(join(folder, files.key), key);
    },
  };
}
