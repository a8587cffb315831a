/** A contact sheet as a page: SVG by itself, inside of HTML, or as PNG. */
import { CELL, wordsOf, type ContactSheet } from './contact-sheet.ts';
import { drawnBox } from './drawn-box.ts';
import { checkPageName, pageAs } from './page-file.ts';
import { escapeXml, pictureUrl } from './picture.ts';

const GAP = 8;
const MARGIN = 24;
const LINE_HEIGHT = 18;
const NARROWEST = 640;
const INK = '#223';
const PALE = '#667';
const RED = '#c02639';

/**
 * Draws a page in the form that the name of its file asks for.
 * @throws UsageError USAGE for an ending other than .svg, .html and .png
 */
export async function drawPage(sheet: ContactSheet, file: string): Promise<string | Buffer> {
  checkPageName(file);
  return pageAs(await drawSvg(sheet), file, sheet.title ?? sheet.index.root);
}

async function drawSvg(sheet: ContactSheet): Promise<string> {
  const { title, index, framesPerSample, entries } = sheet;
  const width = Math.max(NARROWEST, 2 * MARGIN + framesPerSample * (CELL.width + GAP) - GAP);
  const { train, heldOut, skipped } = index;
  const body: string[] = [];
  let top = MARGIN;
  const line = (text: string, { size = 13, fill = INK, bold = false } = {}): void => {
    const weight = bold ? ' font-weight="bold"' : '';
    for (const part of wrapped(text, Math.floor((width - 2 * MARGIN) / (size * 0.56)))) {
      top += Math.max(LINE_HEIGHT, size * 1.3);
      body.push(
        `<text x="${MARGIN}" y="${top}" font-size="${size}" fill="${fill}"${weight}>${escapeXml(part)}</text>`,
      );
    }
  };
  line(title ?? index.root, { size: 19, bold: true });
  if (title === undefined)
    line(
      `${train.length} samples to train on, ${heldOut.length} held out; ${entries.length} of them are shown`,
      { fill: PALE },
    );
  for (const entry of entries) {
    const { title, lines } = wordsOf(entry, index);
    top += 16;
    line(title, { fill: PALE });
    if (entry.failure !== undefined) line(entry.failure, { fill: RED });
    for (let first = 0; first < entry.pictures.length; first += framesPerSample) {
      const row = entry.pictures.slice(first, first + framesPerSample);
      const rowHeight = Math.max(...row.map(({ height }) => height));
      for (const [i, picture] of row.entries()) {
        const x = MARGIN + i * (CELL.width + GAP);
        const time = picture.ptsSeconds === undefined ? '' : `${picture.ptsSeconds.toFixed(2)} s`;
        const label = escapeXml(picture.label ?? time);
        const url = await pictureUrl(picture.pixels, picture, 'jpeg');
        const { width: across, height: down, boxes = [] } = picture;
        const place = { x, y: top + 8, width: across, height: down };
        body.push(
          `<image x="${x}" y="${top + 8}" width="${across}" height="${down}" href="${url}"/>` +
            boxes.map((box) => drawnBox(box, place)).join('') +
            `<text x="${x}" y="${top + rowHeight + 22}" font-size="11" fill="${PALE}">${label}</text>`,
        );
      }
      top += rowHeight + 26;
    }
    for (const said of lines) line(said);
    if (lines.length === 0) line('(no words)', { fill: PALE });
  }
  if (skipped.length > 0) {
    top += 16;
    line(`${skipped.length} files cannot be used`, { bold: true });
    for (const { path, code, message } of skipped)
      line(`${path}: ${code}: ${message}`, { fill: RED });
  }
  const height = top + MARGIN;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif">\n` +
    `<rect width="${width}" height="${height}" fill="#fff"/>\n${body.join('\n')}\n</svg>\n`
  );
}

/** `text` in lines of at most so many characters, cut between words; one that is longer than a line is cut. */
function wrapped(text: string, numCharacters: number): string[] {
  const lines: string[] = [];
  let current = '';
  for (const word of text.split(/\s+/).flatMap((part) => chunksOf(part, numCharacters))) {
    if (current !== '' && current.length + 1 + word.length > numCharacters) {
      lines.push(current);
      current = '';
    }
    current += current === '' ? word : ` ${word}`;
  }
  return [...lines, current];
}

function chunksOf(word: string, size: number): string[] {
  const characters = Array.from(word);
  const chunks: string[] = [];
  for (let at = 0; at < characters.length; at += size)
    chunks.push(characters.slice(at, at + size).join(''));
  return chunks;
}
