import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { userCacheDir } from '../../../proto/user-cache.mjs';
import { openEngine, type Engine, type EngineName } from '../../backend/engine.ts';
import { compareModel, MODEL_NAMES, TOLERANCE, worstOf } from '../parity/compare.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';

/** Those of loops, which are programs of their own; the rest is compiled by `npm run parity`, which takes minutes. */
const COMPILED = ['bert', 'llama-grouped', 'opt-pre'] as const;

const missing = await whyNoPeer();

describe('models are those of transformers', { skip: missing ?? false }, () => {
  const engines: Partial<Record<EngineName, Engine>> = {};
  let folder: string;

  before(async () => {
    folder = await temporaryFolder('parity');
    await runPeer('parity.py', 'make', folder, ...MODEL_NAMES);
    for (const engine of ['cpu', 'xla'] as const)
      engines[engine] = await openEngine({ engine, cacheDir: userCacheDir(process.env) });
  });
  after(() => {
    for (const engine of Object.values(engines)) engine.close();
  });

  const cases = [
    ...MODEL_NAMES.map((name) => ({ name, engine: 'cpu' as const })),
    ...COMPILED.map((name) => ({ name, engine: 'xla' as const })),
  ];
  for (const { name, engine } of cases) {
    it(`${name}, ${engine}: logits, hidden states and gradients (float32, ${TOLERANCE})`, async (t) => {
      const exported = path.join(folder, `${name}-exported`);
      const own = engines[engine]!;
      const { outputs, gradients } = await compareModel(own, path.join(folder, name), exported);
      for (const { name: output, difference, largest } of outputs) {
        assert.ok(difference <= TOLERANCE, `${output} is off by ${difference}`);
        assert.ok(largest > 100 * TOLERANCE, `${output} is too small to tell: at most ${largest}`);
      }
      for (const { name: at, difference } of gradients)
        assert.ok(difference <= TOLERANCE, `the gradient of ${at} is off by ${difference}`);
      const known = gradients.filter(({ largest }) => largest > 100 * TOLERANCE);
      assert.ok(known.length > 0.7 * gradients.length, 'most gradients are too small to tell');
      const [output, gradient] = [worstOf(outputs), worstOf(gradients)];
      t.diagnostic(
        `largest difference ${output.difference} (${output.name}), of gradients ${gradient.difference} (${gradient.name})`,
      );
    });
  }

  it('what is exported loads there and gives the same', async () => {
    const lines = (await runPeer('parity.py', 'check', folder, ...MODEL_NAMES)).trim().split('\n');
    for (const [i, line] of lines.entries()) {
      const { name, difference, ...names } = JSON.parse(line) as Record<string, unknown>;
      assert.equal(name, MODEL_NAMES[i]);
      assert.deepEqual(
        names,
        { missing_keys: [], unexpected_keys: [], mismatched_keys: [] },
        MODEL_NAMES[i],
      );
      assert.ok(
        Number(difference) <= TOLERANCE,
        `${MODEL_NAMES[i]!} is off by ${String(difference)}`,
      );
    }
    assert.equal(lines.length, MODEL_NAMES.length);
  });
});
