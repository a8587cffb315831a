import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openPjrtClient, type PjrtClient } from '../pjrt/client.ts';
import { cpuPlugin } from '../pjrt/test/client.ts';
import type { Sharding } from '../stablehlo/sharding.ts';
import { spreadFromHost, spreadToHost, spreadToHostSync } from './spread.ts';

const MESH = { data: 2, tensor: 3 };
let client: PjrtClient;
before(async () => {
  process.env['NPROC'] = '12'; // two threads a device
  client = await openPjrtClient({
    pluginPath: await cpuPlugin(),
    clientOptions: { cpu_device_count: 6 },
  });
});
after(() => {
  client.close();
});

/** What device (i, j) of the mesh has of the elements 0, 1, 2, ... of shape [4, 6, 3], by the definition. */
function expectedPart(sharding: Sharding, i: number, j: number): number[] {
  const at: Record<string, number> = { data: i, tensor: j };
  const inPart = (dimension: number, size: number, index: number): boolean => {
    let [low, high] = [0, size];
    for (const axis of sharding[dimension] ?? []) {
      const length = (high - low) / MESH[axis as keyof typeof MESH];
      low += at[axis]! * length;
      high = low + length;
    }
    return index >= low && index < high;
  };
  const elements: number[] = [];
  for (let a = 0; a < 4; a++)
    for (let b = 0; b < 6; b++)
      for (let c = 0; c < 3; c++)
        if (inPart(0, 4, a) && inPart(1, 6, b) && inPart(2, 3, c))
          elements.push((a * 6 + b) * 3 + c);
  return elements;
}

for (const sharding of [
  [],
  [['data']],
  [[], ['tensor']],
  [['data'], ['tensor']],
  [[], [], ['tensor']],
  [[], ['data', 'tensor']],
  [[], ['tensor', 'data']],
  [['data'], [], ['tensor']],
] satisfies Sharding[]) {
  test(`sharding ${JSON.stringify(sharding)} gives each device its part, and the parts the whole`, async () => {
    const shape = [4, 6, 3];
    const data = Int32Array.from({ length: 72 }, (_, index) => index);
    const spread = spreadFromHost(client, MESH, sharding, { data, shape, type: 's32' });
    for (const [device, part] of spread.parts.entries()) {
      const expected = expectedPart(sharding, Math.floor(device / 3), device % 3);
      assert.deepEqual([...(await part.toHost())].map(Number), expected, `device ${device}`);
    }
    assert.deepEqual(await spreadToHost(spread), data);
    assert.deepEqual(spreadToHostSync(spread), data);
  });
}

test('parts without elements and scalars travel too', async () => {
  const empty = { data: new Float32Array(), shape: [4, 0], type: 'f32' } as const;
  const none = spreadFromHost(client, MESH, [['data']], empty);
  assert.deepEqual(await spreadToHost(none), new Float32Array());
  const scalar = { data: Float32Array.of(2.5), shape: [], type: 'f32' } as const;
  assert.deepEqual(
    await spreadToHost(spreadFromHost(client, MESH, [], scalar)),
    Float32Array.of(2.5),
  );
});
