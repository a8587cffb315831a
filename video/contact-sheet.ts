/** Samples of an index as a page for people: frames of each with their times, and the words that belong to them. */
import { join } from 'node:path';
import { DecodeError, isPoolFault } from './decode-error.ts';
import type { DecoderPool } from './decoder.ts';
import { evenTimes } from './frame-sampler.ts';
import { escapeXml, pictureUrl } from './picture.ts';
import type { Sample, SampleIndex } from './sample-index.ts';

export interface ContactSheetOptions {
  readonly index: SampleIndex;
  readonly pool: DecoderPool;
  /** Samples drawn, spread evenly over both splits. */
  readonly numSamples: number;
  readonly framesPerSample: number;
}

/** A frame as it is drawn. */
interface Picture {
  readonly url: string;
  readonly ptsSeconds: number;
}

/** A sample with its frames, or with what kept them from being decoded. */
interface Entry {
  readonly sample: Sample;
  readonly split: 'train' | 'held-out';
  readonly height: number;
  readonly pictures: readonly Picture[];
  readonly failure: string | undefined;
}

const CELL = { width: 160, gap: 8, maxHeight: 240 };
const MARGIN = 24;
const LINE_HEIGHT = 18;
const NARROWEST = 640;

/** Draws an SVG page. A video that does not decode is shown as its error, as is every file that the index skipped. */
export async function contactSheet(options: ContactSheetOptions): Promise<string> {
  const { index, numSamples } = options;
  const all = [
    ...index.train.map((sample) => ({ sample, split: 'train' as const })),
    ...index.heldOut.map((sample) => ({ sample, split: 'held-out' as const })),
  ];
  const count = Math.min(numSamples, all.length);
  const chosen = Array.from(
    { length: count },
    (_, i) => all[Math.floor((i * all.length) / count)]!,
  );
  const entries = await Promise.all(
    chosen.map(async ({ sample, split }) => ({ split, ...(await decodeEntry(sample, options)) })),
  );
  return drawPage(options, entries);
}

async function decodeEntry(
  sample: Sample,
  { index, pool, framesPerSample }: ContactSheetOptions,
): Promise<Omit<Entry, 'split'>> {
  const path = join(index.root, sample.path);
  try {
    const shown = await pool.probe(path);
    const inProportion = Math.round((CELL.width * shown.height) / shown.width);
    const height = Math.max(1, Math.min(CELL.maxHeight, inProportion));
    const { frames, ptsSeconds } = await pool.decode({
      path,
      timesSeconds: evenTimes(sample.startSeconds, sample.endSeconds, framesPerSample),
      width: CELL.width,
      height,
    });
    const size = { width: CELL.width, height };
    const numBytes = CELL.width * height * 3;
    const pictures = await Promise.all(
      Array.from(ptsSeconds, async (pts, i) => ({
        url: await pictureUrl(frames.subarray(i * numBytes, (i + 1) * numBytes), size, 'jpeg'),
        ptsSeconds: pts,
      })),
    );
    return { sample, height, pictures, failure: undefined };
  } catch (error) {
    // Without a decoder there is nothing to draw; a bad file is something to be seen.
    if (!(error instanceof DecodeError) || isPoolFault(error)) throw error;
    const failure = `${error.code}: ${error.message}`;
    return { sample, height: 0, pictures: [], failure };
  }
}

function drawPage(
  { index, framesPerSample }: ContactSheetOptions,
  entries: readonly Entry[],
): string {
  const width = Math.max(
    NARROWEST,
    2 * MARGIN + framesPerSample * (CELL.width + CELL.gap) - CELL.gap,
  );
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
  line(index.root, { size: 19, bold: true });
  line(
    `${train.length} samples to train on, ${heldOut.length} held out; ${entries.length} of them are shown`,
    { fill: PALE },
  );
  for (const { sample, split, height, pictures, failure } of entries) {
    const { path, startSeconds, endSeconds, text, cues } = sample;
    top += 16;
    line(`${path} · ${spanOf(startSeconds, endSeconds)} · ${split}`, { fill: PALE });
    if (failure !== undefined) line(failure, { fill: RED });
    for (const [i, { url, ptsSeconds }] of pictures.entries()) {
      const x = MARGIN + i * (CELL.width + CELL.gap);
      body.push(
        `<image x="${x}" y="${top + 8}" width="${CELL.width}" height="${height}" href="${url}"/>` +
          `<text x="${x}" y="${top + height + 22}" font-size="11" fill="${PALE}">${ptsSeconds.toFixed(2)} s</text>`,
      );
    }
    if (pictures.length > 0) top += height + 26;
    // Subtitles have times of their own; a caption speaks of the whole.
    if (cues.length > 1) {
      for (const cue of cues) line(`${spanOf(cue.startSeconds, cue.endSeconds)}: ${cue.text}`);
    } else line(text === '' ? '(no words)' : text, { fill: text === '' ? PALE : INK });
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

function spanOf(startSeconds: number, endSeconds: number): string {
  return `${startSeconds.toFixed(2)}-${endSeconds.toFixed(2)} s`;
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

const INK = '#223';
const PALE = '#667';
const RED = '#c02639';
