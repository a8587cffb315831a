/** Boxes as words of a conversation: `{<x1><y1><x2><y2>}`, whole hundredths of the picture's sides. Pure. */

/** Left, top, right and bottom, 0 to 100 from the top left. */
export type WordBox = readonly [left: number, top: number, right: number, bottom: number];

const NUMBER = '\\s*<\\s*(\\d{1,3})\\s*>\\s*';
/** Spaces come from tokenizers that put them between signs. */
const BOX = `\\{${NUMBER.repeat(4)}\\}`;
const NOTHING_ELSE = new RegExp(`^\\s*${BOX}\\s*$`);
const ANYWHERE = new RegExp(BOX, 'g');

/**
 * The box that a text is, and nothing beside; undefined where it is none: other words, a number over 100, no area.
 * Source: Vision-CAIR/MiniGPT-4, demo_v2.py.
 */
export function boxOf(text: string): WordBox | undefined {
  const found = NOTHING_ELSE.exec(text);
  return found === null ? undefined : boxFrom(found);
}

/** All boxes that a text names, among other words. */
export function boxesIn(text: string): WordBox[] {
  return [...text.matchAll(ANYWHERE)].map(boxFrom).filter((box) => box !== undefined);
}

/** A text with its boxes and phrases in one piece, `<p>dog</p> {<1><2><3><4>}`, as the data and other programs have them. */
export function boxesJoined(text: string): string {
  return text
    .replaceAll(ANYWHERE, '{<$1><$2><$3><$4>}')
    .replaceAll(/<\s*(\/?)\s*p\s*>/g, '<$1p>')
    .replaceAll(/<p>\s*(.*?)\s*<\/p>/g, '<p>$1</p>');
}

function boxFrom(found: RegExpExecArray): WordBox | undefined {
  const [left, top, right, bottom] = found.slice(1, 5).map(Number) as unknown as WordBox;
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
