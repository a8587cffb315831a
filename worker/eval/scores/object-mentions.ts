/**
 * Which objects of a list a caption speaks of. Source: Rohrbach et al. 2018, arXiv:1809.02156, sec. 3.1, and the rules of
 * its code for COCO, github.com/LisaAnne/Hallucination, utils/chair.py.
 */

export interface ObjectFinder {
  /** The object that a name stands for, as the first of its synonyms; undefined where it is none. */
  objectOf(name: string): string | undefined;
  /** Each mention in order, as the first of its synonyms. */
  mentions(caption: string): string[];
}

/** Before these animals and vehicles `baby` is no person, and `passenger` neither. */
const QUALIFIED: ReadonlyMap<string, ReadonlySet<string>> = (() => {
  const animals = new Set(
    'bird cat dog horse sheep cow elephant bear zebra giraffe animal cub'.split(' '),
  );
  return new Map([
    ['baby', animals],
    ['adult', animals],
    ['passenger', new Set(['jet', 'train'])],
  ]);
})();
/** No plate to eat from. */
const NO_OBJECTS: ReadonlySet<string> = new Set(['home plate']);

const IRREGULAR: Readonly<Record<string, string>> = {
  people: 'person',
  men: 'man',
  women: 'woman',
  children: 'child',
  mice: 'mouse',
  geese: 'goose',
  feet: 'foot',
  teeth: 'tooth',
  oxen: 'ox',
};

/** @param objects each with all its names, of which the first stands for it */
export function openObjectFinder(objects: readonly (readonly string[])[]): ObjectFinder {
  const known = new Map<string, string>();
  for (const names of objects)
    for (const name of names.filter(hasWords)) known.set(tokensOf(name).join(' '), names[0]!);
  const longest = Math.max(
    ...[...known.keys(), ...NO_OBJECTS].map((name) => name.split(' ').length),
  );

  /** The name that so many words are, singular or plural. */
  const nameOf = (words: readonly string[]): string | undefined => {
    const before = words.slice(0, -1);
    const names = singularsOf(words.at(-1)!).map((last) => [...before, last].join(' '));
    return names.find((name) => known.has(name) || NO_OBJECTS.has(name));
  };
  return {
    objectOf: (name) => (hasWords(name) ? known.get(nameOf(tokensOf(name)) ?? '') : undefined),
    mentions(caption) {
      const words = tokensOf(caption);
      const names: string[] = [];
      for (let at = 0; at < words.length;) {
        const animals = QUALIFIED.get(words[at]!);
        if (animals !== undefined && singularsOf(words[at + 1] ?? '').some((w) => animals.has(w))) {
          at++;
          continue;
        }
        let length = Math.min(longest, words.length - at);
        let name: string | undefined;
        for (; length > 0; length--) {
          name = nameOf(words.slice(at, at + length));
          if (name !== undefined) break;
        }
        if (name !== undefined) names.push(name);
        at += Math.max(1, length);
      }
      // The seat of a toilet is no chair.
      const counted = names.includes('toilet') ? names.filter((name) => name !== 'seat') : names;
      return counted.flatMap((name) => known.get(name) ?? []);
    },
  };
}

/** Whether a name can be said at all: it has a letter or a digit. */
export function hasWords(name: string): boolean {
  return /[\p{L}\p{N}]/u.test(name);
}

/**
 * Words in lower case and the marks between them, of which a possessive ending is one: as in the original, what stands on
 * both sides of a mark is no name of several words, and what is before it qualifies nothing behind. Hyphens join words.
 */
function tokensOf(text: string): string[] {
  const tokens = text
    .normalize('NFKC')
    .toLowerCase()
    .replaceAll(/(?<=[\p{L}\p{N}])[-‐](?=[\p{L}\p{N}])/gu, ' ')
    .replaceAll(/['’]s(?![\p{L}\p{N}])/gu, " ' ")
    .match(/[\p{L}\p{N}\p{M}]+(?:['’][\p{L}\p{N}\p{M}]+)*|\S/gu);
  return tokens ?? [];
}

/** A word and what it may be the plural of, the likeliest first; which of them is a word is for the list to say. */
function singularsOf(word: string): string[] {
  const irregular = Object.entries(IRREGULAR).flatMap(([many, one]) =>
    // Firemen and policewomen.
    word.endsWith(many) ? [word.slice(0, -many.length) + one] : [],
  );
  const regular: string[] = [];
  if (/[^s]s$/.test(word)) regular.push(word.slice(0, -1));
  if (word.endsWith('es')) regular.push(word.slice(0, -2));
  if (word.endsWith('ies')) regular.push(`${word.slice(0, -3)}y`);
  if (word.endsWith('ves')) regular.push(`${word.slice(0, -3)}fe`, `${word.slice(0, -3)}f`);
  return [word, ...irregular, ...regular];
}
