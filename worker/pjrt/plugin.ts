import { mkdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { messageOf, VideoloomError } from '../../proto/errors.ts';
import { userCacheDir } from '../../proto/user-cache.mjs';
import {
  ASK_INDEX,
  downloadWheel,
  installWheels,
  wheelUnavailable,
  type WheelOptions,
} from '../wheel.ts';
import { openInstallFolder } from '../install-folder.ts';
import { CUDA_12_DRIVER, CUDA_13_DRIVER, type DriverNeed } from './driver.ts';
import { extractFromZip } from './zip.ts';

/** A PJRT plugin that can be installed. */
export interface PluginSpec {
  /** What the engine calls it. */
  readonly name: string;
  /** By `process.platform`-`process.arch`. */
  readonly builds: Readonly<Record<string, PluginBuild>>;
  readonly needs?: PluginNeeds;
}

/** What a plugin needs beside its own library. */
export interface PluginNeeds {
  /** What the machine must have. */
  readonly hardware: string;
  readonly driver: DriverNeed;
  /** pip requirements of the vendor's libraries that it loads at run time. */
  readonly libraries: readonly string[];
}

/** One library inside one wheel of PyPI, both pinned by hash. */
export interface PluginBuild {
  readonly package: string;
  readonly version: string;
  readonly wheelSha256: string;
  readonly libraryPathInWheel: string;
  readonly librarySha256: string;
}

/** An installation that failed, with what to do about it. */
export class PluginError extends VideoloomError {}

export interface PluginOptions {
  readonly name: string;
  /** A library to use instead of an installed one, or the name of another plugin, as in PJRT_PLUGIN_PATH. */
  readonly pluginPath?: string | undefined;
  /** Where installed plugins are kept: `pluginCacheDir()`. */
  readonly cacheDir: string;
  /** The plugins to choose from: PLUGINS when left out. */
  readonly specs?: readonly PluginSpec[];
}

export interface InstallOptions extends PluginOptions {
  readonly onProgress?: (event: PluginProgress) => void;
  readonly signal?: AbortSignal;
  /** The Python interpreters to look for pip in, best first. */
  readonly pythons?: readonly string[];
}

export interface PluginProgress {
  readonly phase: 'downloading' | 'extracting' | 'installed';
  readonly plugin: string;
  readonly package: string;
  readonly version: string;
}

/** A plugin as `videoloom engine list` shows it. */
export interface ListedPlugin {
  readonly name: string;
  /** The build for this kind of machine, if there is one. */
  readonly build: PluginBuild | undefined;
  /** Where it is installed; undefined when it is not. */
  readonly path: string | undefined;
  /** What else the machine needs for it, a sentence; empty when nothing. */
  readonly needs: string;
}

/**
 * Path of the plugin's library: `pluginPath` if given, else the one in the cache, installed when missing. An
 * installation is complete or absent, also when several processes install at once or one of them is killed.
 * @throws PluginError PLUGIN_UNKNOWN, PLUGIN_NOT_FOUND, PLUGIN_PLATFORM_UNSUPPORTED, PLUGIN_PIP_MISSING,
 * PLUGIN_DOWNLOAD_FAILED, PLUGIN_HASH_MISMATCH
 */
export async function ensurePlugin(options: InstallOptions): Promise<string> {
  return (await findPlugin(options)) ?? (await installPlugin(withNamed(options)));
}

/**
 * Path of the plugin's library as `ensurePlugin` would give it, or undefined when it would have to be installed.
 * @throws PluginError PLUGIN_NOT_FOUND when there is no file at `pluginPath`; PLUGIN_UNKNOWN
 */
export async function findPlugin(given: PluginOptions): Promise<string | undefined> {
  const options = withNamed(given);
  if (options.pluginPath !== undefined && options.pluginPath !== '') {
    const path = resolve(options.pluginPath);
    if (await isFile(path)) return path;
    throw new PluginError(
      'PLUGIN_NOT_FOUND',
      `PJRT_PLUGIN_PATH names ${path}, and there is no such file. Name the shared library of a PJRT plugin or one of ` +
        `${namesOf(options)}, or unset it to use the one for CPUs.`,
    );
  }
  const spec = specOf(options);
  const build = spec.builds[thisPlatform()];
  if (build === undefined) return undefined;
  const path = installedPath(options.cacheDir, build);
  return (await isFile(path)) ? path : undefined;
}

/** With the plugin that `pluginPath` is the name of, where it is one. */
function withNamed<O extends PluginOptions>(options: O): O {
  const { pluginPath, specs = PLUGINS } = options;
  const isName = specs.some(({ name }) => name === pluginPath);
  return isName ? { ...options, name: pluginPath, pluginPath: undefined } : options;
}

function namesOf({ specs = PLUGINS }: Pick<PluginOptions, 'specs'>): string {
  return specs.map(({ name }) => name).join(', ');
}

/** The plugins that can be installed, and where they are. */
export async function listPlugins(options: {
  readonly cacheDir: string;
  readonly specs?: readonly PluginSpec[];
}): Promise<ListedPlugin[]> {
  const specs = options.specs ?? PLUGINS;
  return Promise.all(
    specs.map(async (spec) => ({
      name: spec.name,
      build: spec.builds[thisPlatform()],
      path: await findPlugin({ name: spec.name, cacheDir: options.cacheDir, specs }),
      needs: needsOf(spec),
    })),
  );
}

/** The per-user folder for installed plugins: in `XDG_CACHE_HOME`, else `~/.cache`. */
export function pluginCacheDir(environment: NodeJS.ProcessEnv): string {
  return join(userCacheDir(environment), 'pjrt');
}

async function installPlugin(options: InstallOptions): Promise<string> {
  const spec = specOf(options);
  const build = spec.builds[thisPlatform()];
  if (build === undefined) throw unsupported(spec);
  const report = (phase: PluginProgress['phase']): void => {
    options.onProgress?.({
      phase,
      plugin: spec.name,
      package: build.package,
      version: build.version,
    });
  };
  await mkdir(options.cacheDir, { recursive: true });
  const work = await openInstallFolder(options.cacheDir, DOWNLOAD_TIMEOUT_MS);
  try {
    report('downloading');
    const deadline = AbortSignal.timeout(DOWNLOAD_TIMEOUT_MS);
    const wheel = await downloadWheel({ ...build, sha256: build.wheelSha256 }, work, {
      ...REPORT,
      signal: options.signal ? AbortSignal.any([options.signal, deadline]) : deadline,
      pythons: options.pythons,
    });

    report('extracting');
    const unpacked = join(work, 'library');
    const sha256 = await extractFromZip(wheel, build.libraryPathInWheel, unpacked).catch(
      (cause: unknown) => {
        const why = `the wheel could not be unpacked: ${messageOf(cause)}`;
        throw wheelUnavailable(build, why, REPORT, cause);
      },
    );
    if (sha256 !== build.librarySha256) {
      throw new PluginError(
        'PLUGIN_HASH_MISMATCH',
        `${build.libraryPathInWheel} of ${build.package} ${build.version} has the SHA-256 ${sha256}, and ` +
          `${build.librarySha256} was expected. Nothing was installed. ${ASK_INDEX}`,
      );
    }

    // The rename makes the installation appear whole; another process may have been first with the same bytes.
    const path = installedPath(options.cacheDir, build);
    await mkdir(dirname(path), { recursive: true });
    await rename(unpacked, path);
    report('installed');
    return path;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

function installedPath(cacheDir: string, build: PluginBuild): string {
  const folder = `${build.package}-${build.version}-${build.librarySha256.slice(0, 12)}`;
  return join(cacheDir, folder, basename(build.libraryPathInWheel));
}

function specOf(options: PluginOptions): PluginSpec {
  const { name, specs = PLUGINS } = options;
  const spec = specs.find((candidate) => candidate.name === name);
  if (spec !== undefined) return spec;
  throw new PluginError(
    'PLUGIN_UNKNOWN',
    `there is no plugin named ${name}. Choose one of ${namesOf(options)}, or name a library in PJRT_PLUGIN_PATH.`,
  );
}

function unsupported(spec: PluginSpec): PluginError {
  return new PluginError(
    'PLUGIN_PLATFORM_UNSUPPORTED',
    `the ${spec.name} plugin has no build for ${thisPlatform()}, only for ` +
      `${Object.keys(spec.builds).join(', ')}. Name the library of a PJRT plugin for this machine in PJRT_PLUGIN_PATH.`,
  );
}

/** How a wheel that cannot be had is reported. */
const REPORT: Pick<WheelOptions, 'otherwise' | 'fail'> = {
  otherwise: 'or name the library of a PJRT plugin that is already here in PJRT_PLUGIN_PATH',
  fail: (problem, message, cause) =>
    new PluginError(`PLUGIN_${problem}`, message, {
      cause,
      retryable: problem === 'DOWNLOAD_FAILED',
    }),
};

async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (entry) => entry.isFile(),
    () => false,
  );
}

function thisPlatform(): string {
  return `${process.platform}-${process.arch}`;
}

const DOWNLOAD_TIMEOUT_MS = 15 * 60_000;
const LIBRARIES_TIMEOUT_MS = 60 * 60_000;

function needsOf({ name, needs }: PluginSpec): string {
  if (needs === undefined) return '';
  return (
    `It needs ${needs.hardware}, and the vendor's libraries: where the system has not got them, run ` +
    `\`videoloom engine install ${name} --with-libraries\`.`
  );
}

/**
 * Has pip put the vendor's libraries of a plugin into the cache folder, where its rpath finds them: some gigabytes.
 * They are of the versions that the plugin was built for or later ones of the same interface, by pip's choice.
 * @throws PluginError PLUGIN_UNKNOWN, PLUGIN_PIP_MISSING, PLUGIN_DOWNLOAD_FAILED
 */
export async function installLibraries(options: InstallOptions): Promise<void> {
  const { needs } = specOf(options);
  if (needs === undefined) return;
  await mkdir(options.cacheDir, { recursive: true });
  const deadline = AbortSignal.timeout(LIBRARIES_TIMEOUT_MS);
  await installWheels(needs.libraries, options.cacheDir, {
    ...REPORT,
    otherwise:
      'or install these libraries with the system and name their folders in LD_LIBRARY_PATH',
    signal: options.signal ? AbortSignal.any([options.signal, deadline]) : deadline,
    pythons: options.pythons,
  });
}

// What jax-cuda12-plugin 0.12.0.1, jax-cuda13-plugin 0.12.0.1 and jax-rocm7-plugin 0.12.0 ask for in the extras with-cuda
// and with-rocm. They cannot be asked themselves: they need Python 3.12, these are for any. Upper bounds are of our own.
const CUDA_12_LIBRARIES = [
  'nvidia-cublas-cu12>=12.1.3.1',
  'nvidia-cuda-cupti-cu12>=12.1.105',
  'nvidia-cuda-nvcc-cu12>=12.6.85',
  'nvidia-cuda-nvrtc-cu12>=12.1.55',
  'nvidia-cuda-runtime-cu12>=12.1.105',
  'nvidia-cudnn-cu12>=9.10.2.21,<10',
  'nvidia-cufft-cu12>=11.0.2.54',
  'nvidia-cusolver-cu12>=11.4.5.107',
  'nvidia-cusparse-cu12>=12.1.0.106',
  'nvidia-nccl-cu12>=2.18.1,<3',
  'nvidia-nvjitlink-cu12>=12.1.105',
  'nvidia-nvshmem-cu12>=3.2.5,<4',
];
const CUDA_13_LIBRARIES = [
  'nvidia-cublas>=13.0.0.19,<14',
  'nvidia-cuda-cupti>=13.0.48,<14',
  'nvidia-cuda-nvcc>=13.0.48,<14',
  'nvidia-cuda-nvrtc>=13.0.48,<14',
  'nvidia-cuda-runtime>=13.0.48,<14',
  'nvidia-cudnn-cu13>=9.12.0.46,<10',
  'nvidia-cufft>=12.0.0.15,<13',
  'nvidia-cusolver>=12.0.3.29,<13',
  'nvidia-cusparse>=12.6.2.49,<13',
  'nvidia-nccl-cu13>=2.27.7,<3',
  'nvidia-nvjitlink>=13.0.39,<14',
  'nvidia-nvshmem-cu13>=3.3.20,<4',
  'nvidia-nvvm<14',
];
const ROCM_LIBRARIES = [
  ...['amd_rocm_hip_runtime_devel_instinct', 'amd_rocm_hip_runtime_instinct'],
  ...['amd_hipblas_instinct', 'amd_hipsparse_instinct', 'amd_hipsolver_instinct'],
  ...['amd_miopen_hip_instinct', 'amd_rocm_llvm_instinct', 'amd_rocm_language_runtime_instinct'],
  ...['amd_rccl_instinct', 'amd_hipfft_instinct', 'amd_rocm_device_libs_instinct'],
  'amd_hipsparselt_instinct',
];

/**
 * The plugins that videoloom installs itself. For CPUs on x64, lammps-jax-pjrt-cpu (PJRT 0.115) rather than
 * xla-cpu-pjrt (0.81): it runs programs off the calling thread, compiles in half the time, and a transformer's training
 * step took it a quarter less processor time. It has no other build.
 */
export const PLUGINS: readonly PluginSpec[] = [
  {
    name: 'cpu',
    builds: {
      'linux-x64': {
        package: 'lammps-jax-pjrt-cpu',
        version: '0.11.2',
        wheelSha256: '1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1',
        libraryPathInWheel: 'lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so',
        librarySha256: 'ad1309ac822b1b24d51b7f9947c7c9fa9ef5d67f390584cbc3d1fa2428fed9c2',
      },
      'linux-arm64': {
        package: 'xla-cpu-pjrt',
        version: '0.0.1',
        wheelSha256: '8f613be6e891858f40d64f9799319502fff42689661944fc18a6ffd8210b30c9',
        libraryPathInWheel: 'xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so',
        librarySha256: 'fcf411f3e8ff635c2b2cf87215aa7016f460e66d236c3db08309e7486583532d',
      },
    },
  },
  {
    name: 'cuda13',
    builds: {
      'linux-x64': {
        package: 'jax-cuda13-pjrt',
        version: '0.12.0.1',
        wheelSha256: '5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90',
        libraryPathInWheel: 'jax_plugins/xla_cuda13/xla_cuda_plugin.so',
        librarySha256: 'b6de513893c09af2c77e71afcef46d9706f8c259337cdef4cd5cae2353886f75',
      },
      'linux-arm64': {
        package: 'jax-cuda13-pjrt',
        version: '0.12.0.1',
        wheelSha256: '40758d042df8c06991b6a1a8016b56e9cefb1ed4c677c062125c3eb71c3dab97',
        libraryPathInWheel: 'jax_plugins/xla_cuda13/xla_cuda_plugin.so',
        librarySha256: 'b63ecc0361e3f8a9da9aad3df39e93a96092fb4ee20a174ccba2688fda4cb53f',
      },
    },
    needs: {
      hardware: `an NVIDIA GPU with driver ${CUDA_13_DRIVER} or later`,
      driver: { vendor: 'nvidia', cuda: 13, minimumVersion: CUDA_13_DRIVER },
      libraries: CUDA_13_LIBRARIES,
    },
  },
  {
    name: 'cuda12',
    builds: {
      'linux-x64': {
        package: 'jax-cuda12-pjrt',
        version: '0.12.0.1',
        wheelSha256: '5ec28e06198d094031c37590b4ea753ae8cde4879ab4b60baf40f0dffb673286',
        libraryPathInWheel: 'jax_plugins/xla_cuda12/xla_cuda_plugin.so',
        librarySha256: '921aaa9c635255fb7b7a660d11c8f702c78a70e7f7d005d4f377c2dc5f0fede2',
      },
      'linux-arm64': {
        package: 'jax-cuda12-pjrt',
        version: '0.12.0.1',
        wheelSha256: 'e6aa6c58c5420c1bda22db31a2f6c5c1d0a66cb701eeb731feae44fef197717c',
        libraryPathInWheel: 'jax_plugins/xla_cuda12/xla_cuda_plugin.so',
        librarySha256: '9277b5c930224da0438036e8120749c39379b276fabaf570cce8d05dac39045c',
      },
    },
    needs: {
      hardware: `an NVIDIA GPU with driver ${CUDA_12_DRIVER} or later`,
      driver: { vendor: 'nvidia', cuda: 12, minimumVersion: CUDA_12_DRIVER },
      libraries: CUDA_12_LIBRARIES,
    },
  },
  {
    name: 'rocm7',
    builds: {
      'linux-x64': {
        package: 'jax-rocm7-pjrt',
        version: '0.12.0',
        wheelSha256: '4551d0714523355f2946ca1958c3f584e95661e467a641d36b726f718a1c7934',
        libraryPathInWheel: 'jax_plugins/xla_rocm7/xla_rocm_plugin.so',
        librarySha256: '6e7239347f37f1a5a17c2a2d9301411f9f17e30e0707a717f4717556fa402511',
      },
    },
    needs: {
      hardware: 'an AMD GPU and ROCm 7 in /opt/rocm',
      driver: { vendor: 'amd' },
      libraries: ROCM_LIBRARIES,
    },
  },
];
