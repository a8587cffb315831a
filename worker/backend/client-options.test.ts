import assert from 'node:assert/strict';
import { test } from 'node:test';

import { PLUGINS } from '../pjrt/plugin.ts';
import { clientOptions } from './client-options.ts';

test('plugins of GPUs are told how much memory to take, and no other is', () => {
  for (const { name, builds } of PLUGINS) {
    for (const { libraryPathInWheel } of Object.values(builds)) {
      const expected = name === 'cpu' ? {} : { memory_fraction: 0.5, preallocate: true };
      assert.deepEqual(clientOptions(`/cache/${libraryPathInWheel}`, 0.5), expected, name);
    }
  }
  assert.deepEqual(clientOptions('/opt/xla_cuda_plugin.so'), {
    memory_fraction: 0.75,
    preallocate: true,
  });
  assert.deepEqual(clientOptions('/home/cuda/my-cpu.so', 0.5), {}, 'folders do not count');
});
