/** Where texts become other ids, or conversations other prompts, than with Python's `tokenizers` and transformers. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import {
  openPretrainedTokenizer,
  readPretrainedTokenizer,
  type ChatMessage,
} from '../../../video/text/pretrained-tokenizer.ts';
import { VideoloomError } from '../../../proto/errors.ts';

/** The tokenizers of `peers/texts.py`. */
export const TOKENIZERS = ['gpt2', 'smollm', 'llama3', 'llama2', 'bert'] as const;

export interface TextDifferences {
  readonly numCases: number;
  /** In words, the first of each case that differs. */
  readonly different: readonly string[];
}

interface TextCase {
  readonly text: string;
  /** With and without special tokens. */
  readonly ids: number[];
  readonly bare: number[];
  /** Without and with special tokens. */
  readonly decoded: string;
  readonly all: string;
}

/** Texts of `tokenizer.json` and `cases.json` in a folder: to ids, and back to text. */
export async function compareTokenizer(folder: string): Promise<TextDifferences> {
  const tokenizer = await readPretrainedTokenizer(folder);
  const cases = JSON.parse(await readFile(path.join(folder, 'cases.json'), 'utf8')) as TextCase[];
  const different = cases.flatMap(({ text, ids, bare, decoded, all }) =>
    differences([
      [`ids of ${JSON.stringify(text)}`, tokenizer.encode(text), ids],
      [
        `ids of ${JSON.stringify(text)} without special tokens`,
        tokenizer.encode(text, { addSpecialTokens: false }),
        bare,
      ],
      [`text of ids ${ids.join(' ')}`, tokenizer.decode(ids), decoded],
      [
        `text of ids ${ids.join(' ')} with special tokens`,
        tokenizer.decode(ids, { skipSpecialTokens: false }),
        all,
      ],
    ]),
  );
  return { numCases: cases.length, different };
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

/** The conversations of `chat.json` in the folder that `peers/texts.py` fills; what a template refuses counts too. */
export async function compareChats(root: string): Promise<TextDifferences> {
  const file = await readFile(path.join(root, 'llama2', 'tokenizer.json'), 'utf8');
  const cases = JSON.parse(await readFile(path.join(root, 'chat.json'), 'utf8')) as ChatCase[];
  const different = cases.flatMap((given) => {
    const config = { bos_token: '<s>', eos_token: '</s>', chat_template: given.template };
    const tokenizer = openPretrainedTokenizer({ tokenizer: JSON.parse(file) as object, config });
    const options = {
      addGenerationPrompt: given.addGenerationPrompt,
      ...(given.tools === undefined ? {} : { variables: { tools: given.tools } }),
    };
    const label = `${given.name} of ${JSON.stringify(given.messages)}`;
    return differences([
      [label, writtenOf(() => tokenizer.chat(given.messages, options)), given.text],
    ]);
  });
  return { numCases: cases.length, different };
}

/** Undefined where the template refuses. */
function writtenOf(write: () => string): string | undefined {
  try {
    return write();
  } catch (error) {
    if (error instanceof VideoloomError && error.code === 'TOKENIZER_BAD_CHAT') return undefined;
    throw error;
  }
}

/** The first that is not as it is wanted. */
function differences(
  checks: readonly (readonly [label: string, found: unknown, wanted: unknown])[],
): string[] {
  const first = checks.find(
    ([, found, wanted]) => JSON.stringify(found) !== JSON.stringify(wanted),
  );
  if (first === undefined) return [];
  const [label, found, wanted] = first;
  return [`${label}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`];
}
