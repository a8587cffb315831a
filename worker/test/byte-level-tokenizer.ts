import { asOwnTokenizer, openPretrainedTokenizer } from '../../video/text/pretrained-tokenizer.ts';
import type { Tokenizer } from '../../video/text/tokenizer.ts';

/**
 * A tokenizer of GPT-2's and OPT's kind: byte-level BPE, in which a space is a part of the word behind it. It knows
 * single bytes and `words`, each with a space before it and without. Source: openai/gpt-2, encoder.py.
 */
export function byteLevelTokenizer(words: readonly string[]): Tokenizer {
  const special = ['<pad>', '</s>'];
  const merges: [string, string][] = [];
  const pieces = new Set([...special, ...BYTES]);
  const join = (left: string, right: string): string => {
    if (!pieces.has(left + right)) {
      merges.push([left, right]);
      pieces.add(left + right);
    }
    return left + right;
  };
  for (const word of words) join(SPACE, Array.from(word).reduce(join));
  const vocab = Object.fromEntries([...pieces].map((piece, id) => [piece, id]));
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, use_regex: true };
  const tokenizer = {
    version: '1.0',
    added_tokens: special.map((content, id) => ({ id, content, special: true, ...flags })),
    ...{ normalizer: null, pre_tokenizer: byteLevel, post_processor: null, decoder: byteLevel },
    model: { type: 'BPE', vocab, merges },
  };
  const config = { bos_token: '</s>', eos_token: '</s>', pad_token: '<pad>' };
  const opened = openPretrainedTokenizer({ tokenizer, config });
  return asOwnTokenizer(opened, { rows: 0, place: 'a byte-level tokenizer' });
}

/** How a byte is written: printable ones as themselves, the others as the characters from U+0100 on. */
const BYTES = Array.from({ length: 256 }, (_, byte) => byte).map((byte, _i, all) => {
  const isPrintable = (b: number): boolean =>
    (b > 32 && b < 127) || (b > 160 && b < 173) || (b > 173 && b < 256);
  const before = all.slice(0, byte).filter((b) => !isPrintable(b)).length;
  return String.fromCharCode(isPrintable(byte) ? byte : 256 + before);
});
const SPACE = BYTES[32]!;
