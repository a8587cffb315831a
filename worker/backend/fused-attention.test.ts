import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';

import * as tf from '@tensorflow/tfjs-core';

import { openRng } from '../../proto/random.ts';
import { dotProductAttention } from '../layers/dot-product-attention.ts';
import { findDriver } from '../pjrt/driver.ts';
import { findPlugin, pluginCacheDir } from '../pjrt/plugin.ts';
import { isPjrtError, openCpuClient } from '../pjrt/test/client.ts';
import { HloBuilder } from '../stablehlo/ops.ts';
import { openEngine } from './engine.ts';
import { canFuseAttention, fusedAttention, fusedAttentionGradients } from './fused-attention.ts';

/** What JAX lowers the same attention to, for CUDA; `fused-attention-reference.py` made it. */
interface Reference {
  readonly query: number[];
  readonly key: number[];
  readonly bias?: number[];
  readonly calls: readonly {
    readonly target: string;
    readonly config: unknown;
    readonly types: string;
    readonly operand_layouts: string;
    readonly result_layouts: string;
  }[];
}

const FIXTURE = join(import.meta.dirname, 'test/fixtures/fused-attention.json');
const CASES = JSON.parse(readFileSync(FIXTURE, 'utf8')) as Record<string, Reference>;

function callsIn(text: string): Reference['calls'] {
  return text
    .split('\n')
    .filter((line) => line.includes('custom_call'))
    .map((line) => {
      const one = (pattern: RegExp): string => pattern.exec(line)![1]!;
      const config = one(/backend_config = "([^"]*)"/);
      return {
        target: one(/call_target_name = "([^"]*)"/),
        config: JSON.parse(
          config.replace(/\\([0-9A-F]{2})/g, (_, code: string) =>
            String.fromCharCode(parseInt(code, 16)),
          ),
        ) as unknown,
        types: one(/ : (\([^:]*\) -> .*)$/),
        operand_layouts: one(/operand_layouts = \[(.*?)\](?=, )/),
        result_layouts: one(/result_layouts = \[(.*?)\](?=\})/),
      };
    });
}

for (const [name, { query, key, bias, calls }] of Object.entries(CASES)) {
  test(`attention that is ${name} asks cuDNN as JAX does, in both passes`, () => {
    const hlo = new HloBuilder({ productType: 'bf16' });
    const float = (shape: number[]) => hlo.parameter({ shape, elementType: 'f32' });
    const operands = {
      ...{ query: float(query), key: float(key), value: float(key) },
      ...(bias === undefined ? {} : { bias: float(bias) }),
    };
    assert.ok(canFuseAttention(operands));
    const cotangent = float(query);
    const { output, residuals } = fusedAttention(hlo, operands);
    const gradients = fusedAttentionGradients(hlo, operands, cotangent, residuals);
    assert.deepEqual(output.shape, query);
    assert.deepEqual(
      gradients.map(({ shape }) => shape),
      [query, key, key],
    );
    const found = callsIn(hlo.print('attention', [output, ...gradients]));
    assert.deepEqual(found, calls);
  });
}

test('a bias that is broadcast reaches cuDNN with the lengths of the scores', () => {
  const hlo = new HloBuilder({ productType: 'bf16' });
  const [query, key] = [CASES['masked']!.query, CASES['masked']!.key];
  const float = (shape: number[]) => hlo.parameter({ shape, elementType: 'f32' });
  const operands = { query: float(query), key: float(key), value: float(key) };
  const { output } = fusedAttention(hlo, { ...operands, bias: float([3, 1, 1, 16]) });
  const [call] = callsIn(hlo.print('attention', [output]));
  assert.match(call!.types, /tensor<3x1x16x16xbf16>\) ->/);
});

test('shapes that cuDNN has no kernel for are left to products and a softmax', () => {
  const shapes = (query: number[], key: number[], bias?: number[]) =>
    canFuseAttention({
      ...{ query: { shape: query }, key: { shape: key }, value: { shape: key } },
      bias: bias && { shape: bias },
    });
  assert.ok(shapes([2, 4, 63, 64], [2, 4, 63, 64]));
  assert.ok(!shapes([2, 4, 63, 64], [2, 4, 63, 64], [1, 1, 63, 63]), 'odd lengths with a bias');
  assert.ok(!shapes([2, 4, 64, 36], [2, 4, 64, 36]), 'width no multiple of eight');
  assert.ok(!shapes([2, 4, 64, 256], [2, 4, 64, 256]), 'heads too wide');
  assert.ok(!shapes([2, 4, 64, 64], [2, 3, 64, 64]), 'heads that no group divides');
});

test('the text of the calls is well-formed: a plugin without cuDNN misses the target alone', async () => {
  const client = await openCpuClient();
  try {
    const hlo = new HloBuilder({ productType: 'bf16' });
    const x = hlo.parameter({ shape: [2, 4, 64, 32], elementType: 'f32' });
    const { output } = fusedAttention(hlo, { query: x, key: x, value: x });
    const missing = /__cudnn\$fmhaSoftmax/;
    const program = hlo.print('attention', [output]);
    await assert.rejects(client.compile(program), isPjrtError('PJRT_COMPILE_FAILED', missing));
  } finally {
    client.close();
  }
});

const cacheDir = pluginCacheDir(process.env);
const plugin =
  (await findPlugin({ name: 'cuda13', cacheDir })) ??
  (await findPlugin({ name: 'cuda12', cacheDir }));
const skip =
  (await findDriver('nvidia')) === undefined
    ? 'there is no driver of nvidia'
    : plugin === undefined
      ? 'no plugin for its GPU is installed'
      : false;
/** Of results near 1 in bfloat16, whose neighbours are 2^-8 apart, through two products and a softmax. */
const TOLERANCE = 0.03;

test(
  'on a GPU fused attention gives what products and a softmax give, and so do its gradients',
  { skip },
  async () => {
    const [seed, shape] = [5, [2, 4, 64, 64]];
    const rng = openRng(seed, 'attention');
    const draw = (): Float32Array =>
      Float32Array.from({ length: 2 * 4 * 64 * 64 }, () => rng.normal());
    const inputs = [draw(), draw(), draw()];
    const run = async (precision: 'bfloat16' | 'float32'): Promise<Float32Array[]> => {
      const options = {
        engine: 'xla',
        pluginPath: plugin!,
        memoryFraction: 0.2,
        precision,
      } as const;
      const engine = await openEngine({ ...options, cacheDir: dirname(cacheDir) });
      try {
        const attend = (query: tf.Tensor, key: tf.Tensor, value: tf.Tensor): tf.Tensor =>
          dotProductAttention({ query, key, value });
        const program = engine.compile(
          (q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) => [
            attend(q, k, v),
            ...tf.grads((...given: tf.Tensor[]) =>
              tf.sum(tf.square(attend(given[0]!, given[1]!, given[2]!))),
            )([q, k, v]),
          ],
          { name: 'attention' },
        );
        const results = await program(
          ...(inputs.map((x) => engine.upload(x, shape)) as [tf.Tensor, tf.Tensor, tf.Tensor]),
        );
        return await Promise.all(results.map(async (x) => (await x.data()) as Float32Array));
      } finally {
        engine.close();
      }
    };
    const [fused, plain] = [await run('bfloat16'), await run('float32')];
    for (const [k, expected] of plain.entries()) {
      const largest = expected.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      const apart = expected.reduce((most, x, i) => Math.max(most, Math.abs(x - fused[k]![i]!)), 0);
      assert.ok(
        apart <= TOLERANCE * largest,
        `result ${k}: ${apart} apart of ${largest}, seed ${seed}`,
      );
    }
  },
);
