/** A page of what a model saw and made of it, as SVG. */
import { drawnBox, type ShownBox } from '../../video/look/drawn-box.ts';
import { escapeXml } from '../../video/look/picture.ts';

/** Words in one line of text; those with a guess were the model's to find. */
export interface ShownWords {
  readonly text: string;
  /** What the model said in their place. */
  readonly guess?: string;
}

export interface ShownPicture {
  /** A data URL. */
  readonly url: string;
  /** Whether a hidden one was named right; absent: it was shown. */
  readonly guess?: boolean | undefined;
  readonly boxes?: readonly ShownBox[];
}

/** One sample. */
export interface LookEntry {
  readonly id: string;
  /** Each a line of its own, broken where it is long. */
  readonly lines: readonly (readonly ShownWords[])[];
  readonly pictures: readonly ShownPicture[];
}

export interface LookPage {
  readonly title: string;
  /** What colours and lines mean; `{green}` and `{red}` stand for the colours' names in them. */
  readonly legend: string;
  readonly entries: readonly LookEntry[];
}

const GREEN = '#0a7d3c';
const RED = '#c02639';
const INK = '#223';
const PALE = '#667';
/** Height and width of a picture on the page. */
const CELL = 116;
const GAP = 8;
const MARGIN = 24;
const NARROWEST = 760;
const LINE_HEIGHT = 22;
const FONT_SIZE = 15;

/** A word, with the attributes that it is drawn with. */
interface Piece {
  readonly text: string;
  readonly attributes: string;
}

export function drawLookPage({ title, legend, entries }: LookPage): string {
  const columns = Math.max(...entries.map(({ pictures }) => pictures.length));
  const width = Math.max(NARROWEST, 2 * MARGIN + columns * (CELL + GAP) - GAP);
  const body: string[] = [];
  let top = 72;
  for (const { id, lines, pictures } of entries) {
    body.push(
      `<text x="${MARGIN}" y="${top + 10}" font-size="11" fill="#889">${escapeXml(id)}</text>`,
    );
    top += 10;
    for (const line of lines.flatMap((words) => broken(piecesOf(words), width - 2 * MARGIN))) {
      top += LINE_HEIGHT;
      body.push(
        `<text x="${MARGIN}" y="${top}" font-size="${FONT_SIZE}" fill="${INK}" xml:space="preserve">${markupOf(line)}</text>`,
      );
    }
    top += 12;
    body.push(
      pictures.map((picture, at) => drawn(picture, MARGIN + at * (CELL + GAP), top)).join(''),
    );
    const hasNotes = pictures.some(({ guess }) => guess !== undefined);
    top += (pictures.length === 0 ? 0 : CELL) + (hasNotes ? 40 : 28);
  }
  const meaning = escapeXml(legend)
    .replaceAll('{green}', `<tspan fill="${GREEN}">Green</tspan>`)
    .replaceAll('{red}', `<tspan fill="${RED}">Red</tspan>`);
  const height = top + 16;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif">
<defs><pattern id="hidden" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="8" height="8" fill="#fff" fill-opacity=".55"/><rect width="4" height="8" fill="${INK}" fill-opacity=".45"/></pattern></defs>
<rect width="${width}" height="${height}" fill="#fff"/>
<text x="${MARGIN}" y="34" font-size="19" font-weight="bold" fill="${INK}">${escapeXml(title)}</text>
<text x="${MARGIN}" y="54" font-size="12" fill="${PALE}">${meaning}</text>
${body.join('\n')}
</svg>
`;
}

function drawn({ url, guess, boxes = [] }: ShownPicture, x: number, y: number): string {
  const image =
    `<image x="${x}" y="${y}" width="${CELL}" height="${CELL}" href="${url}"/>` +
    boxes.map((box) => drawnBox(box, { x, y, width: CELL, height: CELL })).join('');
  if (guess === undefined) return image;
  const colour = guess ? GREEN : RED;
  return (
    image +
    `<rect x="${x}" y="${y}" width="${CELL}" height="${CELL}" fill="url(#hidden)" stroke="${colour}" stroke-width="3"/>` +
    `<text x="${x + CELL / 2}" y="${y + CELL + 18}" text-anchor="middle" font-size="12" fill="${colour}">hidden: ${guess ? 'right' : 'wrong'} word</text>`
  );
}

/** Word by word, so that lines can be broken between them; the truth stands behind a guess that is another. */
function piecesOf(words: readonly ShownWords[]): Piece[] {
  return words.flatMap(({ text, guess }) => {
    if (guess === undefined) return styled(text, '');
    const colour = guess === text ? GREEN : RED;
    const said = styled(
      guess.trim() === '' ? '(nothing)' : guess,
      ` fill="${colour}" font-weight="bold" text-decoration="underline"`,
    );
    return guess === text ? said : [...said, ...styled(`(${text})`, ` fill="${PALE}"`)];
  });
}

function styled(text: string, attributes: string): Piece[] {
  return text
    .split(/\s+/)
    .filter((word) => word !== '')
    .map((word) => ({ text: word, attributes }));
}

/** Of text of the page's size, about: what draws it has a font of its own. */
function widthOf({ text, attributes }: Piece): number {
  const plain = attributes.includes('bold') ? 9.5 : 8.5;
  return Array.from(text).reduce((sum, letter) => {
    const isWide = /[\u1100-\uffff]|[\u{10000}-\u{10ffff}]/u.test(letter);
    return sum + (isWide ? 16 : /[<>=+~@%&mwMW]/.test(letter) ? 13 : plain);
  }, 0);
}

/** A word that no line has room for, in pieces. */
function fitting(piece: Piece, width: number): Piece[] {
  const letters = Array.from(piece.text);
  const count = Math.ceil(widthOf(piece) / width);
  const size = Math.ceil(letters.length / count);
  return Array.from({ length: count }, (_, k) => ({
    ...piece,
    text: letters.slice(k * size, (k + 1) * size).join(''),
  })).filter(({ text }) => text !== '');
}

/** Lines of at most `width`, about. */
function broken(pieces: readonly Piece[], width: number): Piece[][] {
  const lines: Piece[][] = [];
  let room = 0;
  for (const piece of pieces.flatMap((each) => fitting(each, width))) {
    const needed = widthOf(piece) + widthOf({ ...piece, text: ' ' });
    if (needed > room || lines.length === 0) {
      lines.push([]);
      room = width;
    }
    lines.at(-1)!.push(piece);
    room -= needed;
  }
  return lines;
}

/** Neighbours that are drawn alike are one run, with the spaces between them. */
function markupOf(line: readonly Piece[]): string {
  const runs: { text: string; attributes: string }[] = [];
  for (const { text, attributes } of line) {
    const last = runs.at(-1);
    if (last?.attributes === attributes) last.text += ` ${text}`;
    else runs.push({ text, attributes });
  }
  return runs
    .map(({ text, attributes }) => `<tspan${attributes}>${escapeXml(text)}</tspan>`)
    .join('<tspan> </tspan>');
}
