import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { PjrtError } from './c-api.ts';
import { openPjrtClient } from './client.ts';
import { diagnosePlugin, libraryProblem } from './doctor.ts';
import { findDriver } from './driver.ts';
import {
  ensurePlugin,
  findPlugin,
  installLibraries,
  type InstallOptions,
  listPlugins,
  PluginError,
  pluginCacheDir,
  type PluginBuild,
  type PluginSpec,
} from './plugin.ts';
import { cpuPlugin } from './test/client.ts';
import { extractFromZip } from './zip.ts';

const platform = `${process.platform}-${process.arch}`;
const library = Buffer.from('a library, of many bytes that repeat. '.repeat(5000));

// A wheel in a folder that pip is told to use instead of PyPI: the same pip, the same path, without the network.
const WRITE_WHEEL = `
import sys, zipfile
wheel, library = sys.argv[1], sys.stdin.buffer.read()
with zipfile.ZipFile(wheel, 'w', zipfile.ZIP_DEFLATED) as z:
    z.writestr('tiny_plugin/lib.so', library)
    z.writestr('tiny_plugin/stored.txt', b'stored', zipfile.ZIP_STORED)
    z.writestr('tiny_plugin-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: tiny-plugin\\nVersion: 1.0\\n')
    z.writestr('tiny_plugin-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    z.writestr('tiny_plugin-1.0.dist-info/RECORD', '')
`;

const folder = await temporaryFolder('plugin');
let wheel: string;
let build: PluginBuild;
const environment = { ...process.env };

before(async () => {
  wheel = join(folder, 'tiny_plugin-1.0-py3-none-any.whl');
  execFileSync('python3', ['-c', WRITE_WHEEL, wheel], { input: library });
  build = {
    package: 'tiny-plugin',
    version: '1.0',
    wheelSha256: sha256(await readFile(wheel)),
    libraryPathInWheel: 'tiny_plugin/lib.so',
    librarySha256: sha256(library),
  };
  process.env['PIP_NO_INDEX'] = '1';
  process.env['PIP_FIND_LINKS'] = folder;
});
after(() => {
  for (const name of ['PIP_NO_INDEX', 'PIP_FIND_LINKS']) {
    if (environment[name] === undefined) Reflect.deleteProperty(process.env, name);
    else process.env[name] = environment[name];
  }
});

test('a plugin is fetched with pip, checked, and found from then on', async () => {
  const options = await installOptions({});
  const phases: string[] = [];
  assert.equal(await findPlugin(options), undefined);
  const path = await ensurePlugin({ ...options, onProgress: ({ phase }) => phases.push(phase) });
  assert.deepEqual(await readFile(path), library);
  assert.deepEqual(phases, ['downloading', 'extracting', 'installed']);
  assert.equal(await findPlugin(options), path);
  assert.equal(await ensurePlugin({ ...options, pythons: ['/no/such/python'] }), path);
  assert.deepEqual(
    (await listPlugins(options)).map(({ name, path: at }) => [name, at]),
    [['tiny', path]],
  );
});

test('several installations at once all end with the whole library and nothing beside it', async () => {
  const options = await installOptions({});
  const paths = await Promise.all([1, 2, 3].map(() => ensurePlugin(options)));
  assert.equal(new Set(paths).size, 1);
  assert.deepEqual(await readFile(paths[0]!), library);
  assert.deepEqual((await readdir(options.cacheDir)).length, 1);
  assert.deepEqual(await readdir(dirname(paths[0]!)), ['lib.so']);
});

test('a wheel with another hash is refused and leaves nothing', async () => {
  const options = await installOptions({ wheelSha256: '0'.repeat(64) });
  await assert.rejects(ensurePlugin(options), isPluginError('PLUGIN_HASH_MISMATCH', /000000/));
  assert.deepEqual(await readdir(options.cacheDir), []);
});

test('a library with another hash is refused and leaves nothing', async () => {
  const options = await installOptions({ librarySha256: 'f'.repeat(64) });
  await assert.rejects(ensurePlugin(options), isPluginError('PLUGIN_HASH_MISMATCH', /ffffff/));
  assert.deepEqual(await readdir(options.cacheDir), []);
});

test('a wheel without the library is refused and leaves nothing', async () => {
  const options = await installOptions({ libraryPathInWheel: 'tiny_plugin/other.so' });
  await assert.rejects(
    ensurePlugin(options),
    isPluginError('PLUGIN_DOWNLOAD_FAILED', /has no file tiny_plugin\/other\.so/),
  );
  assert.deepEqual(await readdir(options.cacheDir), []);
});

test('a package that pip cannot get gives what pip said', async () => {
  const options = await installOptions({ version: '2.0' });
  await assert.rejects(
    ensurePlugin(options),
    isPluginError('PLUGIN_DOWNLOAD_FAILED', /pip said: ERROR: .*tiny-plugin==2\.0/),
  );
  assert.deepEqual(await readdir(options.cacheDir), []);
});

