import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { before, describe, it } from 'node:test';
import { temporaryFolder } from '../../../proto/test/temporary-folder.ts';
import { readPretrainedTokenizer } from '../../../video/text/pretrained-tokenizer.ts';
import { runPeer, whyNoPeer } from '../parity/peer.ts';
import { compareChats, compareTokenizer, TOKENIZERS } from '../parity/texts.ts';

const missing = await whyNoPeer();

describe('tokenizers of pretrained models', { skip: missing ?? false }, () => {
  let folder: string;

  before(async () => {
    folder = await temporaryFolder('texts');
    await runPeer('texts.py', folder);
  });

  for (const name of TOKENIZERS) {
    it(`${name}: awkward texts become the ids of Python's tokenizers, and come back as its texts`, async () => {
      const { numCases, different } = await compareTokenizer(path.join(folder, name));
      assert.ok(numCases > 50);
      assert.deepEqual(different, []);
    });
  }

  for (const name of ['bert-unsaid', 'llama2-map']) {
    it(`${name}: special tokens that tokenizer_config.json does not tell are those that AutoTokenizer finds`, async () => {
      const text = await readFile(path.join(folder, name, 'roles.json'), 'utf8');
      const wanted = JSON.parse(text) as Record<string, number | null>;
      assert.ok(Object.values(wanted).some((id) => id !== null));
      const { special } = await readPretrainedTokenizer(path.join(folder, name));
      assert.deepEqual(
        Object.fromEntries(Object.entries(special).map(([role, id]) => [role, id ?? null])),
        wanted,
      );
    });
  }

  it('chat templates write what apply_chat_template does, and refuse what it refuses', async () => {
    const cases = JSON.parse(await readFile(path.join(folder, 'chat.json'), 'utf8')) as {
      error?: string;
    }[];
    assert.ok(cases.some(({ error }) => error !== undefined));
    const { numCases, different } = await compareChats(folder);
    assert.ok(numCases > 20);
    assert.deepEqual(different, []);
  });
});
