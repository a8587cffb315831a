import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exists } from '../../proto/exists.ts';

/** What a plugin for GPUs needs of the system's driver. */
export type DriverNeed =
  | { readonly vendor: 'nvidia'; readonly cuda: number; readonly minimumVersion: string }
  | { readonly vendor: 'amd' };

/** A driver that the kernel has loaded, and its GPUs. */
export interface Driver {
  /** Undefined where the system does not tell. */
  readonly version: string | undefined;
  readonly gpus: readonly string[];
  /** Whether the library that programs open the GPUs with is where loaders look. */
  readonly hasLibrary: boolean;
}

/** The vendor's driver on the system below `root`; undefined when none is loaded. */
export async function findDriver(
  vendor: DriverNeed['vendor'],
  root = '/',
): Promise<Driver | undefined> {
  return vendor === 'nvidia' ? findNvidia(root) : findAmd(root);
}

/** One sentence about why a plugin cannot work with that driver and how to mend it; undefined when it can. */
export function driverProblem(need: DriverNeed, driver: Driver | undefined): string | undefined {
  if (need.vendor === 'amd') {
    if (driver === undefined)
      return 'There is no AMD GPU driver (/dev/kfd is missing): install amdgpu-dkms of ROCm 7, or in a container pass --device /dev/kfd --device /dev/dri.';
    if (driver.gpus.length === 0)
      return 'The AMD driver is loaded and lists no GPU that computes: see what `dmesg | grep amdgpu` says, or choose another engine.';
    if (driver.hasLibrary) return undefined;
    return 'The AMD driver is loaded, and ROCm is not in /opt/rocm: install ROCm 7, as in rocm.docs.amd.com.';
  }
  const { cuda, minimumVersion } = need;
  const wanted = `${minimumVersion} or later`;
  if (driver === undefined)
    return `There is no NVIDIA driver: install version ${wanted} for CUDA ${cuda}, or in a container start it with the GPUs (docker run --gpus all).`;
  const { version, gpus, hasLibrary } = driver;
  if (version !== undefined && compareVersions(version, minimumVersion) < 0) {
    const other =
      cuda > 12 && compareVersions(version, CUDA_12_DRIVER) >= 0
        ? ', or use the plugin cuda12, for which it is new enough'
        : '';
    return `The NVIDIA driver ${version} is too old for CUDA ${cuda}: install ${wanted}${other}.`;
  }
  if (gpus.length === 0)
    return 'The NVIDIA driver is loaded and sees no GPU: see what `nvidia-smi` and `dmesg | grep NVRM` say.';
  if (hasLibrary) return undefined;
  return 'The NVIDIA driver is loaded, and its library libcuda.so.1 is not here: install it with the driver, or in a container start it with the GPUs (docker run --gpus all).';
}

/** The oldest drivers for CUDA 12 and 13. Source: docs.nvidia.com/deploy/cuda-compatibility, table 1. */
export const CUDA_12_DRIVER = '525';
export const CUDA_13_DRIVER = '580';

/** The version in `/proc/driver/nvidia/version`, of the closed or the open kernel module. */
export function parseNvidiaVersion(text: string): string | undefined {
  return /^NVRM version:.*?\bKernel Module\b.*?\s(\d+(?:\.\d+)+)\s/m.exec(text)?.[1];
}

/** The model in `/proc/driver/nvidia/gpus/<bus>/information`. */
export function parseNvidiaModel(text: string): string | undefined {
  return /^Model:\s*(\S.*?)\s*$/m.exec(text)?.[1];
}

/**
 * The instruction set of the GPU that `/sys/class/kfd/kfd/topology/nodes/<n>/properties` describes, such as gfx942;
 * undefined for a CPU.
 */
export function parseKfdNode(text: string): string | undefined {
  const property = (name: string): number =>
    Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1] ?? 0);
  if (property('simd_count') === 0) return undefined;
  // Decimal digits in pairs, major first; gfx names write minor and stepping as hexadecimal digits.
  const version = property('gfx_target_version');
  const [major, minor, stepping] = [
    Math.floor(version / 10_000),
    Math.floor(version / 100) % 100,
    version % 100,
  ];
  return `gfx${major}${minor.toString(16)}${stepping.toString(16)}`;
}

/** Below 0 when version `a` is older than `b`; parts that are missing count as 0. */
export function compareVersions(a: string, b: string): number {
  const [left, right] = [a.split('.').map(Number), b.split('.').map(Number)];
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

async function findNvidia(root: string): Promise<Driver | undefined> {
  // WSL: the driver is that of Windows, which shows neither its version nor its GPUs here.
  if (await exists(join(root, 'usr/lib/wsl/lib/libcuda.so.1')))
    return { version: undefined, gpus: ['a GPU of Windows'], hasLibrary: true };
  const folder = join(root, 'proc/driver/nvidia');
  const version = await textOf(join(folder, 'version'));
  if (version === undefined) return undefined;
  const gpus = await childrenOf(join(folder, 'gpus'), 'information');
  return {
    version: parseNvidiaVersion(version),
    gpus: gpus.map((text) => parseNvidiaModel(text) ?? 'a GPU without a name'),
    hasLibrary: await anyExists(root, LIBRARY_FOLDERS, 'libcuda.so.1'),
  };
}

async function findAmd(root: string): Promise<Driver | undefined> {
  if (!(await exists(join(root, 'dev/kfd')))) return undefined;
  const nodes = await childrenOf(join(root, 'sys/class/kfd/kfd/topology/nodes'), 'properties');
  return {
    version: (await textOf(join(root, 'sys/module/amdgpu/version')))?.trim(),
    gpus: nodes.map(parseKfdNode).filter((gpu) => gpu !== undefined),
    hasLibrary: await anyExists(root, ['opt/rocm/lib'], 'libamdhip64.so.7'),
  };
}

// Where loaders look, and where NVIDIA's container runtime puts it.
const LIBRARY_FOLDERS = [
  ...['usr/lib/x86_64-linux-gnu', 'usr/lib/aarch64-linux-gnu', 'usr/lib64', 'usr/lib'],
  ...['usr/local/nvidia/lib64', 'usr/local/cuda/compat', 'run/opengl-driver/lib'],
];

async function anyExists(root: string, folders: readonly string[], file: string): Promise<boolean> {
  const found = await Promise.all(folders.map((folder) => exists(join(root, folder, file))));
  return found.includes(true);
}

async function textOf(path: string): Promise<string | undefined> {
  return readFile(path, 'utf8').catch(() => undefined); // not there, or not ours to read
}

/** The texts of `file` in each folder inside of `folder`, in the order of their names. */
async function childrenOf(folder: string, file: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => []);
  const texts = await Promise.all(names.sort().map((name) => textOf(join(folder, name, file))));
  return texts.filter((text) => text !== undefined);
}
