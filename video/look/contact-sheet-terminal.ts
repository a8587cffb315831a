import { printable } from '../../proto/printable.ts';
import { CELL, wordsOf, type ContactSheet, type SheetPicture } from './contact-sheet.ts';

/** Columns that a picture takes at most, and the column between two. */
const MAX_COLUMNS = 26;
const GAP = 1;

/**
 * A contact sheet for a terminal of so many columns with 24-bit colour: each character is two pixels, one above the
 * other, as the colours of an upper half block and of its background.
 */
export function* drawTerminal(sheet: ContactSheet, numColumns: number): Generator<string> {
  const { index, framesPerSample, entries } = sheet;
  const columns = Math.floor(numColumns / framesPerSample) - GAP;
  const cell = Math.max(4, Math.min(MAX_COLUMNS, columns));
  const perRow = Math.max(1, Math.floor((numColumns + GAP) / (cell + GAP)));
  for (const entry of entries) {
    const { title, lines } = wordsOf(entry, index);
    yield printable(title);
    if (entry.failure !== undefined) yield `  ${printable(entry.failure)}`;
    for (let first = 0; first < entry.pictures.length; first += perRow) {
      yield* rowOf(entry.pictures.slice(first, first + perRow), cell);
    }
    for (const line of lines.length === 0 ? ['(no words)'] : lines) yield `  ${printable(line)}`;
    yield '';
  }
}

function* rowOf(pictures: readonly SheetPicture[], columns: number): Generator<string> {
  const drawn = pictures.map((picture) => {
    const own = Math.max(1, Math.round((columns * picture.width) / CELL.width));
    const beside = ' '.repeat(columns - own);
    return blocksOf(picture, own).map((line) => line + beside);
  });
  const numLines = Math.max(...drawn.map(({ length }) => length));
  for (let at = 0; at < numLines; at++) {
    yield drawn.map((lines) => lines[at] ?? ' '.repeat(columns)).join(' '.repeat(GAP));
  }
}

function blocksOf({ pixels, width, height }: SheetPicture, columns: number): string[] {
  const numLines = Math.max(1, Math.round((columns * height) / width / 2));
  return Array.from({ length: numLines }, (_, line) => {
    const colours = Array.from({ length: columns }, (_, column) => {
      const [upper, lower] = [0, 1].map((half) =>
        meanColour(pixels, width, {
          left: Math.floor((column * width) / columns),
          right: Math.ceil(((column + 1) * width) / columns),
          top: Math.floor(((2 * line + half) * height) / (2 * numLines)),
          bottom: Math.ceil(((2 * line + half + 1) * height) / (2 * numLines)),
        }),
      );
      return `\x1b[38;2;${upper!}m\x1b[48;2;${lower!}m▀`;
    });
    return `${colours.join('')}\x1b[0m`;
  });
}

/** `r;g;b` of a part of a picture. */
function meanColour(
  pixels: Uint8Array,
  width: number,
  { left, right, top, bottom }: Record<'left' | 'right' | 'top' | 'bottom', number>,
): string {
  const sums = [0, 0, 0];
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      for (let c = 0; c < 3; c++) sums[c]! += pixels[(y * width + x) * 3 + c]!;
    }
  }
  const count = (right - left) * (bottom - top);
  return sums.map((sum) => Math.round(sum / count)).join(';');
}
