/** A LLaMA in a GGUF file: its config, the names of its weights, its tokenizer. */
import * as z from 'zod';
import type { LlamaConfig } from '../models/llama.ts';
import type { TokenizerFiles } from '../../video/text/pretrained-tokenizer.ts';
import type { GgufFile } from './gguf.ts';
import { PretrainedError } from './pretrained-error.ts';
import type { HostTensor } from './tensor-source.ts';
import { same, transposed, type Weight, type WeightTable } from './weight-table.ts';

const count = z.int().positive();

const llamaSchema = z.object({
  'general.architecture': z.literal('llama'),
  'llama.embedding_length': count,
  'llama.feed_forward_length': count,
  'llama.block_count': count,
  'llama.attention.head_count': count,
  'llama.attention.head_count_kv': count.optional(),
  'llama.attention.key_length': count.optional(),
  'llama.attention.layer_norm_rms_epsilon': z.number().positive(),
  'llama.rope.freq_base': z.number().positive().default(10_000),
  'llama.rope.scaling.type': z.literal('none').default('none'),
});

/** @throws PretrainedError `PRETRAINED_CONFIG` for another architecture */
export function ggufLlamaConfig({ metadata, weights }: GgufFile): LlamaConfig {
  const given = parsed(llamaSchema, metadata, weights.place);
  const numHeads = given['llama.attention.head_count'];
  const width = given['llama.embedding_length'];
  return {
    vocabularySize: weights.shapes.get('token_embd.weight')?.[0] ?? 0,
    width,
    mlpWidth: given['llama.feed_forward_length'],
    numLayers: given['llama.block_count'],
    numHeads,
    numKeyValueHeads: given['llama.attention.head_count_kv'] ?? numHeads,
    headWidth: given['llama.attention.key_length'] ?? width / numHeads,
    epsilon: given['llama.attention.layer_norm_rms_epsilon'],
    ropeTheta: given['llama.rope.freq_base'],
    isTied: !weights.shapes.has('output.weight'),
  };
}

/** llama.cpp's names. */
export function ggufLlamaWeights({ numHeads, numKeyValueHeads }: LlamaConfig): WeightTable {
  return {
    weights: {
      embedding: same('token_embd.weight'),
      'blocks/*/attentionNorm/scale': same('blk.*.attn_norm.weight'),
      'blocks/*/attention/query/kernel': halvesApart('blk.*.attn_q.weight', numHeads),
      'blocks/*/attention/key/kernel': halvesApart('blk.*.attn_k.weight', numKeyValueHeads),
      'blocks/*/attention/value/kernel': transposed('blk.*.attn_v.weight'),
      'blocks/*/attention/output/kernel': transposed('blk.*.attn_output.weight'),
      'blocks/*/mlpNorm/scale': same('blk.*.ffn_norm.weight'),
      'blocks/*/mlp/gate/kernel': transposed('blk.*.ffn_gate.weight'),
      'blocks/*/mlp/up/kernel': transposed('blk.*.ffn_up.weight'),
      'blocks/*/mlp/down/kernel': transposed('blk.*.ffn_down.weight'),
      'finalNorm/scale': same('output_norm.weight'),
      'head/kernel': transposed('output.weight'),
    },
  };
}

/**
 * [in, out], there [out, in] with the outputs of each head in another order: llama.cpp turns neighbours (2i, 2i + 1)
 * where Hugging Face's LLaMA, and ours, turns (i, i + W/2). Source: llama.cpp, convert_hf_to_gguf.py, `permute`.
 */
function halvesApart(name: string, numHeads: number): Weight {
  const plain = transposed(name);
  return {
    names: [name],
    toOurs(theirs, shape) {
      const ours = plain.toOurs(theirs, shape);
      return ours && { ...ours, data: reorder(ours, numHeads, 'apart') };
    },
    toTheirs: (ours) => plain.toTheirs({ ...ours, data: reorder(ours, numHeads, 'neighbours') }),
  };
}

/** Columns of [in, heads W], of which pairs come to stand `apart` or as `neighbours`. */
function reorder(
  { shape, data }: HostTensor,
  numHeads: number,
  wanted: 'apart' | 'neighbours',
): Float32Array {
  const numColumns = shape[1]!;
  const width = numColumns / numHeads;
  const out = new Float32Array(data.length);
  const columns = Int32Array.from({ length: numColumns }, (_, column) => {
    const [head, at] = [Math.floor(column / width) * width, column % width];
    const pair = at % (width / 2);
    const isSecond = at >= width / 2 ? 1 : 0;
    return head + 2 * pair + isSecond; // where, of neighbours, that of this column apart is
  });
  for (let row = 0; row < data.length; row += numColumns) {
    for (const [apart, neighbour] of columns.entries()) {
      if (wanted === 'apart') out[row + apart] = data[row + neighbour]!;
      else out[row + neighbour] = data[row + apart]!;
    }
  }
  return out;
}

