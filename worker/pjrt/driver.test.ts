import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import {
  compareVersions,
  CUDA_12_DRIVER,
  CUDA_13_DRIVER,
  driverProblem,
  findDriver,
  parseKfdNode,
  parseNvidiaModel,
  parseNvidiaVersion,
} from './driver.ts';

const CLOSED = `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
`;
const OPEN = `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)
GCC version:  gcc version 12.3.0
`;
const H100 = `Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 205
GPU UUID: \t GPU-00000000-0000-0000-0000-000000000000
`;
const MI300 = 'cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\n';
const HOST = 'cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n';

const CUDA_12 = { vendor: 'nvidia', cuda: 12, minimumVersion: CUDA_12_DRIVER } as const;
const CUDA_13 = { vendor: 'nvidia', cuda: 13, minimumVersion: CUDA_13_DRIVER } as const;

/** A system with these files. */
async function rootWith(files: Readonly<Record<string, string>>): Promise<string> {
  const root = await temporaryFolder('driver');
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), text);
  }
  return root;
}

const GPU = { 'proc/driver/nvidia/gpus/0000:19:00.0/information': H100 };
const NVIDIA = {
  ...GPU,
  'usr/lib/x86_64-linux-gnu/libcuda.so.1': '',
};

test('the texts of the kernel are read', () => {
  assert.equal(parseNvidiaVersion(CLOSED), '535.104.05');
  assert.equal(parseNvidiaVersion(OPEN), '580.65.06');
  assert.equal(parseNvidiaVersion('something else'), undefined);
  assert.equal(parseNvidiaModel(H100), 'NVIDIA H100 80GB HBM3');
  assert.equal(parseKfdNode(MI300), 'gfx942');
  assert.equal(parseKfdNode('simd_count 416\ngfx_target_version 90010\n'), 'gfx90a');
  assert.equal(parseKfdNode('simd_count 64\ngfx_target_version 120001\n'), 'gfx1201');
  assert.equal(parseKfdNode(HOST), undefined);
});

test('versions are compared by their numbers', () => {
  assert.ok(compareVersions('535.104.05', '525') > 0);
  assert.ok(compareVersions('535.104.05', '535.104.5') === 0);
  assert.ok(compareVersions('99.9', '525.60.13') < 0);
});

test('a machine without a driver is told to install one', async () => {
  const root = await rootWith({});
  assert.equal(await findDriver('nvidia', root), undefined);
  assert.match(
    driverProblem(CUDA_13, undefined)!,
    /no NVIDIA driver: install version 580 or later/,
  );
  assert.equal(await findDriver('amd', root), undefined);
  assert.match(driverProblem({ vendor: 'amd' }, undefined)!, /\/dev\/kfd is missing/);
});

test('a driver that is new enough for CUDA 12 alone is told apart', async () => {
  const root = await rootWith({ ...NVIDIA, 'proc/driver/nvidia/version': CLOSED });
  const driver = await findDriver('nvidia', root);
  assert.deepEqual(driver, {
    version: '535.104.05',
    gpus: ['NVIDIA H100 80GB HBM3'],
    hasLibrary: true,
  });
  assert.equal(driverProblem(CUDA_12, driver), undefined);
  assert.match(
    driverProblem(CUDA_13, driver)!,
    /driver 535\.104\.05 is too old for CUDA 13: install 580 or later, or use the plugin cuda12/,
  );
  assert.match(
    driverProblem(CUDA_12, { ...driver, version: '470.82.01' })!,
    /470\.82\.01 is too old for CUDA 12: install 525 or later\./,
  );
});

test('a driver without GPUs, and one without its library, are told apart', async () => {
  const version = { 'proc/driver/nvidia/version': OPEN };
  const bare = await findDriver('nvidia', await rootWith(version));
  assert.match(driverProblem(CUDA_13, bare)!, /sees no GPU/);
  const withoutLibrary = await findDriver('nvidia', await rootWith({ ...version, ...GPU }));
  assert.match(driverProblem(CUDA_13, withoutLibrary)!, /libcuda\.so\.1 is not here.*--gpus all/);
});

test('the driver of Windows counts below WSL', async () => {
  const root = await rootWith({ 'usr/lib/wsl/lib/libcuda.so.1': '' });
  assert.equal(driverProblem(CUDA_13, await findDriver('nvidia', root)), undefined);
});

test('an AMD machine needs its driver, a GPU and ROCm 7', async () => {
  const nodes = 'sys/class/kfd/kfd/topology/nodes';
  const files = { 'dev/kfd': '', [`${nodes}/0/properties`]: HOST };
  const need = { vendor: 'amd' } as const;
  const bare = await findDriver('amd', await rootWith(files));
  assert.match(driverProblem(need, bare)!, /lists no GPU/);
  const gpu = {
    ...files,
    [`${nodes}/1/properties`]: MI300,
    'sys/module/amdgpu/version': '6.14.5\n',
  };
  const withoutRocm = await findDriver('amd', await rootWith(gpu));
  assert.match(driverProblem(need, withoutRocm)!, /ROCm is not in \/opt\/rocm/);
  const whole = await rootWith({ ...gpu, 'opt/rocm/lib/libamdhip64.so.7': '' });
  const driver = await findDriver('amd', whole);
  assert.deepEqual(driver, { version: '6.14.5', gpus: ['gfx942'], hasLibrary: true });
  assert.equal(driverProblem(need, driver), undefined);
});
