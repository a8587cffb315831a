import { access, copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import {
  openTokenizer,
  trainTokenizer,
  type Tokenizer,
  type TokenizerFile,
} from '../../video/text/tokenizer.ts';
import type { FitContext } from './system.ts';

export const TOKENIZER_FILE = 'tokenizer.json';

/** The run's tokenizer: that of the run whose weights it begins from, else one trained on the training split's texts and `furtherTexts`. */
export async function fitTokenizer(
  { index, folder, initialRuns }: FitContext,
  vocabularySize: number,
  furtherTexts: readonly string[] = [],
): Promise<Tokenizer> {
  const target = join(folder, TOKENIZER_FILE);
  for (const run of initialRuns) {
    const source = join(run, TOKENIZER_FILE);
    const isThere = await access(source).then(
      () => true,
      () => false,
    );
    if (!isThere) continue;
    await copyFile(source, target);
    return readTokenizer(folder);
  }
  const texts = [...index.train.map(({ text }) => text), ...furtherTexts];
  const file = trainTokenizer(texts, { vocabularySize });
  await writeFileDurably(target, JSON.stringify(file, undefined, 1));
  return openTokenizer(file);
}

export async function readTokenizer(folder: string): Promise<Tokenizer> {
  const text = await readFile(join(folder, TOKENIZER_FILE), 'utf8');
  return openTokenizer(JSON.parse(text) as TokenizerFile);
}
