/**
 * Tokenizers that came with somebody else's weights, as `tokenizer.json`, and their chat templates. Hugging Face's own
 * libraries for JavaScript do the work.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { messageOf } from '../../proto/errors.ts';
import { TokenizerError, type Tokenizer } from './tokenizer.ts';

/** `tokenizer.json` and what of `tokenizer_config.json` is used here, parsed. */
export interface TokenizerFiles {
  readonly tokenizer: object;
  readonly config: TokenizerConfig;
}

export interface TokenizerConfig {
  readonly bos_token?: SpecialToken | null;
  readonly eos_token?: SpecialToken | null;
  readonly pad_token?: SpecialToken | null;
  readonly unk_token?: SpecialToken | null;
  readonly cls_token?: SpecialToken | null;
  readonly sep_token?: SpecialToken | null;
  readonly mask_token?: SpecialToken | null;
  readonly chat_template?: ChatTemplates | null;
  readonly clean_up_tokenization_spaces?: boolean | null;
}

type SpecialToken = string | { readonly content: string };
type ChatTemplates = string | readonly { readonly name: string; readonly template: string }[];

/** One turn of a conversation, as templates read it. */
export interface ChatMessage {
  readonly role: string;
  readonly content: unknown;
}

export interface ChatOptions {
  /** Ends with what the assistant's turn begins with. */
  readonly addGenerationPrompt?: boolean;
  /** What else the template knows of: `tools`, `documents` and its own. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

export interface PretrainedTokenizer {
  /** One more than the largest id. */
  readonly vocabularySize: number;
  readonly special: {
    readonly bos: number | undefined;
    readonly eos: number | undefined;
    readonly pad: number | undefined;
    readonly unk: number | undefined;
    readonly cls: number | undefined;
    readonly sep: number | undefined;
    readonly mask: number | undefined;
  };
  /** With the special tokens that the file puts around a text, unless told otherwise. */
  encode(text: string, options?: { readonly addSpecialTokens?: boolean }): number[];
  /** Without special tokens, unless told otherwise. */
  decode(ids: readonly number[], options?: { readonly skipSpecialTokens?: boolean }): string;
  idOf(token: string): number | undefined;
  /**
   * A conversation as the text the model was trained on; encode it without adding special tokens, it has them.
   * @throws TokenizerError `TOKENIZER_NO_TEMPLATE`, or `TOKENIZER_BAD_CHAT` with what the template complains of
   */
  chat(messages: readonly ChatMessage[], options?: ChatOptions): string;
}

/** Reads a folder as `save_pretrained` writes it. @throws TokenizerError `TOKENIZER_INVALID` */
export async function readPretrainedTokenizer(folder: string): Promise<PretrainedTokenizer> {
  const files = await readTokenizerFiles(folder);
  return openPretrainedTokenizer(files, folder);
}

/**
 * What a folder's files say together. Special tokens stand in `tokenizer_config.json`, in the older
 * `special_tokens_map.json`, or nowhere: then those of BERT go by their names.
 * @throws TokenizerError `TOKENIZER_INVALID`
 */
export async function readTokenizerFiles(folder: string): Promise<TokenizerFiles> {
  try {
    const [text, config, special, template] = await Promise.all([
      readFile(join(folder, 'tokenizer.json'), 'utf8'),
      readOptional(join(folder, 'tokenizer_config.json')),
      readOptional(join(folder, 'special_tokens_map.json')),
      readOptional(join(folder, 'chat_template.jinja')),
    ]);
    const tokenizer = JSON.parse(text) as object;
    return {
      tokenizer,
      config: {
        ...bertTokens(tokenizer),
        ...(special === undefined ? {} : (JSON.parse(special) as TokenizerConfig)),
        ...(config === undefined ? {} : (JSON.parse(config) as TokenizerConfig)),
        ...(template === undefined ? {} : { chat_template: template }),
      },
    };
  } catch (error) {
    throw invalid(folder, messageOf(error), error);
  }
}

/** Source: transformers, BertTokenizer's own defaults, which the files of the first releases leave out. */
const BERT_TOKENS: TokenizerConfig = {
  ...{ pad_token: '[PAD]', unk_token: '[UNK]', mask_token: '[MASK]' },
  ...{ cls_token: '[CLS]', sep_token: '[SEP]' },
};

/** Those that the file has as special tokens. */
function bertTokens(tokenizer: object): TokenizerConfig {
  const { added_tokens: added = [] } = tokenizer as {
    readonly added_tokens?: readonly { readonly content: string; readonly special: boolean }[];
  };
  const special = new Set(added.flatMap((token) => (token.special ? [token.content] : [])));
  const entries = Object.entries(BERT_TOKENS) as [string, string][];
  return Object.fromEntries(entries.filter(([, token]) => special.has(token)));
}