test('an installation that is aborted ends and leaves nothing', async () => {
  const options = await installOptions({});
  const abort = new AbortController();
  const installation = ensurePlugin({
    ...options,
    signal: abort.signal,
    onProgress: () => {
      abort.abort();
    },
  });
  await assert.rejects(installation, isPluginError('PLUGIN_DOWNLOAD_FAILED', /aborted/));
  assert.deepEqual(await readdir(options.cacheDir), []);
});

test('without pip the message says how to get it', async () => {
  const options = await installOptions({});
  await assert.rejects(
    ensurePlugin({ ...options, pythons: ['/no/such/python'] }),
    isPluginError('PLUGIN_PIP_MISSING', /apt-get install python3-pip.*PJRT_PLUGIN_PATH/),
  );
});

test('an unknown plugin, and one without a build for this machine, are named', async () => {
  const options = await installOptions({});
  await assert.rejects(
    ensurePlugin({ ...options, name: 'abacus' }),
    isPluginError('PLUGIN_UNKNOWN', /no plugin named abacus.*tiny/),
  );
  const specs: PluginSpec[] = [{ name: 'tiny', builds: { 'plan9-mips': build } }];
  await assert.rejects(
    ensurePlugin({ ...options, specs }),
    isPluginError('PLUGIN_PLATFORM_UNSUPPORTED', /only for plan9-mips/),
  );
});

test('a plugin named by path wins over the installed one, and must exist', async () => {
  const options = await installOptions({});
  assert.equal(await ensurePlugin({ ...options, pluginPath: wheel }), wheel);
  await assert.rejects(
    ensurePlugin({ ...options, pluginPath: '/no/such/plugin.so' }),
    isPluginError('PLUGIN_NOT_FOUND', /PJRT_PLUGIN_PATH names \/no\/such\/plugin\.so/),
  );
});

test('where a path is asked for, the name of another plugin will do', async () => {
  const { specs: [tiny] = [], ...options } = await installOptions({});
  const specs = [{ ...tiny!, name: 'other' }, tiny!];
  const named = { ...options, specs, name: 'other', pluginPath: tiny!.name };
  const path = await ensurePlugin(named);
  assert.equal(await findPlugin(named), path);
  assert.deepEqual(await readFile(path), library);
});

test('the cache is the one of the user', () => {
  assert.equal(pluginCacheDir({ XDG_CACHE_HOME: '/tmp/cache' }), '/tmp/cache/videoloom/pjrt');
  assert.match(pluginCacheDir({}), /\.cache\/videoloom\/pjrt$/);
});

test('stored and deflated files come out of an archive whole, and damage is reported', async () => {
  const out = join(folder, 'out');
  assert.equal(await extractFromZip(wheel, 'tiny_plugin/lib.so', out), build.librarySha256);
  assert.deepEqual(await readFile(out), library);
  await extractFromZip(wheel, 'tiny_plugin/stored.txt', out);
  assert.equal(await readFile(out, 'utf8'), 'stored');
  const cut = join(folder, 'cut.zip');
  await writeFile(cut, (await readFile(wheel)).subarray(0, 200));
  await assert.rejects(extractFromZip(cut, 'tiny_plugin/lib.so', out), /not a zip archive/);
});

test('a file that is no plugin gives one error with its path and what to do', async () => {
  const text = join(folder, 'plugin.so');
  await writeFile(text, 'This is not a library.\n');
  // A library that this process runs on, such as libm.
  const { sharedObjects } = process.report.getReport() as unknown as { sharedObjects: string[] };
  const other = sharedObjects.find((object) => /\/lib(m|System)\b/.test(object))!;
  for (const [path, why] of [
    ['/no/such/plugin.so', /no such file/],
    [folder, /no such file/],
    [text, /could not be loaded as a shared library/],
    [other, /without the function GetPjrtApi/],
  ] as const) {
    await assert.rejects(openPjrtClient({ pluginPath: path }), (error: unknown) => {
      assert.ok(error instanceof PjrtError);
      assert.equal(error.code, 'PJRT_PLUGIN_INVALID');
      assert.ok(error.message.includes(path), error.message);
      assert.match(error.message, why);
      assert.match(error.message, /PJRT_PLUGIN_PATH/);
      return true;
    });
  }
});

const hasCompiler = spawnSync('cc', ['--version']).status === 0;
test(
  'a plugin of another version of the API is refused with its version',
  { skip: hasCompiler ? false : 'needs a C compiler' },
  async () => {
    for (const [major, minor, why] of [
      [1, 0, /PJRT 1\.0, and 0\.x is needed/],
      [0, 3, /PJRT 0\.3, is too old: it lacks PJRT_/],
    ] as const) {
      const path = join(folder, `old-${major}-${minor}.so`);
      const table = `struct { unsigned long size, extensions, size2, extensions2; int major, minor; } t =
        { 40, 0, 24, 0, ${major}, ${minor} };
        void *GetPjrtApi(void) { return &t; }`;
      execFileSync('cc', ['-shared', '-fPIC', '-x', 'c', '-', '-o', path], { input: table });
      await assert.rejects(openPjrtClient({ pluginPath: path }), why);
      const { problem } = await diagnosePlugin({ name: 'cpu', pluginPath: path, cacheDir: folder });
      assert.match(problem!, why);
    }
    // What was refused does not stand in the way of another.
    (await openPjrtClient({ pluginPath: await cpuPlugin() })).close();
  },
);

