/**
 * The words of a caption as caption scores count them: lower case, contractions split, without punctuation. What the Penn
 * Treebank tokenizer of coco-caption does to plain sentences, brackets included, which it keeps as words; it differs where
 * that one reads abbreviations, fractions and units. Source: coco-caption, tokenizer/ptbtokenizer.py.
 */
export function captionWords(text: string): string[] {
  return text
    .normalize('NFC')
    .toLowerCase()
    .replaceAll(/[\u2018\u2019]/g, "'")
    .replaceAll(/\bcannot\b/g, 'can not')
    .replaceAll(/(\p{L})n't(?![\p{L}\p{N}])/gu, "$1 n't")
    .replaceAll(/([\p{L}\p{N}])'(s|re|ve|ll|d|m)(?![\p{L}\p{N}])/gu, "$1 '$2")
    .replaceAll(/[()[\]{}]/g, (bracket) => ` ${BRACKETS[bracket]!} `)
    .replaceAll(/([%&$])/g, ' $1 ')
    .split(SEPARATORS)
    .map((word) => word.replaceAll(EDGES, ''))
    .filter((word) => /[\p{L}\p{N}\p{S}&%]/u.test(word));
}

const BRACKETS: Readonly<Record<string, string>> = {
  '(': '-lrb-',
  ')': '-rrb-',
  '[': '-lsb-',
  ']': '-rsb-',
  '{': '-lcb-',
  '}': '-rcb-',
};

/** White space and punctuation, but not what is inside of words and numbers: `t-shirt`, `n't`, `3.5`, `1,000`. */
const SEPARATORS = /\s+|[!?;:"“”«»…]+|--+|,(?!\p{N})|(?<!\p{N}),|\.{2,}/u;

/** Quotes around a word, the period of a sentence, a dash beside a word; not the apostrophe of what was split off. */
const EDGES = /^(?:'(?!(?:s|re|ve|ll|d|m)$)|-(?![lr][scr]b-$))+|(?:[.']|(?<!^-[lr][scr]b)-)+$/gu;
