import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { evidenceOf, resolveConfig, stagesOf } from '../config.ts';
import { MODEL_NAMES } from '../pretrained/parity/compare.ts';
import { shownRecipes, stageKeys } from './systems-report.ts';

describe('evidence of recipes', async () => {
  for (const { name, evidence, text } of await shownRecipes()) {
    it(`${name}: its ablation is another config, and its models are compared with transformers`, () => {
      const source = { text, file: name, overrides: [], stage: stagesOf(text).at(-1) };
      const ablated = resolveConfig({ ...source, preset: evidence.ablation });
      assert.notDeepEqual(ablated, resolveConfig(source));
      for (const model of evidence.parity)
        assert.ok((MODEL_NAMES as readonly string[]).includes(model), model);
    });
  }

  it('what an ablation leaves alone is trained once, and all behind a change anew', async () => {
    const { text } = (await shownRecipes()).find(({ name }) => name === 'video-llama')!;
    const keys = (preset?: string, overrides: string[] = []) =>
      stageKeys('video-llama', { text, preset, overrides });
    const [whole, deaf] = [keys(), keys('deaf')];
    const same = [...whole].filter(([stage, key]) => deaf.get(stage) === key);
    assert.deepEqual(
      same.map(([stage]) => stage),
      ['language', 'bind', 'represent', 'listen'],
    );
    // Its own config is the same, and what it begins from is not.
    assert.notEqual(keys(undefined, ['train.seed=2']).get('instruction'), whole.get('instruction'));
    const other = text.replace('train: { steps: 200 }', 'train: { steps: 201 }');
    const changed = stageKeys('video-llama', { text: other, overrides: [] });
    assert.notEqual(changed.get('instruction'), whole.get('instruction'));
  });

  it('evidence that is not as it has to be is refused with the recipe and the field', () => {
    const text = 'evidence: { figure: a, ablation: b, without: c, margin: much, parity: [] }';
    assert.throws(() => evidenceOf({ text, file: 'own.yaml' }), {
      code: 'CONFIG_INVALID',
      message: /own\.yaml.*margin/s,
    });
    assert.equal(evidenceOf({ text: 'model: {}', file: 'own.yaml' }), undefined);
  });
});
