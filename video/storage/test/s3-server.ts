/** A real S3 server for tests: moto's, out of PyPI, in a virtual environment in the user's cache. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { userCacheDir } from '../../../proto/user-cache.ts';

const run = promisify(execFile);

const VERSION = '5.2.5';
// Of the package's `server` extra what S3 needs.
const PACKAGES = [`moto[s3]==${VERSION}`, 'flask==3.1.3', 'flask-cors==6.0.5'];
const PROGRAM = `
import sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
server = make_server('127.0.0.1', 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
`;

export interface S3Server {
  /** `http://127.0.0.1:<port>` */
  readonly endpoint: string;
  close(): Promise<void>;
}

/** Starts it on a free port of the loopback; or says why there is none. */
export async function startS3Server(): Promise<S3Server | { skip: string }> {
  const python = await motoPython();
  if (typeof python !== 'string') return python;
  const child = spawn(python, ['-c', PROGRAM], { stdio: ['ignore', 'pipe', 'ignore'] });
  const gone = once(child, 'exit');
  const [line] = (await Promise.race([
    once(createInterface(child.stdout), 'line'),
    gone.then(() => Promise.reject(new Error('the S3 server has ended at once'))),
  ])) as [string];
  return {
    endpoint: `http://127.0.0.1:${line}`,
    async close() {
      child.kill('SIGKILL');
      await gone;
    },
  };
}

async function motoPython(): Promise<string | { skip: string }> {
  const cache = userCacheDir(process.env);
  const folder = join(cache, `moto-${VERSION}-venv`);
  const python = join('bin', 'python');
  if (await isThere(join(folder, python))) return join(folder, python);
  await mkdir(cache, { recursive: true });
  const fresh = await mkdtemp(`${folder}.`);
  try {
    await run('python3', ['-m', 'venv', fresh], { timeout: 300_000 });
    const args = ['-m', 'pip', 'install', '--quiet', ...PACKAGES];
    await run(join(fresh, python), args, { timeout: 300_000 });
    // Another test process may have been faster.
    await rename(fresh, folder).catch(() => rm(fresh, { recursive: true, force: true }));
  } catch (error) {
    await rm(fresh, { recursive: true, force: true });
    return {
      skip: `no S3 server: pip cannot install moto (${String(error).split('\n', 1).join('')})`,
    };
  }
  return join(folder, python);
}

function isThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