async function readOptional(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** @param place for messages. @throws TokenizerError `TOKENIZER_INVALID` */
export function openPretrainedTokenizer(
  { tokenizer: file, config }: TokenizerFiles,
  place = 'the tokenizer',
): PretrainedTokenizer {
  const tokenizer = libraryTokenizer(file, config, place);
  const contentOf = (token: SpecialToken | null | undefined): string | undefined =>
    typeof token === 'object' ? token?.content : token;
  const idOf = (token: string | undefined): number | undefined =>
    token === undefined ? undefined : tokenizer.token_to_id(token);
  const names = {
    bos_token: contentOf(config.bos_token),
    eos_token: contentOf(config.eos_token),
    pad_token: contentOf(config.pad_token),
    unk_token: contentOf(config.unk_token),
  };
  const given = Object.fromEntries(
    Object.entries(names).filter(([, token]) => token !== undefined),
  );
  const source = templateOf(config.chat_template);
  let template: Template | undefined;
  return {
    vocabularySize:
      [...tokenizer.get_vocab(true).values()].reduce((a, b) => Math.max(a, b), -1) + 1,
    special: {
      bos: idOf(names.bos_token),
      eos: idOf(names.eos_token),
      pad: idOf(names.pad_token),
      unk: idOf(names.unk_token),
      cls: idOf(contentOf(config.cls_token)),
      sep: idOf(contentOf(config.sep_token)),
      mask: idOf(contentOf(config.mask_token)),
    },
    encode: (text, { addSpecialTokens = true } = {}) =>
      tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids,
    decode: (ids, { skipSpecialTokens = true } = {}) =>
      // The library refuses to decode nothing.
      ids.length === 0
        ? ''
        : tokenizer.decode([...ids], { skip_special_tokens: skipSpecialTokens }),
    idOf,
    chat(messages, { addGenerationPrompt = false, variables = {} } = {}) {
      if (source === undefined) {
        throw new TokenizerError(
          'TOKENIZER_NO_TEMPLATE',
          `${place} has no chat template; it belongs to a model that was not trained to talk. Write the prompt yourself`,
        );
      }
      try {
        template ??= new Template(source);
        return template.render({
          ...given,
          // The library knows variables that are undefined from those that are missing.
          tools: null,
          documents: null,
          ...variables,
          messages,
          add_generation_prompt: addGenerationPrompt,
        });
      } catch (error) {
        throw new TokenizerError(
          'TOKENIZER_BAD_CHAT',
          `the chat template of ${place} cannot write this conversation: ${messageOf(error)}. See which roles and orders it allows`,
          { cause: error },
        );
      }
    },
  };
}

/**
 * Such a tokenizer in the place of one of this project's: texts begin with its `[CLS]` or what else begins them, and
 * end with `[SEP]` or what else ends them. What a system asks for that it has not is refused then.
 *
 * @param rows of the table of words that goes with it, which may be more than its tokens
 * @throws TokenizerError `TOKENIZER_INVALID`
 */
export function asOwnTokenizer(
  tokenizer: PretrainedTokenizer,
  { rows, place }: { readonly rows: number; readonly place: string },
): Tokenizer {
  const { special } = tokenizer;
  const wanted = (what: string, ...ids: readonly (number | undefined)[]): number => {
    const id = ids.find((given) => given !== undefined);
    if (id === undefined) {
      throw new TokenizerError(
        'TOKENIZER_INVALID',
        `the tokenizer of ${place} has no ${what}, which this system needs; take weights of another model, or those of ` +
          'its words not',
      );
    }
    return id;
  };
  const cls = special.cls ?? special.bos;
  const sep = wanted('sep_token or eos_token', special.sep, special.eos);
  const pad = wanted('pad_token', special.pad, special.unk, sep);
  const first = (): number => {
    const last = Math.max(pad, cls ?? 0, sep, special.unk ?? 0, special.mask ?? 0);
    return wanted('special tokens in front of its words', last < MOST_FRONT ? last + 1 : undefined);
  };
  return {
    vocabularySize: Math.max(rows, tokenizer.vocabularySize),
    special: {
      ...{ pad, sep, unk: special.unk ?? pad },
      // SigLIP's texts begin with their words.
      get cls() {
        return wanted('cls_token or bos_token', cls);
      },
      get mask() {
        return wanted('mask_token', special.mask);
      },
      // BERT keeps some tokens for such uses.
      get join() {
        return wanted('[>] or [unused0]', tokenizer.idOf('[>]'), tokenizer.idOf('[unused0]'));
      },
    },
    get firstWordId() {
      return first();
    },
    encode: (text) => tokenizer.encode(text, { addSpecialTokens: false }),
    decode: (ids) => tokenizer.decode(ids),
    pieceOf: (id) => tokenizer.decode([id], { skipSpecialTokens: false }),
  };
}

/** Special tokens beyond here stand among or behind the words. */
const MOST_FRONT = 1000;

/** Of several templates that called `default`. */
function templateOf(templates: ChatTemplates | null | undefined): string | undefined {
  if (typeof templates === 'string') return templates;
  return templates?.find(({ name }) => name === 'default')?.template;
}

// What is used of the library; its own declarations do not resolve under Node's module rules.
interface LibraryTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(ids: number[], options: { skip_special_tokens: boolean }): string;
  token_to_id(token: string): number | undefined;
  get_vocab(withAddedTokens: boolean): Map<string, number>;
}

function libraryTokenizer(file: object, config: object, place: string): LibraryTokenizer {
  const Library = HuggingFaceTokenizer as unknown as new (
    file: object,
    config: object,
  ) => LibraryTokenizer;
  try {
    // The library's default is to clean up; that of transformers is not to.
    return new Library(file, { clean_up_tokenization_spaces: false, ...config });
  } catch (error) {
    throw invalid(place, messageOf(error), error);
  }
}

function invalid(place: string, what: string, cause: unknown): TokenizerError {
  return new TokenizerError(
    'TOKENIZER_INVALID',
    `${place} has no tokenizer that can be used: ${what}. Give a folder with tokenizer.json`,
    { cause },
  );
}
