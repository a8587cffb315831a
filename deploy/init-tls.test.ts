import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { PeerCertificate } from 'node:tls';
import { promisify } from 'node:util';
import { UsageError } from '../proto/errors.ts';
import { identityOf, type PeerIdentity } from '../proto/identity.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { temporaryFolder } from '../proto/test/temporary-folder.ts';
import { issueCertificate } from './certificates.ts';
import { initTls, type InitTlsOptions } from './init-tls.ts';

const run = promisify(execFile);
const DAY_MS = 86_400_000;

async function folderOf(name = 'tls'): Promise<string> {
  return join(await temporaryFolder('tls'), name);
}

async function init(folder: string, options: Partial<InitTlsOptions> = {}): Promise<void> {
  await initTls({ tls: folder, days: '90', say: () => undefined, ...options });
}

const read = async (folder: string, name: string): Promise<string> =>
  readFile(join(folder, name), 'utf8');
const certificateIn = async (folder: string, name: string): Promise<X509Certificate> =>
  new X509Certificate(await read(folder, name));

const open = (folder: string, as: PeerIdentity = { role: 'coordinator' }) =>
  openSecurity({ as, tls: folder, env: {} });

const code =
  (expected: string, pattern = /./) =>
  (error: unknown): boolean => {
    assert.ok(error instanceof UsageError, String(error));
    assert.equal(error.code, expected, error.message);
    assert.match(error.message, pattern);
    return true;
  };

const openssl = await run('openssl', ['version']).then(
  () => false,
  () => 'there is no openssl here',
);

test(
  'openssl takes the certificates, strictly, for both sides of a connection',
  { skip: openssl },
  async () => {
    const folder = await folderOf();
    await init(folder, { workers: '2', worker: ['gpu-a'], days: '7' });
    const names = [
      'coordinator',
      'operator',
      'workers/worker-0',
      'workers/worker-1',
      'workers/gpu-a',
    ];
    for (const purpose of ['sslclient', 'sslserver']) {
      const files = names.map((name) => join(folder, `${name}.pem`));
      const args = [
        'verify',
        '-x509_strict',
        '-purpose',
        purpose,
        '-CAfile',
        join(folder, 'ca.pem'),
      ];
      const { stdout } = await run('openssl', [...args, ...files]);
      assert.equal(stdout.match(/: OK/g)?.length, names.length);
    }
    const { stdout: text } = await run('openssl', [
      ...['x509', '-noout', '-text', '-in', join(folder, 'workers/gpu-a.pem')],
    ]);
    assert.match(text, /Subject Alternative Name: *\n +URI:spiffe:\/\/videoloom\/worker\/gpu-a\n/);
    assert.match(text, /Basic Constraints: critical\n +CA:FALSE/);
    assert.match(text, /ASN1 OID: prime256v1/);
    // Who may be a worker may not make others.
    const { cert, key } = issueCertificate(
      { role: 'coordinator' },
      {
        cert: await certificateIn(folder, 'workers/gpu-a.pem'),
        key: createPrivateKey(await read(folder, 'workers/gpu-a.key')),
      },
      { notBefore: new Date(0), notAfter: new Date(Date.now() + DAY_MS) },
    );
    assert.match(key, /PRIVATE KEY/);
    const forged = join(folder, 'forged.pem');
    await writeFile(forged, cert);
    const chain = [
      '-CAfile',
      join(folder, 'ca.pem'),
      '-untrusted',
      join(folder, 'workers/gpu-a.pem'),
    ];
    await assert.rejects(run('openssl', ['verify', ...chain, forged]), /invalid CA certificate/);
  },
);

test('nobody else may read what is made', async () => {
  const folder = await folderOf();
  await init(folder, { workers: '1' });
  assert.equal((await stat(folder)).mode & 0o777, 0o700);
  const stats = await Promise.all(
    (await readdir(folder, { recursive: true })).map((name) => stat(join(folder, name))),
  );
  const modes = stats.filter((entry) => entry.isFile()).map(({ mode }) => mode & 0o777);
  assert.deepEqual(modes, Array<number>(9).fill(0o600), 'authority, three pairs, token');
});

test('made again, authority and token stay, and everybody known gets a new certificate', async () => {
  const folder = await folderOf();
  await init(folder, { worker: ['gpu-a', 'gpu-b'], days: '1' });
  const before = await Promise.all(['ca.pem', 'ca.key', 'token'].map((name) => read(folder, name)));
  const old = await certificateIn(folder, 'workers/gpu-a.pem');
  await init(folder, { worker: ['gpu-c'], days: '30' });
  const after = await Promise.all(['ca.pem', 'ca.key', 'token'].map((name) => read(folder, name)));
  assert.deepEqual(after, before);
  const workers = (await readdir(join(folder, 'workers'))).filter((name) => name.endsWith('.pem'));
  assert.deepEqual(workers.sort(), ['gpu-a.pem', 'gpu-b.pem', 'gpu-c.pem']);
  const renewed = await certificateIn(folder, 'workers/gpu-a.pem');
  assert.notEqual(renewed.serialNumber, old.serialNumber);
  const gained = Date.parse(renewed.validTo) - Date.parse(old.validTo);
  assert.ok(Math.abs(gained - 29 * DAY_MS) < 60_000);
  const { tls, token } = await open(folder, { role: 'worker', workerId: 'gpu-b' });
  assert.ok(tls !== undefined);
  assert.equal(`${token ?? ''}\n`, before[2]);
});

test('16 workers when nobody says how many', async () => {
  const folder = await folderOf();
  await init(folder);
  assert.equal((await readdir(join(folder, 'workers'))).length, 32);
});

