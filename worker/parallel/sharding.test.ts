import assert from 'node:assert/strict';
import { test } from 'node:test';
import { UsageError } from '../../proto/errors.ts';
import {
  meshAxes,
  parameterShardings,
  rowParts,
  rowSharding,
  type ParallelConfig,
} from './sharding.ts';

const PARAMETERS: [string, { shape: number[] }][] = [
  ['text', { shape: [512, 96] }],
  ['blocks/0/attention/qkv/kernel', { shape: [96, 288] }],
  ['blocks/0/attention/qkv/bias', { shape: [288] }],
  ['blocks/0/mlpIn/kernel', { shape: [96, 384] }],
  ['blocks/0/mlpIn/bias', { shape: [384] }],
  ['blocks/0/mlpOut/kernel', { shape: [384, 96] }],
  ['blocks/0/mlpOut/bias', { shape: [96] }],
  ['blocks/1/mlpIn/kernel', { shape: [96, 384] }],
  ['head/bias', { shape: [7] }],
];

function parallel(change: Partial<ParallelConfig> = {}): ParallelConfig {
  return { mesh: { data: null, fsdp: 1, tensor: 1 }, fsdpMinElements: 64, rules: [], ...change };
}

function refusal(mesh: Record<string, number>, rules: ParallelConfig['rules']): string {
  try {
    parameterShardings(mesh, parallel({ rules }), PARAMETERS);
  } catch (error) {
    assert.ok(error instanceof UsageError);
    assert.equal(error.code, 'SHARDING_INVALID');
    return error.message;
  }
  assert.fail('it was taken');
}

test('along fsdp, the largest dimension that divides is cut, of parameters that are large enough', () => {
  const plan = parameterShardings({ data: 1, fsdp: 4, tensor: 1 }, parallel(), PARAMETERS);
  assert.deepEqual(plan.get('text'), [['fsdp']]);
  assert.deepEqual(plan.get('blocks/0/mlpIn/kernel'), [[], ['fsdp']]);
  assert.deepEqual(plan.get('blocks/0/mlpOut/kernel'), [['fsdp']]);
  assert.deepEqual(plan.get('head/bias'), [], 'seven elements are few');
  const seven = parameterShardings({ fsdp: 4 }, parallel({ fsdpMinElements: 0 }), PARAMETERS);
  assert.deepEqual(seven.get('head/bias'), [], 'and do not divide by four');
  const others = parameterShardings({ fsdp: 5 }, parallel(), PARAMETERS);
  assert.ok([...others.values()].every((sharding) => sharding.length === 0));
});

test('a rule holds for the tree below its path, counted from the last dimension', () => {
  const rules = [
    { path: 'blocks/*/mlpIn', axes: [null, 'tensor' as const] },
    { path: '**/mlpOut', axes: ['tensor' as const, null] },
  ];
  const plan = parameterShardings({ data: 2, fsdp: 1, tensor: 2 }, parallel({ rules }), PARAMETERS);
  assert.deepEqual(plan.get('blocks/0/mlpIn/kernel'), [[], ['tensor']]);
  assert.deepEqual(plan.get('blocks/1/mlpIn/kernel'), [[], ['tensor']]);
  assert.deepEqual(plan.get('blocks/0/mlpIn/bias'), [['tensor']]);
  assert.deepEqual(plan.get('blocks/0/mlpOut/kernel'), [['tensor']]);
  assert.deepEqual(plan.get('blocks/0/mlpOut/bias'), []);
  assert.deepEqual(plan.get('blocks/0/attention/qkv/kernel'), []);
});

test('fsdp cuts what a rule left whole, and the first rule that fits counts', () => {
  const rules = [
    { path: 'blocks/0/mlpIn', axes: [['tensor' as const, 'fsdp' as const]] },
    { path: 'blocks/**', axes: ['tensor' as const] },
  ];
  const plan = parameterShardings({ fsdp: 2, tensor: 2 }, parallel({ rules }), PARAMETERS);
  assert.deepEqual(plan.get('blocks/0/mlpIn/kernel'), [[], ['tensor', 'fsdp']]);
  assert.deepEqual(plan.get('blocks/1/mlpIn/kernel'), [['fsdp'], ['tensor']]);
  assert.deepEqual(plan.get('text'), [['fsdp']]);
});

test('of stacked layers each is cut, not the stack', () => {
  const stacked: typeof PARAMETERS = [['blocks/*/mlpIn/kernel', { shape: [512, 96, 384] }]];
  const rules = [{ path: 'blocks/*/mlpIn', axes: [null, 'tensor' as const] }];
  const plan = parameterShardings({ fsdp: 4, tensor: 2 }, parallel({ rules }), stacked);
  assert.deepEqual(plan.get('blocks/*/mlpIn/kernel'), [[], ['fsdp'], ['tensor']]);
});

test('a rule that cannot hold is refused with its place and the reason', () => {
  assert.equal(
    refusal({ tensor: 2 }, [{ path: 'blocks/*/mlpin', axes: ['tensor'] }]),
    'parallel.rules[0].path is blocks/*/mlpin, and the model has no such parameters; did you mean blocks/*/mlpIn?',
  );
  assert.match(
    refusal({ tensor: 7 }, [{ path: 'blocks/0/mlpIn', axes: [null, 'tensor'] }]),
    /^parallel\.rules\[0\]\.axes for blocks\/0\/mlpIn\/kernel \[96, 384\]: dimension 1 \(384\) does not divide into the 7 parts of tensor;/,
  );
  assert.match(
    refusal({ tensor: 2 }, [{ path: 'text', axes: ['tensor', 'tensor'] }]),
    /for text \[512, 96\]: tensor is named twice/,
  );
});

test('rows are cut along data and fsdp, and axes of one device are left out', () => {
  assert.deepEqual(rowSharding({ data: 2, fsdp: 2, tensor: 2 }), [['data', 'fsdp']]);
  assert.deepEqual(rowSharding({ data: 2, fsdp: 1, tensor: 2 }), [['data']]);
  assert.deepEqual(rowSharding({ data: 1, fsdp: 1, tensor: 2 }), []);
  assert.equal(rowParts({ data: 2, fsdp: 3, tensor: 2 }), 6);
  assert.deepEqual(meshAxes(parallel()), { data: 'rest', fsdp: 1, tensor: 1 });
});
