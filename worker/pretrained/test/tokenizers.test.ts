import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, it } from 'node:test';
import {
  openPretrainedTokenizer,
  readPretrainedTokenizer,
  type ChatMessage,
} from '../../../video/text/pretrained-tokenizer.ts';
import { runPeer } from './decoder-peer.ts';

interface TextCase {
  readonly text: string;
  /** With and without special tokens. */
  readonly ids: number[];
  readonly bare: number[];
  /** Without and with special tokens. */
  readonly decoded: string;
  readonly all: string;
}

interface ChatCase {
  readonly name: string;
  readonly template: string;
  readonly messages: ChatMessage[];
  readonly addGenerationPrompt: boolean;
  readonly tools?: unknown[];
  readonly text?: string;
  readonly error?: string;
}

describe('tokenizers of pretrained models', () => {
  let folder: string;

  before(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'videoloom-texts-'));
    await runPeer('texts.py', folder);
  });
  after(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  for (const name of ['gpt2', 'smollm', 'llama3', 'llama2', 'bert']) {
    it(`${name}: awkward texts become the ids of Python's tokenizers, and come back as its texts`, async () => {
      const tokenizer = await readPretrainedTokenizer(path.join(folder, name));
      const cases = JSON.parse(
        await readFile(path.join(folder, name, 'cases.json'), 'utf8'),
      ) as TextCase[];
      assert.ok(cases.length > 50);
      for (const { text, ids, bare, decoded, all } of cases) {
        const label = JSON.stringify(text);
        assert.deepEqual(tokenizer.encode(text), ids, label);
        assert.deepEqual(tokenizer.encode(text, { addSpecialTokens: false }), bare, label);
        assert.equal(tokenizer.decode(ids), decoded, label);
        assert.equal(tokenizer.decode(ids, { skipSpecialTokens: false }), all, label);
      }
    });
  }

  it('chat templates write what apply_chat_template does, and refuse what it refuses', async () => {
    const file = JSON.parse(
      await readFile(path.join(folder, 'llama2', 'tokenizer.json'), 'utf8'),
    ) as object;
    const cases = JSON.parse(await readFile(path.join(folder, 'chat.json'), 'utf8')) as ChatCase[];
    assert.ok(cases.some(({ error }) => error !== undefined));
    for (const { name, template, messages, addGenerationPrompt, tools, text } of cases) {
      const config = { bos_token: '<s>', eos_token: '</s>', chat_template: template };
      const tokenizer = openPretrainedTokenizer({ tokenizer: file, config });
      const write = (): string =>
        tokenizer.chat(messages, {
          addGenerationPrompt,
          ...(tools === undefined ? {} : { variables: { tools } }),
        });
      const label = `${name} ${JSON.stringify(messages)}`;
      if (text === undefined) assert.throws(write, { code: 'TOKENIZER_BAD_CHAT' }, label);
      else assert.equal(write(), text, label);
    }
  });
});
