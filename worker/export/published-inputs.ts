/** What makes a part's inputs in transformers of texts and pictures, as the run's system makes them. */
import { join } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { readTokenizerFiles } from '../../video/text/pretrained-tokenizer.ts';
import type { RunConfig } from '../config-fields.ts';
import type {
  PublishedPart,
  PublishedPictures,
  PublishedTexts,
} from '../pretrained/published-parts.ts';
import { readTokenizer, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE } from '../systems/text-assets.ts';

/** A special token: its id, and what it is called in the tokenizer's files. */
interface SpecialToken {
  readonly id: number;
  readonly token: string;
}

/** Special tokens of a run, by what transformers calls them. */
export interface PublishedTokens {
  /** Undefined where the tokenizer has none. */
  readonly bos: SpecialToken | undefined;
  readonly eos: SpecialToken;
  readonly pad: SpecialToken;
}

/** @param run its folder. @throws TokenizerError `TOKENIZER_INVALID` */
export async function publishedTokens(run: string): Promise<PublishedTokens> {
  const tokenizer = await readTokenizer(run);
  const { config } = await readTokenizerFiles(run);
  const named = (id: number): SpecialToken => ({ id, token: tokenizer.pieceOf(id) });
  const hasStart = (config.cls_token ?? config.bos_token ?? undefined) !== undefined;
  return {
    bos: hasStart ? named(tokenizer.special.cls) : undefined,
    eos: named(tokenizer.special.sep),
    pad: named(tokenizer.special.pad),
  };
}

/**
 * Writes the run's tokenizer as `AutoTokenizer` loads it. Called without more it gives the ids that the run makes of a
 * text; a longer text is cut alike with `truncation=True` (but keeps its end, which one of BLIP-2's loses), and
 * `padding="max_length"` fills up as the run does.
 * @param run its folder
 * @throws TokenizerError `TOKENIZER_INVALID`
 */
export async function writePublishedTokenizer(
  run: string,
  folder: string,
  {
    part: { texts, json },
    tokens,
  }: { readonly part: PublishedPart; readonly tokens: PublishedTokens },
): Promise<void> {
  const { tokenizer, config } = await readTokenizerFiles(run);
  const { bos, eos, pad } = tokens;
  const { unk_token, mask_token, chat_template, clean_up_tokenization_spaces = false } = config;
  await writeJson(join(folder, TOKENIZER_FILE), {
    ...tokenizer,
    // What somebody else's tokenizer puts around a text need not be what this run does.
    post_processor: texts === undefined ? null : aroundText(texts, tokens),
  });
  await writeJson(join(folder, TOKENIZER_CONFIG_FILE), {
    // Classes of certain models make a tokenizer of their own kind of the file's words.
    tokenizer_class: 'PreTrainedTokenizerFast',
    ...(bos && { bos_token: bos.token, cls_token: bos.token }),
    ...{ eos_token: eos.token, sep_token: eos.token, pad_token: pad.token },
    ...{ unk_token, mask_token, chat_template, clean_up_tokenization_spaces },
    model_max_length: texts?.maxTokens ?? json['max_position_embeddings'],
  });
}

/** A post-processor of `tokenizers`. */
function aroundText({ hasStart }: PublishedTexts, { bos, eos }: PublishedTokens): object {
  const special = ({ token }: SpecialToken, type: number) => ({
    SpecialToken: { id: token, type_id: type },
  });
  const text = (name: string, type: number) => ({ Sequence: { id: name, type_id: type } });
  const before = hasStart && bos !== undefined ? [bos] : [];
  const single = [...before.map((token) => special(token, 0)), text('A', 0), special(eos, 0)];
  return {
    type: 'TemplateProcessing',
    single,
    pair: [...single, text('B', 1), special(eos, 1)],
    special_tokens: Object.fromEntries(
      [...before, eos].map(({ id, token }) => [token, { id: token, ids: [id], tokens: [token] }]),
    ),
  };
}

/** Fields of a config and of what is generated with: texts of this run end with these. */
export function tokenFields({ bos, eos, pad }: PublishedTokens): Record<string, number> {
  return {
    ...(bos && { bos_token_id: bos.id }),
    ...{ eos_token_id: eos.id, pad_token_id: pad.id },
  };
}

/** `generate` takes its defaults from here, before the model's config. */
export async function writeGenerationConfig(
  folder: string,
  tokens: PublishedTokens,
): Promise<void> {
  await writeJson(join(folder, 'generation_config.json'), tokenFields(tokens));
}

/**
 * Writes what `AutoImageProcessor` loads. Black bars, which no processor there makes, have no such file.
 * @param fit how a picture gets square
 */
export async function writeImageProcessor(
  folder: string,
  { size, pixels }: PublishedPictures,
  fit: RunConfig['data']['fit'],
): Promise<void> {
  if (fit === 'contain') return;
  const square = { height: size, width: size };
  await writeJson(join(folder, 'preprocessor_config.json'), {
    image_processor_type: 'CLIPImageProcessor',
    do_convert_rgb: true,
    ...{ do_resize: true, resample: BICUBIC },
    ...(fit === 'cover'
      ? { size: { shortest_edge: size }, do_center_crop: true, crop_size: square }
      : { size: square, do_center_crop: false }),
    ...{ do_rescale: true, rescale_factor: 1 / 255 },
    ...{ do_normalize: true, image_mean: pixels.mean, image_std: pixels.std },
  });
}

/** Pillow's number; frames are scaled so too. */
const BICUBIC = 3;

async function writeJson(file: string, value: object): Promise<void> {
  await writeFileDurably(file, `${JSON.stringify(value, undefined, 2)}\n`);
}
