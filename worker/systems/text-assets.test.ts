/** The tokenizer of a run that begins with somebody else's table of words. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { temporaryFolder } from '../../proto/test/temporary-folder.ts';
import type { FitContext, InitialWords } from './system.ts';
import { fitTokenizer } from './text-assets.ts';

const TEXTS = ['a red circle moves left', 'a blue star moves up'];

async function fit(words: InitialWords) {
  const folder = await temporaryFolder('run');
  const index = { train: TEXTS.map((text) => ({ text })) };
  const context = { index, folder, initialWords: [words] } as unknown as FitContext;
  return fitTokenizer(context, 60);
}

describe('the tokenizer of words that a run begins with', () => {
  it('is refused where the folder has none, instead of another one trained for its rows', async () => {
    const folder = await temporaryFolder('model');
    await writeFile(join(folder, 'vocab.json'), '{}');
    await assert.rejects(fit({ folder, rows: 60 }), (error: Error & { code?: string }) => {
      assert.equal(error.code, 'TOKENIZER_INVALID');
      assert.ok(error.message.includes(folder));
      assert.match(error.message, /no tokenizer\.json.*save_pretrained/);
      return true;
    });
  });

  it('is trained where what a run begins with is a run without words', async () => {
    const folder = await temporaryFolder('wordless');
    const own = await fit({ folder });
    assert.equal(own.decode(own.encode('a red star')), 'a red star');
  });
});
