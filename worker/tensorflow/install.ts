import { createWriteStream } from 'node:fs';
import { access, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { finished } from 'node:stream/promises';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { runCommand, type CommandResult } from '../child-command.ts';
import { openInstallFolder } from '../install-folder.ts';
import { pluginCacheDir } from '../pjrt/plugin.ts';
import { extractFromZip } from '../pjrt/zip.ts';
import { downloadWheel, wheelUnavailable, type WheelOptions } from '../wheel.ts';
import { STAND_IN, standInSource } from './stand-in.ts';
import { PACKAGES, WHEEL_FILES, type TensorflowPackage } from './packages.ts';

/** What keeps the `tensorflow` engine from being installed or loaded, with what to do about it. */
export class TensorflowError extends VideoloomError {}

/** tfjs-node in the per-user cache, with a native binding that has been seen to load. */
export interface TensorflowInstallation {
  /** `@tensorflow/tfjs-node` or `@tensorflow/tfjs-node-gpu`. */
  readonly npmPackage: string;
  /** The npm package's folder. */
  readonly folder: string;
  /** The native binding, a path. */
  readonly binding: string;
  /** Whether the binding is the package's own binary or was built on this machine. */
  readonly origin: 'prebuilt' | 'built';
  /** Version of TensorFlow's library. */
  readonly tensorflowVersion: string;
}

export interface TensorflowInstallOptions {
  /** Where the engine is kept, e.g. `~/.cache/videoloom/tensorflow`. */
  readonly cacheDir: string;
  /** For a machine with an NVIDIA GPU, rather than for the processor alone. */
  readonly gpu?: boolean;
  /** Of npm, pip and the compiler. */
  readonly env: NodeJS.ProcessEnv;
  readonly onProgress?: (detail: string) => void;
}

/**
 * Puts tfjs-node into the cache, unless it is there: with the package's own binary where that can be downloaded, else
 * with one that is built from the package's sources against the library in TensorFlow's wheel. An installation is
 * complete or absent.
 *
 * @throws TensorflowError `TENSORFLOW_NPM_MISSING`, `TENSORFLOW_NPM_FAILED`, `TENSORFLOW_PLATFORM_UNSUPPORTED`,
 *   `TENSORFLOW_COMPILER_MISSING`, `TENSORFLOW_PIP_MISSING`, `TENSORFLOW_DOWNLOAD_FAILED`, `TENSORFLOW_HASH_MISMATCH`,
 *   `TENSORFLOW_BUILD_FAILED`, `TENSORFLOW_TIMED_OUT`, `TENSORFLOW_NO_GPU`
 */
export async function installTensorflow(
  options: TensorflowInstallOptions,
): Promise<TensorflowInstallation> {
  const wanted = PACKAGES[options.gpu === true ? 'gpu' : 'cpu'];
  const installed = await readInstallation(options.cacheDir, wanted);
  if (installed !== undefined) return installed;
  if (options.gpu === true) await checkDriver();

  await mkdir(options.cacheDir, { recursive: true });
  const work = await openInstallFolder(options.cacheDir, INSTALL_TIMEOUT_MS);
  const installer = openInstaller(work, options);
  try {
    const folder = join(work, 'node_modules', wanted.npmPackage);
    await installPackage(wanted, installer);
    const made =
      (await takePrebuilt(folder, installer)) ?? (await buildBinding(wanted, folder, installer));
    const description: TensorflowDescription = { ...made, npmPackage: wanted.npmPackage };
    await writeFile(join(work, DESCRIPTION_FILE), JSON.stringify(description));
    await installer.close();

    // The rename makes the installation appear whole; where another process was first, its own stays.
    await rename(work, installationFolder(options.cacheDir, wanted)).catch((error: unknown) => {
      if (!['ENOTEMPTY', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? ''))
        throw error;
    });
    return (await readInstallation(options.cacheDir, wanted))!;
  } catch (error) {
    await installer.close();
    await rename(join(work, LOG_FILE), installer.logFile).catch(() => undefined);
    if (!installer.signal.aborted) throw error;
    throw new TensorflowError(
      'TENSORFLOW_TIMED_OUT',
      `installing ${wanted.npmPackage} took more than ${INSTALL_TIMEOUT_MS / 60_000} minutes and was stopped; the log ` +
        `is in ${installer.logFile}. Check the network, then try again.`,
      { cause: error, retryable: true },
    );
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** The installed engine, the one for a GPU first; undefined where there is none. */
export async function findTensorflow(
  cacheDir: string,
): Promise<TensorflowInstallation | undefined> {
  return (
    (await readInstallation(cacheDir, PACKAGES.gpu)) ??
    (await readInstallation(cacheDir, PACKAGES.cpu))
  );
}

/** What `videoloom engine list` shows: the two packages and where they are installed. */
export async function listTensorflow(
  cacheDir: string,
): Promise<{ npmPackage: string; version: string; path: string | undefined }[]> {
  return Promise.all(
    Object.values(PACKAGES).map(async (known) => {
      const path = (await readInstallation(cacheDir, known))?.folder;
      return { npmPackage: known.npmPackage, version: known.version, path };
    }),
  );
}

/** The per-user folder for the engine, in `XDG_CACHE_HOME` or `~/.cache`. */
export function tensorflowCacheDir(env: NodeJS.ProcessEnv): string {
  return join(dirname(pluginCacheDir(env)), 'tensorflow');
}

/** That the engine has to be installed first, with how. */
export function notInstalled(): TensorflowError {
  return new TensorflowError(
    'TENSORFLOW_NOT_INSTALLED',
    'the tensorflow engine is not installed: run `videoloom engine install tensorflow`, or choose engine.name=xla.',
  );
}

// --- Stages of an installation

/** The npm package with its own dependencies and without its install script. */
async function installPackage(
  { npmPackage, version, integrity }: TensorflowPackage,
  { work, run, report }: Installer,
): Promise<void> {
  report(`npm install ${npmPackage} ${version}`);
  // Its kernels are to register with the tfjs of this process: a stand-in takes the place of a second one.
  const standIn = join(work, STAND_IN);
  await mkdir(standIn);
  await writeFile(join(standIn, 'package.json'), JSON.stringify({ name: STAND_IN, version }));
  await writeFile(join(standIn, 'index.js'), standInSource());
  const standsIn = `file:./${STAND_IN}`;
  const manifest = {
    private: true,
    dependencies: { [npmPackage]: version, '@tensorflow/tfjs-core': standsIn },
    overrides: { '@tensorflow/tfjs': standsIn },
  };
  await writeFile(join(work, 'package.json'), JSON.stringify(manifest));
  const args = ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--no-install-links'];
  const { exitCode, output } = await run('npm', args, { cwd: work }).catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    throw new TensorflowError(
      'TENSORFLOW_NPM_MISSING',
      `${npmPackage} is installed with npm, and there is none on the PATH: install it (Debian and Ubuntu: apt-get ` +
        'install npm; it comes with Node from nodejs.org), then try again.',
      { cause },
    );
  });
  if (exitCode !== 0) {
    throw new TensorflowError(
      'TENSORFLOW_NPM_FAILED',
      `npm could not install ${npmPackage} ${version}; it said: ${npmError(output)}. Check the network and npm's ` +
        'registry (`npm config get registry`), then try again.',
      { retryable: true },
    );
  }
  const lock = await readFile(join(work, 'node_modules/.package-lock.json'), 'utf8');
  const { packages } = JSON.parse(lock) as { packages: Record<string, { integrity?: string }> };
  const got = packages[`node_modules/${npmPackage}`]?.integrity;
  if (got !== integrity) {
    throw new TensorflowError(
      'TENSORFLOW_HASH_MISMATCH',
      `${npmPackage} ${version} has the integrity ${got ?? 'of nothing'}, and ${integrity} was expected. Nothing was ` +
        'installed. Find out which registry npm uses (`npm config get registry`): it serves another file.',
    );
  }
}

/** The package's own install script: it downloads TensorFlow 2.9 and a binding. Undefined where it comes to nothing. */
async function takePrebuilt(
  folder: string,
  { run, report, log, signal }: Installer,
): Promise<Made | undefined> {
  report('looking for its own binary');
  const limit = AbortSignal.any([signal, AbortSignal.timeout(PREBUILT_TIMEOUT_MS)]);
  const { exitCode } = await run('npm', ['run', 'install'], { cwd: folder, signal: limit }).catch(
    (error: unknown): CommandResult => {
      signal.throwIfAborted();
      return { exitCode: null, output: messageOf(error) };
    },
  );
  const made = exitCode === 0 ? await tryBinding(folder, run) : undefined;
  if (made !== undefined && 'tensorflowVersion' in made) return { ...made, origin: 'prebuilt' };
  log(`The package's own binary could not be had: ${made?.problem ?? 'see above'}\n`);
  await rm(join(folder, 'deps'), { recursive: true, force: true });
  await rm(join(folder, 'lib'), { recursive: true, force: true });
  return undefined;
}

/** The binding out of the package's sources, on the library in TensorFlow's wheel. */
async function buildBinding(
  wanted: TensorflowPackage,
  folder: string,
  installer: Installer,
): Promise<Made> {
  const { work, run, report, signal, env, logFile } = installer;
  const { npmPackage, wheels } = wanted;
  const wheel = wheels[`${process.platform}-${process.arch}`];
  if (wheel === undefined) {
    throw new TensorflowError(
      'TENSORFLOW_PLATFORM_UNSUPPORTED',
      `the binary of ${npmPackage} could not be had, and it can be built for ${Object.keys(wheels).join(' and ')} ` +
        `only, not for ${process.platform}-${process.arch}. Use the xla or the cpu engine.`,
    );
  }
  await checkCompiler(npmPackage, installer);

  report(`downloading ${wheel.package} ${wheel.version} (${wheel.megabytes} MB)`);
  const path = await downloadWheel(wheel, work, { ...REPORT, signal, env });

  report(`extracting ${wheel.package} ${wheel.version}`);
  const [lib, include] = [join(folder, 'deps/lib'), join(folder, 'deps/include')];
  const files = [
    ...WHEEL_FILES.libraries.map((name) => [`tensorflow/${name}`, join(lib, name)] as const),
    ...WHEEL_FILES.headers.map(
      (name) => [`tensorflow/include/${name}`, join(include, name)] as const,
    ),
  ];
  for (const [name, destination] of files) {
    await mkdir(dirname(destination), { recursive: true });
    await extractFromZip(path, name, destination).catch((cause: unknown) => {
      const why = `the wheel could not be unpacked: ${messageOf(cause)}`;
      throw wheelUnavailable(wheel, why, REPORT, cause);
    });
  }
  await rm(path);
  for (const [link, target] of Object.entries(WHEEL_FILES.links))
    await symlink(target, join(lib, link));

  report(`building the binding of ${npmPackage} with node-gyp`);
  const { exitCode, output } = await run('npm', ['run', 'build-addon-from-source'], {
    cwd: folder,
  });
  const made = exitCode === 0 ? await tryBinding(folder, run) : { problem: buildError(output) };
  if ('problem' in made) {
    throw new TensorflowError(
      'TENSORFLOW_BUILD_FAILED',
      `the binding of ${npmPackage} could not be built on TensorFlow ${wheel.version}; the whole log is in ` +
        `${logFile}. Where node-gyp cannot download Node's headers, name a folder that has include/node/node_api.h ` +
        `in npm_config_nodedir. The log ends with:\n${made.problem}`,
    );
  }
  await rm(include, { recursive: true });
  for (const entry of await readdir(folder))
    if (entry.startsWith('build')) await rm(join(folder, entry), { recursive: true });
  return { ...made, origin: 'built' };
}

/** Loads the binding in a process of its own, as one that does not suit the machine may end the process. */
async function tryBinding(
  folder: string,
  run: Installer['run'],
): Promise<Omit<Made, 'origin'> | { problem: string }> {
  const versions = await readdir(join(folder, 'lib')).catch(() => []);
  const version = versions.find((name) => /^napi-v\d+$/.test(name));
  if (version === undefined) return { problem: `there is no binding in ${folder}/lib` };
  const binding = join('lib', version, 'tfjs_binding.node');
  const program = 'console.log(`\\nTF_Version=${require(process.argv[1]).TF_Version}`)';
  const args = ['-e', program, join(folder, binding)];
  const { exitCode, output } = await run(process.execPath, args, { cwd: folder });
  const [, tensorflowVersion] = /^TF_Version=(\S+)$/m.exec(output) ?? [];
  if (exitCode !== 0 || tensorflowVersion === undefined) return { problem: lastLines(output) };
  return { binding, tensorflowVersion };
}

async function checkCompiler(npmPackage: string, { run, env }: Installer): Promise<void> {
  const tools = [
    [env['CXX'] ?? 'g++', 'C++ compiler'],
    [env['MAKE'] ?? 'make', 'make'],
  ] as const;
  for (const [command, what] of tools) {
    const found = await run(command, ['--version'], {}).catch((cause: unknown) => {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw cause;
    });
    if (found?.exitCode === 0) continue;
    throw new TensorflowError(
      'TENSORFLOW_COMPILER_MISSING',
      `the binary of ${npmPackage} could not be downloaded, so that it has to be built here, and there is no ${what} ` +
        `(${command}): install it (Debian and Ubuntu: apt-get install g++ make; Fedora: dnf install gcc-c++ make), ` +
        'then run `videoloom engine install tensorflow` again.',
    );
  }
}

async function checkDriver(): Promise<void> {
  try {
    await access('/dev/nvidiactl');
  } catch (cause) {
    throw new TensorflowError(
      'TENSORFLOW_NO_GPU',
      'there is no NVIDIA driver on this machine (/dev/nvidiactl): install it, or leave --gpu out for the build that ' +
        'computes on the processor.',
      { cause },
    );
  }
}

// --- What the stages share

type Made = Pick<TensorflowInstallation, 'binding' | 'origin' | 'tensorflowVersion'>;
type TensorflowDescription = Made & Pick<TensorflowInstallation, 'npmPackage'>;

interface Installer {
  readonly work: string;
  readonly env: NodeJS.ProcessEnv;
  readonly signal: AbortSignal;
  /** Where the log lies when the installation has failed. */
  readonly logFile: string;
  readonly report: (detail: string) => void;
  readonly log: (text: string) => void;
  readonly run: (
    command: string,
    args: readonly string[],
    options: { readonly cwd?: string; readonly signal?: AbortSignal },
  ) => Promise<CommandResult>;
  readonly close: () => Promise<void>;
}

function openInstaller(work: string, options: TensorflowInstallOptions): Installer {
  const signal = AbortSignal.timeout(INSTALL_TIMEOUT_MS);
  const { env } = options;
  const stream = createWriteStream(join(work, LOG_FILE));
  // A log that cannot be written stops nothing; what fills the disk says so itself.
  stream.on('error', () => undefined);
  const log = (text: string | Buffer): void => {
    stream.write(text);
  };
  return {
    work,
    env,
    signal,
    logFile: join(options.cacheDir, LOG_FILE),
    report: (detail) => {
      log(`== ${detail}\n`);
      options.onProgress?.(detail);
    },
    log,
    run: (command, args, { cwd, signal: own }) => {
      log(`$ ${command} ${args.join(' ')}\n`);
      const where = { env, signal: own ?? signal, ...(cwd === undefined ? {} : { cwd }) };
      return runCommand(command, args, { ...where, onOutput: log });
    },
    close: async () => {
      stream.end();
      await finished(stream).catch(() => undefined);
    },
  };
}

/** How a wheel that cannot be had is reported. */
const REPORT: Pick<WheelOptions, 'otherwise' | 'fail'> = {
  otherwise: 'then run `videoloom engine install tensorflow` again',
  fail: (problem, message, cause) =>
    new TensorflowError(`TENSORFLOW_${problem}`, message, {
      cause,
      retryable: problem === 'DOWNLOAD_FAILED',
    }),
};

async function readInstallation(
  cacheDir: string,
  wanted: TensorflowPackage,
): Promise<TensorflowInstallation | undefined> {
  const installation = installationFolder(cacheDir, wanted);
  const text = await readFile(join(installation, DESCRIPTION_FILE), 'utf8').catch(
    (error: unknown) => {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    },
  );
  if (text === undefined) return undefined;
  const description = JSON.parse(text) as TensorflowDescription;
  const folder = join(installation, 'node_modules', wanted.npmPackage);
  return { ...description, folder, binding: join(folder, description.binding) };
}

function installationFolder(cacheDir: string, wanted: TensorflowPackage): string {
  const { npmPackage, version, wheels } = wanted;
  const pin = wheels[`${process.platform}-${process.arch}`]?.sha256.slice(0, 12) ?? 'prebuilt';
  return join(cacheDir, `${npmPackage.replace('@tensorflow/', '')}-${version}-${pin}`);
}

/** What npm says went wrong, without its codes and where its log lies. */
function npmError(output: string): string {
  const lines = [...output.matchAll(/^npm error (.+)$/gm)].map(([, text]) => text!);
  const said = lines.filter((line) => !/^(code|errno|syscall|A complete log)\b/.test(line));
  return (said[0] ?? lastLines(output, 1)).replace(/\.$/, '');
}

/** The end of a build's output without what node-gyp and its caller say of themselves. */
function buildError(output: string): string {
  const noise =
    /^(node-pre-gyp |Failed to execute|gyp (info|verb) |gyp ERR! (stack +at|System|command|cwd|node|not ok|\$npm_))/;
  return lastLines(
    output
      .trimEnd()
      .split('\n')
      .filter((line) => !noise.test(line))
      .join('\n'),
  );
}

function lastLines(text: string, count = 15): string {
  return text.trimEnd().split('\n').slice(-count).join('\n');
}

const DESCRIPTION_FILE = 'installation.json';
const LOG_FILE = 'install.log';
const INSTALL_TIMEOUT_MS = 30 * 60_000;
const PREBUILT_TIMEOUT_MS = 10 * 60_000;
