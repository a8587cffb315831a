/** What paper presets put before a conversation is what their language models' own tokenizers put before a text. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { asOwnTokenizer, openPretrainedTokenizer } from '../../video/text/pretrained-tokenizer.ts';
import { resolveConfig, stagesOf } from '../config.ts';
import { assembleDialogues, filledTemplate, type Piece } from './dialogue.ts';

const CHARACTERS = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i));

/** A tokenizer of single characters that begins a text as LLaMA's (`<s>`) or OPT's (`</s>`) does. */
function tokenizerThatBegins(begin: '<s>' | '</s>') {
  const special = ['<unk>', '<s>', '</s>'];
  const vocab = Object.fromEntries([...special, ...CHARACTERS].map((piece, id) => [piece, id]));
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const tokenizer = {
    version: '1.0',
    added_tokens: special.map((content, id) => ({ id, content, special: true, ...flags })),
    normalizer: null,
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: begin, type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { [begin]: { id: begin, ids: [vocab[begin]], tokens: [begin] } },
    },
    decoder: { type: 'Fuse' },
    model: { type: 'BPE', vocab, merges: [], unk_token: '<unk>', fuse_unk: true },
  };
  const config = { bos_token: begin, eos_token: '</s>', unk_token: '<unk>' };
  return openPretrainedTokenizer({ tokenizer, config });
}

const SEEN: Piece = { numSoft: 3 };
let numTemplates = 0;

for (const recipe of [
  'blip2',
  'video-llama',
  'video-llava',
  'frozen',
  'llava-dpo',
  'minigpt4',
  'minigpt4-video',
  'minigpt-v2',
]) {
  test(`${recipe}: a conversation begins as its language model's tokenizer begins a text`, async () => {
    const text = await readFile(new URL(`../recipes/${recipe}.yaml`, import.meta.url), 'utf8');
    for (const stage of stagesOf(text, 'paper')) {
      const { model } = resolveConfig({
        ...{ text, file: recipe, preset: 'paper', stage, overrides: [] },
      });
      const { template, language } = model as unknown as {
        readonly template?: string;
        readonly language?: { readonly kind: string };
      };
      if (template === undefined || language === undefined) continue;
      numTemplates++;
      const isOpt = language.kind === 'opt';
      const theirs = tokenizerThatBegins(isOpt ? '</s>' : '<s>');
      const tokenizer = asOwnTokenizer(theirs, { rows: 0, place: recipe });
      const names = [...template.matchAll(/\{(\w+)\}/g)].map(([, name]) => name!);
      const values = Object.fromEntries(
        names.map((name) => [name, name === 'question' ? [{ words: 'what ?' }] : [SEEN]]),
      );
      const { ids, present, softRows } = assembleDialogues({ tokenizer, length: 200 }, [
        filledTemplate(template, values),
      ]);
      const all = [...ids.data].slice(
        0,
        present.data.reduce((a, b) => a + b, 0),
      );
      const firstSoft = softRows.data.indexOf(0);
      // BLIP-2's processor: what is seen stands "even before BOS token".
      const from = isOpt ? 3 : 0;
      assert.equal(firstSoft === 0, isOpt, `${stage}: ${template}`);
      const words = all.slice(from, isOpt ? all.length : firstSoft);
      const written = theirs.decode(words);
      assert.deepEqual(words, theirs.encode(written), `${stage}: ${template}`);
      assert.equal(all.filter((id) => id === words[0]).length, 1, 'begun once');
    }
  });
}

test('every paper preset with a language model was looked at', () => {
  assert.equal(numTemplates, 17);
});