test('the doctor finds the CPU plugin sound', async () => {
  const pluginPath = await cpuPlugin();
  const diagnosis = await diagnosePlugin({ name: 'cpu', pluginPath, cacheDir: folder });
  assert.equal(diagnosis.problem, undefined);
  assert.equal(diagnosis.computes, true);
  assert.match(diagnosis.platform!, /^cpu/);
  assert.equal(diagnosis.devices!.length, 2);
  assert.equal(diagnosis.devicesReduced, 2);
});

for (const name of ['cuda12', 'cuda13', 'rocm7']) {
  const cacheDir = pluginCacheDir(process.env);
  const vendor = name === 'rocm7' ? 'amd' : 'nvidia';
  const skip =
    (await findDriver(vendor)) === undefined
      ? `there is no driver of ${vendor}`
      : (await findPlugin({ name, cacheDir })) === undefined
        ? `${name} is not installed`
        : false;
  test(`the doctor finds the ${name} plugin sound`, { skip }, async () => {
    const diagnosis = await diagnosePlugin({ name, cacheDir });
    assert.equal(diagnosis.problem, undefined);
    assert.equal(diagnosis.computes, true);
    assert.equal(diagnosis.devicesReduced, diagnosis.devices!.length);
  });
}

test('the doctor says what is wrong with the driver before anything else', async () => {
  const options = await installOptions({});
  const driver = { vendor: 'nvidia', cuda: 13, minimumVersion: '580' } as const;
  const needs = { hardware: 'a GPU', driver, libraries: [] };
  const specs = options.specs!.map((spec) => ({ ...spec, needs }));
  const missing = { ...options, specs, root: options.cacheDir };
  const problem = /^There is no NVIDIA driver: install version 580 or later/;
  assert.match((await diagnosePlugin(missing)).problem!, problem);
  await ensurePlugin(missing);
  const diagnosis = await diagnosePlugin(missing);
  assert.match(diagnosis.problem!, problem);
  assert.equal(diagnosis.driver, 'no driver of NVIDIA');
});

test('a library that a plugin misses is named with the command that brings it', () => {
  const said =
    'PJRT_Client_Create: libcudnn.so.9: cannot open shared object file: No such file or directory';
  assert.match(
    libraryProblem(said, 'cuda12')!,
    /does not find libcudnn\.so\.9: run `videoloom engine install cuda12 --with-libraries`/,
  );
  assert.match(libraryProblem('Unable to load cuDNN. Is it installed?', 'cuda13')!, /cuDNN/);
  assert.equal(libraryProblem('INTERNAL: no such device', 'cuda13'), undefined);
});

test('the libraries of a vendor are put beside the plugins, where their rpath leads', async () => {
  const options = await installOptions({});
  const driver = { vendor: 'amd' } as const;
  const withLibraries = (libraries: string[]): InstallOptions => ({
    ...options,
    specs: options.specs!.map((spec) => ({ ...spec, needs: { hardware: '', driver, libraries } })),
  });
  await installLibraries(withLibraries(['tiny-plugin>=1.0,<2']));
  assert.deepEqual(await readFile(join(options.cacheDir, 'tiny_plugin/lib.so')), library);
  await assert.rejects(
    installLibraries(withLibraries(['tiny-plugin>=2'])),
    isPluginError('PLUGIN_DOWNLOAD_FAILED', /tiny-plugin>=2 could not be fetched.*LD_LIBRARY_PATH/),
  );
});

test('the doctor names what is missing, damaged, no plugin, or fatal', async () => {
  const options = await installOptions({});
  const missing = await diagnosePlugin(options);
  assert.match(missing.problem!, /not installed: run `videoloom engine install tiny`/);

  const path = await ensurePlugin(options);
  const noPlugin = await diagnosePlugin(options);
  assert.equal(noPlugin.isGenuine, true);
  assert.match(noPlugin.problem!, /not a usable PJRT plugin/);

  await writeFile(path, 'damaged');
  const damaged = await diagnosePlugin(options);
  assert.equal(damaged.isGenuine, false);
  assert.match(damaged.problem!, /is damaged: delete it/);

  if (!hasCompiler) return;
  const fatal = join(folder, 'fatal.so');
  const crash = '#include <stdlib.h>\nvoid *GetPjrtApi(void) { abort(); }';
  execFileSync('cc', ['-shared', '-fPIC', '-x', 'c', '-', '-o', fatal], { input: crash });
  const crashed = await diagnosePlugin({ ...options, pluginPath: fatal });
  assert.match(crashed.problem!, /ended its process \(SIGABRT\)/);
});

async function installOptions(wrong: Partial<PluginBuild>): Promise<InstallOptions> {
  const cacheDir = await temporaryFolder('cache');
  const specs = [{ name: 'tiny', builds: { [platform]: { ...build, ...wrong } } }];
  return { name: 'tiny', cacheDir, specs };
}

function isPluginError(code: string, message: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof PluginError);
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  };
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