const tokenizerSchema = z.object({
  'tokenizer.ggml.model': z.literal('gpt2'),
  'tokenizer.ggml.pre': z.enum(['gpt-2', 'smollm', 'llama-bpe']),
  'tokenizer.ggml.tokens': z.array(z.string()),
  'tokenizer.ggml.token_type': z.array(z.int()),
  'tokenizer.ggml.merges': z.array(z.string()),
  'tokenizer.ggml.bos_token_id': z.int().optional(),
  'tokenizer.ggml.eos_token_id': z.int().optional(),
  'tokenizer.ggml.add_bos_token': z.boolean().optional(),
  'tokenizer.chat_template': z.string().optional(),
});

/** llama.cpp's llama_token_type. */
const [CONTROL, USER_DEFINED] = [3, 4];

const DIGITS = { type: 'Digits', individual_digits: true };
const LLAMA3_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** How text is cut before pieces are joined, by the file's name for it. Source: llama.cpp, llama-vocab.cpp. */
const PRE_TOKENIZERS = {
  'gpt-2': [byteLevel(true)],
  smollm: [DIGITS, byteLevel(true)],
  'llama-bpe': [
    {
      type: 'Split',
      pattern: { Regex: LLAMA3_PATTERN },
      behavior: 'Isolated',
      invert: false,
    },
    byteLevel(false),
  ],
} as const;

function byteLevel(splits: boolean) {
  return { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: splits };
}

/**
 * The file's tokenizer as `tokenizer.json` and `tokenizer_config.json`.
 * @throws PretrainedError `PRETRAINED_CONFIG` where it is no byte-level BPE
 */
export function ggufTokenizer({ metadata, weights }: GgufFile): TokenizerFiles {
  const given = parsed(tokenizerSchema, metadata, weights.place);
  const tokens = given['tokenizer.ggml.tokens'];
  const types = given['tokenizer.ggml.token_type'];
  const tokenOf = (id: number | undefined): string | undefined =>
    id === undefined ? undefined : tokens[id];
  const bos = tokenOf(given['tokenizer.ggml.bos_token_id']);
  const eos = tokenOf(given['tokenizer.ggml.eos_token_id']);
  const template = given['tokenizer.chat_template'];
  const added = [...types.keys()].filter(
    (id) => types[id] === CONTROL || types[id] === USER_DEFINED,
  );
  // Source: llama.cpp, llama-vocab.cpp: of these kinds LLaMA 3's alone has a first token where the file tells nothing.
  const isLlama3 = given['tokenizer.ggml.pre'] === 'llama-bpe';
  const begins = (given['tokenizer.ggml.add_bos_token'] ?? isLlama3) && bos !== undefined;
  return {
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added.map((id) => ({
        id,
        content: tokens[id]!,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: types[id] === CONTROL,
      })),
      normalizer: null,
      pre_tokenizer: {
        type: 'Sequence',
        pretokenizers: PRE_TOKENIZERS[given['tokenizer.ggml.pre']],
      },
      post_processor: begins ? beginsWith(bos, given['tokenizer.ggml.bos_token_id']!) : null,
      decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: 'BPE',
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: isLlama3,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges: given['tokenizer.ggml.merges'],
      },
    },
    config: {
      ...(bos === undefined ? {} : { bos_token: bos }),
      ...(eos === undefined ? {} : { eos_token: eos }),
      ...(template === undefined ? {} : { chat_template: template }),
      clean_up_tokenization_spaces: false,
    },
  };
}

function beginsWith(token: string, id: number) {
  const own = { SpecialToken: { id: token, type_id: 0 } };
  const text = (name: string, type: number) => ({ Sequence: { id: name, type_id: type } });
  return {
    type: 'TemplateProcessing',
    single: [own, text('A', 0)],
    pair: [own, text('A', 0), own, text('B', 1)],
    special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
  };
}

function parsed<S extends z.ZodType>(
  schema: S,
  metadata: GgufFile['metadata'],
  place: string,
): z.infer<S> {
  const result = schema.safeParse(Object.fromEntries(metadata));
  if (result.success) return result.data;
  throw new PretrainedError(
    'PRETRAINED_CONFIG',
    `${place} holds a model that cannot be loaded here: ${z.prettifyError(result.error)}`,
  );
}
