/** Captions of the demo world with something in them that is not true, and those made of the same words. */
import type { Sample } from '../../video/index/sample.ts';
import { MOVES } from '../../video/world/controlled-truth.ts';
import { COLOUR_NAMES, SHAPES } from '../../video/world/palette.ts';
import { QUARTERS } from '../../video/world/places.ts';
import type { PairItem } from './pairs-file.ts';

/** Words of which one is true of a thing. */
const EXCHANGED = {
  colour: COLOUR_NAMES,
  shape: SHAPES,
  motion: MOVES.map((motion) => `moves ${motion}`),
  place: QUARTERS,
} as const satisfies Record<string, readonly string[]>;

/**
 * Of captions with one colour, shape, motion or place all that have another there; of two things whose colours differ the
 * caption with these exchanged; and any two samples whose captions are the same words in another order. Media are named by
 * the number of their sample. A pure function of the captions.
 */
export function demoPairs(samples: readonly Pick<Sample, 'text'>[]): PairItem[] {
  const lists = samples.flatMap(({ text }, sample): PairItem[] => {
    const item = (type: string, wrong: readonly string[]): PairItem => ({
      ...{ kind: 'list', id: `${sample}/${type}`, media: [String(sample)], type },
      captions: [text, ...wrong],
    });
    const items = Object.entries(EXCHANGED).flatMap(([type, list]): PairItem[] => {
      const [own, ...more] = phrasesIn(text, list);
      if (own === undefined || more.length > 0) return [];
      const others = list.filter((phrase) => phrase !== own);
      return [
        item(
          type,
          others.map((phrase) => exchanged(text, new Map([[own, phrase]]))),
        ),
      ];
    });
    const colours = phrasesIn(text, COLOUR_NAMES);
    const [first, second] = colours;
    if (colours.length === 2 && first !== second) {
      const both = new Map([
        [first!, second!],
        [second!, first!],
      ]);
      items.push(item('exchanged colours', [exchanged(text, both)]));
    }
    return items;
  });
  return [...lists, ...sameWords(samples)];
}

function phrasesIn(text: string, list: readonly string[]): string[] {
  return text.match(new RegExp(`\\b(?:${list.join('|')})\\b`, 'g')) ?? [];
}

/** With articles as they are before the new words. */
function exchanged(text: string, others: ReadonlyMap<string, string>): string {
  const phrases = new RegExp(`\\b(?:(an?) )?(${[...others.keys()].join('|')})\\b`, 'g');
  return text.replaceAll(phrases, (_, article: string | undefined, phrase: string) => {
    const other = others.get(phrase)!;
    if (article === undefined) return other;
    return `${/^[aeiou]/.test(other) ? 'an' : 'a'} ${other}`;
  });
}

/** Samples in pairs, each in one at most, whose captions differ in the order of their words alone. */
function sameWords(samples: readonly Pick<Sample, 'text'>[]): PairItem[] {
  const waiting = new Map<string, number[]>();
  const items: PairItem[] = [];
  for (const [sample, { text }] of samples.entries()) {
    const key = text.split(/\s+/).sort().join(' ');
    const own = waiting.get(key) ?? [];
    const other = own.find((number) => samples[number]!.text !== text);
    waiting.set(key, other === undefined ? [...own, sample] : own.filter((n) => n !== other));
    if (other === undefined) continue;
    items.push({
      ...{ kind: 'cross', id: `${other}/${sample}`, media: [String(other), String(sample)] },
      captions: [samples[other]!.text, text],
    });
  }
  return items;
}
