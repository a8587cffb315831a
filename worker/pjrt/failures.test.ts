import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import { openPjrtClient, type PjrtClient } from './client.ts';
import { checkArraySizes, checkFits } from './limits.ts';
import { cpuPlugin, openCpuClient, isPjrtError } from './test/client.ts';

const DOUBLE = `module @double {
  func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.add %x, %x : tensor<2xf32>
    return %0 : tensor<2xf32>
  }
}`;

async function assertComputes(client: PjrtClient): Promise<void> {
  const double = await client.compile(DOUBLE);
  const x = client.bufferFromHost(Float32Array.of(1, 2), [2], 'f32');
  const [y] = await double.execute([x]);
  assert.deepEqual(await y!.toHost(), Float32Array.of(2, 4));
  for (const open of [x, y!, double]) open.close();
}

const iota = (type: string): string => `module @iota {
  func.func public @main() -> ${type} {
    %0 = stablehlo.iota dim = 0 : ${type}
    return %0 : ${type}
  }
}`;

test('a wrong program, or one too large, is an error with its reason, after which the client computes', async () => {
  const client = await openCpuClient();
  const numOpen = client.numOpen;
  const wrong: [mlir: string, message: RegExp][] = [
    ['not a program', /custom op 'not' is unknown/],
    [DOUBLE.replace('return %0', 'return'), /'func\.return'|expected/],
    [DOUBLE.replace('add %x, %x', 'add %x, %y'), /undeclared SSA value/],
    [DOUBLE.replace('stablehlo.add', 'stablehlo.nothing'), /nothing/],
    [
      DOUBLE.replace(
        'stablehlo.add %x, %x : tensor<2xf32>',
        'stablehlo.custom_call @nowhere(%x) : (tensor<2xf32>) -> tensor<2xf32>',
      ),
      /custom call to nowhere/,
    ],
  ];
  for (const [mlir, message] of wrong) {
    await assert.rejects(client.compile(mlir), isPjrtError('PJRT_COMPILE_FAILED', message));
    assert.throws(() => client.compileSync(mlir), isPjrtError('PJRT_COMPILE_FAILED', message));
  }
  await assertComputes(client);

  // 1 TiB ends the process if the compiler sees it; 256 GiB compile, and cannot be had.
  await assert.rejects(
    client.compile(iota('tensor<274877906944xf32>')),
    isPjrtError(
      'PJRT_OUT_OF_MEMORY',
      /not compiled: a tensor<274877906944xf32> .* 1024 GiB\. Make/,
    ),
  );
  const large = await client.compile(iota('tensor<68719476736xf32>'));
  const refusal = isPjrtError(
    'PJRT_OUT_OF_MEMORY',
    /takes 256 GiB .*this machine has [\d.]+ GiB\. Make/,
  );
  await assert.rejects(large.execute([]), refusal);
  assert.throws(() => large.executeSync([]), refusal);
  large.close();
  await assertComputes(client);
  assert.equal(client.numOpen, numOpen);
  client.close();
});

test('the size of an array is read from its type', () => {
  for (const type of [
    'tensor<1048576x524288xi1>',
    'tensor<68719476736xf64>',
    'tensor<68719476736xcomplex<f32>>',
  ])
    assert.throws(
      () => {
        checkArraySizes(`%0 = stablehlo.iota dim = 0 : ${type}`);
      },
      { code: 'PJRT_OUT_OF_MEMORY' },
    );
  checkArraySizes(
    'tensor<137438953472xbf16> tensor<f32> tensor<?xf32> tensor<274877906944xui8> tensor<0x549755813888xf32>',
  );
});

test('what several devices of a machine take is added up', () => {
  const memory = {
    generatedCodeBytes: 0,
    argumentBytes: 4,
    outputBytes: 3,
    aliasBytes: 2,
    tempBytes: 5,
    peakBytes: 0,
  };
  checkFits(memory, { numDevices: 2, limitBytes: 20 });
  assert.throws(
    () => {
      checkFits(memory, { numDevices: 2, limitBytes: 19 });
    },
    { code: 'PJRT_OUT_OF_MEMORY' },
  );
});

// The plugin at PLUGIN, but every execution after the first fails as on a GPU that is gone or out of memory.
const FAILING_PLUGIN = `
#include <dlfcn.h>
#include <string.h>
typedef struct { size_t size; void *extension; void *error; const char *message; size_t message_size; } Message;
typedef struct { size_t size; void *extension; void *error; int code; } Code;
typedef void *(*Function)(void *);
enum { DESTROY = 0, MESSAGE = 1, CODE = 2, EXECUTE = 55, TABLE = 40 };
static char table[65536], failure;
static Function destroy, message, code, execute;
static int executions;
static Function *at(int index) { return (Function *)(table + TABLE + 8 * index); }
static void *my_destroy(void *args) { return ((Message *)args)->error == &failure ? 0 : destroy(args); }
static void *my_message(void *args) {
  Message *m = args;
  if (m->error != &failure) return message(args);
  m->message = SAYS; m->message_size = strlen(SAYS);
  return 0;
}
static void *my_code(void *args) {
  Code *c = args;
  if (c->error != &failure) return code(args);
  c->code = STATUS;
  return 0;
}
static void *my_execute(void *args) { return executions++ ? &failure : execute(args); }
void *GetPjrtApi(void) {
  void *library = dlopen(PLUGIN, RTLD_NOW | RTLD_LOCAL);
  char *real = ((void *(*)(void))dlsym(library, "GetPjrtApi"))();
  memcpy(table, real, *(size_t *)real);
  destroy = *at(DESTROY); *at(DESTROY) = my_destroy;
  message = *at(MESSAGE); *at(MESSAGE) = my_message;
  code = *at(CODE); *at(CODE) = my_code;
  execute = *at(EXECUTE); *at(EXECUTE) = my_execute;
  return table;
}`;

const skip = spawnSync('cc', ['--version']).status === 0 ? false : 'needs a C compiler';
test(
  'a device that is lost or full is an error of its own, after which another plugin computes',
  { skip },
  async () => {
    const folder = await temporaryFolder('failing');
    const plugin = await cpuPlugin();
    for (const [name, status, says, code, advice] of [
      [
        'lost',
        13,
        'Failed to launch CUDA kernel: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered',
        'PJRT_DEVICE_LOST',
        /ILLEGAL_ADDRESS.*start it again from its last checkpoint/,
      ],
      ['amd', 13, 'hipErrorLaunchFailure', 'PJRT_DEVICE_LOST', /start it again/],
      [
        'full',
        8,
        'Out of memory while trying to allocate 17179869184 bytes.',
        'PJRT_OUT_OF_MEMORY',
        /17179869184 bytes\. Make the batch/,
      ],
      [
        'other',
        13,
        'CUDA_ERROR_INVALID_VALUE: of one call',
        'PJRT_EXECUTE_FAILED',
        /INTERNAL: CUDA_ERROR_INVALID_VALUE/,
      ],
    ] as const) {
      const path = join(folder, `${name}.so`);
      const defines = [`-DPLUGIN="${plugin}"`, `-DSAYS="${says}"`, `-DSTATUS=${status}`];
      execFileSync('cc', ['-shared', '-fPIC', ...defines, '-x', 'c', '-', '-o', path, '-ldl'], {
        input: FAILING_PLUGIN,
      });
      const client = await openPjrtClient({ pluginPath: path });
      await assertComputes(client);
      await assert.rejects(assertComputes(client), isPjrtError(code, advice));
      client.close();
    }
    const healthy = await openPjrtClient({ pluginPath: plugin });
    await assertComputes(healthy);
    healthy.close();
  },
);
