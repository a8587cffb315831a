import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import type { KeyValueStore } from '../pjrt/key-value.ts';
import { findPlugin, pluginCacheDir } from '../pjrt/plugin.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import type { DeviceSumPlan } from './device-sum.ts';
import { gpuJoin, openSumProcesses } from './sum-child.ts';
import { gradientOf, treeSum } from './test/gradients.ts';
import { microbatchRange } from './tree-sum.ts';

const NUM_ELEMENTS = 100_003;
const NUM_MICROBATCHES = 4;
const isLinux = process.platform === 'linux' ? false : 'memory is shared on Linux alone';

function planOf(rank: number, worldSize: number): DeviceSumPlan {
  const members = Array.from({ length: worldSize }, (_, at) => ({
    ...{ rank: at, workerId: `w${at}`, tensorAddress: '' },
    ...microbatchRange(at, worldSize, NUM_MICROBATCHES),
  }));
  const generation = { number: 1, members };
  return { generation, rank, numElements: NUM_ELEMENTS, precision: 'float32' };
}

/** Of workers that are all in this process. */
function mapStore(): KeyValueStore {
  const values = new Map<string, Uint8Array>();
  return {
    put: (key, value) => {
      values.set(key, value.slice());
      return Promise.resolve();
    },
    tryGet: (key) => Promise.resolve(values.get(key)),
    async get(key, timeoutMs) {
      const endMs = Date.now() + timeoutMs;
      while (Date.now() < endMs) {
        const value = values.get(key);
        if (value !== undefined) return value;
        await delay(20);
      }
      throw new Error(`${key} did not come`);
    },
  };
}

/** Processes that this one has started and that still run. */
const children = () =>
  readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8')
    .split(' ')
    .filter(Boolean)
    .map(Number);

test(
  'a process of its own sums what lies in shared memory, step by step, and ends with its generation',
  { skip: isLinux },
  async () => {
    const before = children().length;
    // The CPU plugin joins nobody: with one worker there is nobody to be joined.
    const open = openSumProcesses({
      ...{ pluginPath: await cpuPlugin(), join: () => ({}), keyValues: mapStore },
    });
    for (let generation = 0; generation < 2; generation++) {
      const sum = open(planOf(0, 1));
      for (let step = 0; step < 2; step++) {
        const block = { start: 0, size: 4, sum: gradientOf(step, generation, NUM_ELEMENTS) };
        await sum.run([block]);
        assert.deepEqual(sum.result, block.sum);
      }
      assert.equal(children().length, before + 1);
      await sum.close();
      assert.equal(children().length, before);
    }
  },
);

test(
  'a process that ends in the middle says how, and one that is to end ends what waits',
  { skip: isLinux },
  async () => {
    const open = openSumProcesses({
      ...{ pluginPath: await cpuPlugin(), join: () => ({}), keyValues: mapStore },
    });
    const block = { start: 0, size: 4, sum: new Float32Array(NUM_ELEMENTS) };
    const before = new Set(children());
    const sum = open(planOf(0, 1));
    await sum.run([block]);
    const child = children().find((each) => !before.has(each))!;
    process.kill(child, 'SIGSTOP'); // or it may be quicker than what follows
    const killed = assert.rejects(sum.run([block]), { message: 'its process ended by SIGKILL' });
    process.kill(child, 'SIGKILL');
    await killed;
    await assert.rejects(sum.run([block]), { message: 'its process is gone' });
    await sum.close();

    const second = open(planOf(0, 1));
    const ended = assert.rejects(second.run([block]), { message: 'its process ended by SIGKILL' });
    await second.close();
    await ended;
  },
);

test(
  'a plugin that cannot join the devices of several processes says so',
  { skip: isLinux },
  async () => {
    const open = openSumProcesses({
      ...{ pluginPath: await cpuPlugin(), join: gpuJoin, keyValues: mapStore },
    });
    const sum = open(planOf(0, 2));
    const block = { start: 0, size: 2, sum: new Float32Array(NUM_ELEMENTS) };
    await assert.rejects(sum.run([block]), {
      message: /Unexpected option name passed to PJRT_Client_Create: \w/,
    });
    await sum.close();
  },
);

/**
 * A plugin that meets the other one of two processes as those of GPUs do, through the callbacks, and then is the CPU plugin:
 * it leaves `<node_id>` under its own key and expects the other's under the other's.
 */
