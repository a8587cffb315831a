/** A real S3 server for tests: moto's, out of PyPI, in a virtual environment in the user's cache. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pipVenv } from '../../../proto/test/pip-venv.ts';

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
  const venv = await pipVenv(`moto-${VERSION}`, PACKAGES);
  return 'skip' in venv ? venv : join(venv.folder, 'bin', 'python');
}
