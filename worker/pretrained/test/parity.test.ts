import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import { userCacheDir } from '../../../proto/user-cache.ts';
import { openEngine, type Engine } from '../../backend/engine.ts';
import { compareModel, MODEL_NAMES, TOLERANCE, worstOf } from '../parity/compare.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';

const missing = await whyNoPeer();

describe('models are those of transformers', { skip: missing ?? false }, () => {
  let engine: Engine;
  let folder: string;

  before(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'videoloom-parity-'));
    await runPeer('parity.py', 'make', folder, ...MODEL_NAMES);
    engine = await openEngine({ engine: 'xla', cacheDir: userCacheDir(process.env) });
  });
  after(async () => {
    engine.close();
    await rm(folder, { recursive: true, force: true });
  });

  for (const name of MODEL_NAMES) {
    it(`${name}: logits, hidden states and gradients (float32, ${TOLERANCE})`, async (t) => {
      const exported = path.join(folder, `${name}-exported`);
      const { outputs, gradients } = await compareModel(engine, path.join(folder, name), exported);
      for (const { name: own, difference, largest } of outputs) {
        assert.ok(difference <= TOLERANCE, `${own} is off by ${difference}`);
        assert.ok(largest > 100 * TOLERANCE, `${own} is too small to tell: at most ${largest}`);
      }
      for (const { name: own, difference } of gradients)
        assert.ok(difference <= TOLERANCE, `the gradient of ${own} is off by ${difference}`);
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
