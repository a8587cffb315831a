/** Boxes as words of a conversation: `{<x1><y1><x2><y2>}`, whole hundredths of the picture's sides. Pure. */

/** Left, top, right and bottom, 0 to 100 from the top left. */
export type WordBox = readonly [left: number, top: number, right: number, bottom: number];

const NUMBER = '\\s*<\\s*(\\d{1,3})\\s*>\\s*';
/** Spaces come from tokenizers that put them between signs. */
const BOX = new RegExp(`^\\s*\\{${NUMBER.repeat(4)}\\}\\s*$`);

/**
 * The box that a text is, and nothing beside; undefined where it is none: other words, a number over 100, no area.
 * Source: Vision-CAIR/MiniGPT-4, demo_v2.py.
 */
export function boxOf(text: string): WordBox | undefined {
  const found = BOX.exec(text);
  if (found === null) return undefined;
  const [left, top, right, bottom] = found.slice(1).map(Number) as unknown as WordBox;
  const isBox = left < right && top < bottom && right <= 100 && bottom <= 100;
  return isBox ? [left, top, right, bottom] : undefined;
}

/** Intersection over union of two boxes, 0 to 1. */
export function boxIou(a: WordBox, b: WordBox): number {
  const overlap = (low: 0 | 1): number =>
    Math.max(0, Math.min(a[low + 2]!, b[low + 2]!) - Math.max(a[low], b[low]));
  const area = ([left, top, right, bottom]: WordBox): number => (right - left) * (bottom - top);
  const shared = overlap(0) * overlap(1);
  return shared / (area(a) + area(b) - shared);
}
