import { copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { exists } from '../../proto/exists.ts';
import {
  openTokenizer,
  TokenizerError,
  trainTokenizer,
  type Tokenizer,
  type TokenizerFile,
} from '../../video/text/tokenizer.ts';
import {
  asOwnTokenizer,
  readPretrainedTokenizer,
  readTokenizerFiles,
} from '../../video/text/pretrained-tokenizer.ts';
import type { FitContext } from './system.ts';

export const TOKENIZER_FILE = 'tokenizer.json';
/** Beside a tokenizer that came with somebody else's weights: its special tokens, and the rows of the table of words. */
export const TOKENIZER_CONFIG_FILE = 'tokenizer_config.json';

/**
 * The run's tokenizer: that of the weights it begins from, else one trained on the training split's texts and
 * `furtherTexts`.
 * @throws TokenizerError `TOKENIZER_INVALID`
 */
export async function fitTokenizer(
  { index, folder, initialWords }: FitContext,
  vocabularySize: number,
  furtherTexts: readonly string[] = [],
): Promise<Tokenizer> {
  const target = join(folder, TOKENIZER_FILE);
  for (const { folder: from, rows } of initialWords) {
    const source = join(from, TOKENIZER_FILE);
    if (!(await exists(source))) {
      if (rows === undefined) continue;
      // Another tokenizer's ids would point at rows of other words, without a word where their number fits.
      throw new TokenizerError(
        'TOKENIZER_INVALID',
        `${from} has no ${TOKENIZER_FILE}, and its table of words is taken. Write it there: ` +
          'AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers does',
      );
    }
    await copyFile(source, target);
    if (rows !== undefined) {
      const { config } = await readTokenizerFiles(from);
      const text = `${JSON.stringify({ ...config, vocab_size: rows }, undefined, 1)}\n`;
      await writeFileDurably(join(folder, TOKENIZER_CONFIG_FILE), text);
    } else if (await exists(join(from, TOKENIZER_CONFIG_FILE))) {
      await copyFile(join(from, TOKENIZER_CONFIG_FILE), join(folder, TOKENIZER_CONFIG_FILE));
    }
    return readTokenizer(folder);
  }
  const texts = [...index.train.map(({ text }) => text), ...furtherTexts];
  const file = trainTokenizer(texts, { vocabularySize });
  await writeFileDurably(target, JSON.stringify(file, undefined, 1));
  return openTokenizer(file);
}

/** A tokenizer of `rows` tokens, of which those that no text has mean nothing: for a plan by shapes. */
export async function writeStandInTokenizer(
  folder: string,
  texts: readonly string[],
  rows: number,
): Promise<void> {
  const file = trainTokenizer(texts, { vocabularySize: Math.min(rows, 256) });
  const vocab = { ...file.model.vocab };
  for (let id = Object.keys(vocab).length; id < rows; id++) vocab[`piece${id}`] = id;
  const whole = { ...file, model: { ...file.model, vocab } };
  await writeFileDurably(join(folder, TOKENIZER_FILE), JSON.stringify(whole));
}

/** @throws TokenizerError `TOKENIZER_INVALID` */
export async function readTokenizer(folder: string): Promise<Tokenizer> {
  const config = await readConfig(folder);
  if (config !== undefined) {
    const { vocab_size: rows } = config as { readonly vocab_size: number };
    return asOwnTokenizer(await readPretrainedTokenizer(folder), { rows, place: folder });
  }
  const text = await readFile(join(folder, TOKENIZER_FILE), 'utf8');
  return openTokenizer(JSON.parse(text) as TokenizerFile);
}

async function readConfig(folder: string): Promise<object | undefined> {
  const file = join(folder, TOKENIZER_CONFIG_FILE);
  return (await exists(file)) ? (JSON.parse(await readFile(file, 'utf8')) as object) : undefined;
}
