import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmod, mkdir, mkdtemp, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { findTensorflow, installTensorflow, TensorflowError } from './install.ts';

/** What can keep the engine from being installed: each gives one error that says how to mend it, and leaves nothing. */
const folder = await temporaryFolder('tensorflow');

/** Nothing listens there. */
const NOWHERE = 'http://127.0.0.1:9/';
/** The package's own binary cannot be had, so that it would have to be built. */
const NO_PREBUILT = { TFJS_NODE_CDN_STORAGE: NOWHERE };

test('without npm it says how to get npm', async () => {
  await refused('TENSORFLOW_NPM_MISSING', /apt-get install npm/, { PATH: await pathOf() });
});

test('without the npm registry it gives what npm said', async () => {
  const env = {
    npm_config_registry: NOWHERE,
    npm_config_cache: join(folder, 'npm-cache'),
    npm_config_fetch_retries: '0',
  };
  await refused('TENSORFLOW_NPM_FAILED', /it said: .*127\.0\.0\.1:9.*npm config get registry/, env);
});

test('without a C++ compiler it says how to get one, where it would have to build', async () => {
  const env = { ...NO_PREBUILT, PATH: await pathOf('node', 'npm', 'sh') };
  await refused(
    'TENSORFLOW_COMPILER_MISSING',
    /no C\+\+ compiler \(g\+\+\): .*apt-get install g\+\+ make.*videoloom engine install tensorflow/,
    env,
  );
});

test('without pip it says how to get pip', async () => {
  const env = { ...NO_PREBUILT, ...(await seemingCompiler('exit 1')) };
  const PATH = await pathOf('node', 'npm', 'sh');
  await refused('TENSORFLOW_PIP_MISSING', /apt-get install python3-pip/, { ...env, PATH });
});

test('without PyPI it gives what pip said', async () => {
  const env = { ...NO_PREBUILT, ...(await seemingCompiler('exit 1')) };
  const noIndex = { PIP_NO_INDEX: '1', PIP_FIND_LINKS: folder };
  await refused('TENSORFLOW_DOWNLOAD_FAILED', /pip said: ERROR: .*tensorflow/, {
    ...env,
    ...noIndex,
  });
});

test('with a compiler that fails it shows what the compiler said and keeps the whole log', async (context) => {
  try {
    execFileSync('make', ['--version'], { stdio: 'ignore' });
  } catch {
    context.skip('there is no make here');
    return;
  }
  const { CXX } = await seemingCompiler('echo "this compiler is broken" >&2; exit 1');
  const cacheDir = await refused('TENSORFLOW_BUILD_FAILED', /this compiler is broken/, {
    ...NO_PREBUILT,
    CXX,
  });
  const log = await readFile(join(cacheDir, 'install.log'), 'utf8');
  assert.match(log, /ECONNREFUSED 127\.0\.0\.1:9/, 'why it was built');
  assert.match(log, /gyp ERR! build error/);
});

test('for a GPU without a driver it asks for the driver', async (context) => {
  const devices = await readdir('/dev');
  if (devices.includes('nvidiactl')) {
    context.skip('this machine has an NVIDIA driver');
    return;
  }
  await assert.rejects(
    installTensorflow({ cacheDir: join(folder, 'gpu'), gpu: true, env: process.env }),
    isTensorflowError('TENSORFLOW_NO_GPU', /NVIDIA driver/),
  );
});

/** Gives the folder that nothing was installed in. */
async function refused(code: string, pattern: RegExp, env: NodeJS.ProcessEnv): Promise<string> {
  const cacheDir = await mkdtemp(join(folder, 'cache-'));
  await assert.rejects(
    installTensorflow({ cacheDir, env: { ...process.env, ...env } }),
    isTensorflowError(code, pattern),
  );
  assert.deepEqual(await readdir(cacheDir), ['install.log']);
  assert.equal(await findTensorflow(cacheDir), undefined);
  return cacheDir;
}

function isTensorflowError(code: string, pattern: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof TensorflowError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, pattern);
    return true;
  };
}

/** A PATH with these commands alone. */
async function pathOf(...names: string[]): Promise<string> {
  const path = await mkdtemp(join(folder, 'path-'));
  for (const name of names) {
    const at = execFileSync('sh', ['-c', 'command -v "$0"', name], { encoding: 'utf8' }).trim();
    await symlink(name === 'node' ? process.execPath : at, join(path, name));
  }
  return path;
}

/** A compiler and a make that tell their version; else they do `otherwise`. */
async function seemingCompiler(otherwise: string): Promise<{ CXX: string; MAKE: string }> {
  const bin = join(await mkdtemp(join(folder, 'compiler-')), 'bin');
  await mkdir(bin);
  const program = join(bin, 'c++');
  await writeFile(program, `#!/bin/sh\n[ "$1" = --version ] && exit 0\n${otherwise}\n`);
  await chmod(program, 0o755);
  return { CXX: program, MAKE: program };
}