test('a run folder gets its own, which its programs find by themselves', async () => {
  const folder = await folderOf('run');
  await init(folder); // a first folder, into which an older version prepared a run
  await writeFile(join(folder, 'run.json'), '{}');
  await rm(join(folder, 'token'));
  await init(folder, { workers: '1' });
  const own = await openSecurity({ as: { role: 'operator' }, env: {}, runFolder: folder });
  assert.equal(own.tls?.ca, await read(folder, 'tls/ca.pem'));
  const variable = { VIDEOLOOM_TLS_DIR: folder };
  const named = await openSecurity({ as: { role: 'operator' }, env: variable });
  assert.equal(named.token, own.token);
});

test('the folder of a recipe with stages is refused, whose runs would not look for it there', async () => {
  const folder = await folderOf('recipe');
  await mkdir(join(folder, 'alignment'), { recursive: true });
  await writeFile(join(folder, 'alignment', 'run.json'), '{}');
  await assert.rejects(init(folder), code('TLS_FOLDER_INVALID', /holds runs, alignment among/));
  assert.deepEqual(await readdir(folder), ['alignment']);
});

test('a copy for a host makes no certificates, and a mixed folder none either', async () => {
  const [folder, other] = [await folderOf(), await folderOf()];
  await init(folder, { workers: '1' });
  await init(other, { workers: '1' });
  await writeFile(join(folder, 'ca.key'), await read(other, 'ca.key'));
  await assert.rejects(init(folder), code('TLS_FOLDER_INVALID', /is not the key of ca\.pem/));
  await rm(join(folder, 'ca.key'));
  await assert.rejects(init(folder), code('TLS_FOLDER_INVALID', /copy for a host/));
  await writeFile(join(other, 'token'), 'tooshort');
  await assert.rejects(init(other), code('TLS_FOLDER_INVALID', /remove it to have a new one made/));
});

test('ids that would be paths, and numbers that are none, are refused', async () => {
  const folder = await folderOf();
  for (const id of ['../../etc/passwd', '', '.hidden', 'a/b', 'a b', 'x'.repeat(101)])
    await assert.rejects(init(folder, { worker: [id] }), code('BAD_FLAG', /no id of a worker/));
  for (const workers of ['0', '-1', '1e3', '10001', ''])
    await assert.rejects(init(folder, { workers }), code('BAD_FLAG', /--workers/));
  await assert.rejects(init(folder, { days: '0' }), code('BAD_FLAG', /--days/));
  await assert.rejects(stat(folder), { code: 'ENOENT' });
});

test('a NATS server gets a certificate for its names, which proves nobody and is renewed', async () => {
  const folder = await folderOf();
  const hosts = ['events.example', '10.0.0.7', '2001:db8::1'];
  for (const wrong of ['events.example:4222', 'nats://a', '-a', 'a b', '', '*'])
    await assert.rejects(init(folder, { nats: [wrong] }), code('BAD_FLAG', /--nats/));
  await assert.rejects(stat(folder), { code: 'ENOENT' });
  await init(folder, { workers: '1', nats: hosts });
  const made = await certificateIn(folder, 'nats.pem');
  assert.equal(made.checkHost('events.example'), 'events.example');
  for (const address of hosts.slice(1)) assert.equal(made.checkIP(address), address);
  assert.equal(made.checkHost('localhost'), undefined);
  const { subjectAltName: subjectaltname } = made;
  assert.equal(identityOf({ subjectaltname } as PeerCertificate), undefined);
  await init(folder);
  const renewed = await certificateIn(folder, 'nats.pem');
  assert.equal(renewed.subjectAltName, subjectaltname);
  assert.notEqual(renewed.serialNumber, made.serialNumber);
  assert.ok(renewed.verify((await certificateIn(folder, 'ca.pem')).publicKey));
});

test('what cannot be right is refused before a process starts, with the mend', async () => {
  const [folder, other] = [await folderOf(), await folderOf()];
  await init(folder, { workers: '1' });
  await init(other, { workers: '1' });

  const unknown = open(folder, { role: 'worker', workerId: 'worker-7' });
  await assert.rejects(unknown, code('TLS_FOLDER_INVALID', /--worker worker-7/));
  await assert.rejects(open(join(folder, 'none')), code('TLS_FOLDER_INVALID', /has no token/));

  await chmod(join(folder, 'token'), 0o640);
  await assert.rejects(open(folder), code('SECRET_EXPOSED', /chmod 600 .*token/));
  await chmod(join(folder, 'token'), 0o600);

  await writeFile(join(folder, 'coordinator.pem'), await read(other, 'coordinator.pem'));
  await assert.rejects(open(folder), code('TLS_FOLDER_INVALID', /is not from its ca\.pem/));

  const authority = {
    cert: await certificateIn(folder, 'ca.pem'),
    key: createPrivateKey(await read(folder, 'ca.key')),
  };
  const past = {
    notBefore: new Date(Date.now() - DAY_MS),
    notAfter: new Date(Date.now() - 60_000),
  };
  const expired = issueCertificate({ role: 'coordinator' }, authority, past);
  await writeFile(join(folder, 'coordinator.pem'), expired.cert);
  await writeFile(join(folder, 'coordinator.key'), expired.key);
  await assert.rejects(open(folder), code('CERTIFICATE_EXPIRED', /videoloom init --tls/));
  await init(folder);
  await open(folder);

  // Another one's key is no key for a certificate.
  await writeFile(join(folder, 'coordinator.key'), await read(folder, 'operator.key'));
  await assert.rejects(open(folder), code('TLS_FOLDER_INVALID', /is not the key/));
});
