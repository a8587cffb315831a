import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { evidenceOf, resolveConfig } from '../config.ts';
import { MODEL_NAMES } from '../pretrained/parity/compare.ts';
import { shownRecipes } from './systems-report.ts';

describe('evidence of recipes', async () => {
  for (const { name, evidence, lastStage } of await shownRecipes()) {
    it(`${name}: its ablation is another config, and its models are compared with transformers`, async () => {
      const file = join(import.meta.dirname, '..', 'recipes', `${name}.yaml`);
      const text = await readFile(file, 'utf8');
      const source = { text, file, overrides: [], stage: lastStage };
      const ablated = resolveConfig({ ...source, preset: evidence.ablation });
      assert.notDeepEqual(ablated, resolveConfig(source));
      for (const model of evidence.parity)
        assert.ok((MODEL_NAMES as readonly string[]).includes(model), model);
    });
  }

  it('evidence that is not as it has to be is refused with the recipe and the field', () => {
    const text = 'evidence: { figure: a, ablation: b, without: c, margin: much, parity: [] }';
    assert.throws(() => evidenceOf({ text, file: 'own.yaml' }), {
      code: 'CONFIG_INVALID',
      message: /own\.yaml.*margin/s,
    });
    assert.equal(evidenceOf({ text: 'model: {}', file: 'own.yaml' }), undefined);
  });
});