const MEETING_PLUGIN = `
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
typedef struct { size_t size; void *extension; const char *name; size_t name_size; int type; union { long number; const char *text; } value; size_t value_size; } NamedValue;
typedef struct { size_t size; void *extension; char *options; size_t num_options; void *get, *get_user, *put, *put_user, *client, *try_get, *try_get_user; } CreateArgs;
typedef struct { size_t size; void *extension; const char *key; size_t key_size; const char *value; size_t value_size; void *error, *user; } PutArgs;
typedef struct { size_t size; void *extension; const char *key; size_t key_size; int timeout_ms; void *error, *user; char *value; size_t value_size; void (*free_value)(char *); } GetArgs;
typedef void *(*Call)(void *);
static Call create_of_cpu;
static void *create(CreateArgs *args) {
  long own = -1;
  char *at = args->options;
  for (size_t i = 0; i < args->num_options; i++, at += sizeof(NamedValue)) {
    NamedValue *option = (NamedValue *)at;
    if (option->name_size == 7 && !memcmp(option->name, "node_id", 7)) own = option->value.number;
  }
  char *keys[2] = {"meet/0", "meet/1"}, value[64] = {(char)('0' + own)}, error[128] = {0};
  PutArgs put = {sizeof put, 0, keys[own], 6, value, 1, error, args->put_user};
  if (((Call)args->put)(&put)) abort();
  GetArgs get = {sizeof get, 0, keys[1 - own], 6, 20000, error, args->get_user};
  if (((Call)args->get)(&get) || get.value_size != 1 || get.value[0] != '1' - own) abort();
  get.free_value(get.value);
  args->num_options = 0;
  return create_of_cpu(args);
}
void *GetPjrtApi(void) {
  static void *table[512];
  void *cpu = dlopen(getenv("CPU_PLUGIN"), RTLD_NOW);
  size_t *api = ((size_t *(*)(void))dlsym(cpu, "GetPjrtApi"))();
  memcpy(table, api, api[0]);
  size_t create_at = 5 + 10; // behind two sizes, two pointers and the version; PJRT_Client_Create is function 10
  create_of_cpu = (Call)table[create_at];
  table[create_at] = (void *)create;
  return table;
}`;

const hasCompiler = spawnSync('cc', ['--version']).status === 0;
test(
  'processes of two workers meet in the store that their workers reach',
  { skip: isLinux || (hasCompiler ? false : 'needs a C compiler') },
  async () => {
    const folder = await temporaryFolder('meeting');
    const pluginPath = join(folder, 'meeting.so');
    execFileSync('cc', ['-shared', '-fPIC', '-x', 'c', '-', '-o', pluginPath, '-ldl'], {
      input: MEETING_PLUGIN,
    });
    process.env['CPU_PLUGIN'] = await cpuPlugin();
    const store = mapStore();
    const block = { start: 0, size: 2, sum: new Float32Array(NUM_ELEMENTS) };
    const sums = [0, 1].map((rank) =>
      openSumProcesses({ pluginPath, join: gpuJoin, keyValues: () => store })(planOf(rank, 2)),
    );
    // They have met, and a CPU has no devices of others.
    await Promise.all(
      sums.map((sum) =>
        assert.rejects(sum.run([block]), { message: /sees no device of rank 1 among its \d/ }),
      ),
    );
    assert.deepEqual(await Promise.all([0, 1].map((rank) => store.tryGet(`meet/${rank}`))), [
      Uint8Array.of(0x30),
      Uint8Array.of(0x31),
    ]);
    await Promise.all(sums.map((sum) => sum.close()));
  },
);

const GPUS = '/proc/driver/nvidia/gpus';
const numGpus = existsSync(GPUS) ? readdirSync(GPUS).length : 0;
const cacheDir = pluginCacheDir(process.env);
const installed =
  (await findPlugin({ name: 'cuda13', cacheDir })) ??
  (await findPlugin({ name: 'cuda12', cacheDir }));
const skip =
  numGpus < 2
    ? `needs two GPUs of NVIDIA, and there are ${numGpus}`
    : installed === undefined
      ? 'neither cuda12 nor cuda13 is installed'
      : false;
test('two GPUs sum over NCCL to the bits of the scalar tree, step by step', { skip }, async () => {
  const store = mapStore();
  const gradients = Array.from({ length: NUM_MICROBATCHES }, (_, m) =>
    gradientOf(1, m, NUM_ELEMENTS),
  );
  await Promise.all(
    [0, 1].map(async (rank) => {
      const open = openSumProcesses({
        pluginPath: installed!,
        join: (plan) => ({ ...gpuJoin(plan), visible_devices: [rank] }),
        keyValues: () => store,
      });
      const sum = open(planOf(rank, 2));
      try {
        const own = treeSum(gradients.slice(2 * rank, 2 * rank + 2));
        for (let step = 0; step < 2; step++) {
          await sum.run([{ start: 2 * rank, size: 2, sum: own }]);
          assert.deepEqual(sum.result, treeSum(gradients));
        }
      } finally {
        await sum.close();
      }
    }),
  );
});
