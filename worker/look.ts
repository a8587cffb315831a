import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UsageError } from '../proto/errors.ts';
import { checkOutputFile, outputError } from '../proto/output-path.ts';
import { isFileFault } from '../video/loading/file-fault.ts';
import {
  openClipLoader,
  type Clip,
  type ClipLoader,
  type ClipRequest,
} from '../video/loading/loader.ts';
import { escapeXml, pictureUrl } from '../video/look/picture.ts';
import { rowsOf, uploadBatch } from './batches.ts';
import type { Explained, Row } from './systems/system.ts';
import { clipLoaderOptions } from './run.ts';
import { openTrainedRun, type TrainedRunOptions } from './trained-run.ts';
import type { TensorTree } from './tree.ts';

export interface LookOptions extends TrainedRunOptions {
  readonly clips: number;
  /** File to write; undefined: `look.svg` in the run folder. */
  readonly out?: string | undefined;
  /** Told in one line which clips are left out, if any. */
  readonly say?: (line: string) => void;
}

const SHOWN_FRAME_PIXELS = 112;

/**
 * Draws held-out clips with what was hidden from the newest checkpoint's model and what it guessed; gives the file. Clips
 * that do not decode are left out.
 *
 * @throws UsageError `NO_CHECKPOINT` when the run has none yet; `OUT_NOT_WRITABLE`; where no clip decodes, what the first
 *   of them failed by
 */
export async function look({ clips, out, say, ...options }: LookOptions): Promise<string> {
  if (out !== undefined) await checkOutputFile(out);
  const trained = await openTrainedRun(options);
  const { run, engine, step, params, frozen } = trained;
  try {
    const { look: looking } = run.system;
    if (looking === undefined) {
      throw new UsageError(
        'LOOK_UNAVAILABLE',
        `${run.system.name} has nothing that is hidden and guessed: ask it with videoloom sample`,
      );
    }
    const { heldOut } = run.index;
    const spread = Array.from({ length: Math.min(clips, heldOut.length) }, (_, i) =>
      Math.floor((i * heldOut.length) / Math.min(clips, heldOut.length)),
    );
    const { decoded, leftOut } = await decodable(
      run.heldOutLoader,
      spread.map((sample) => ({ sample, epoch: 0, substitutes: [] })),
    );
    if (leftOut.length > 0) {
      const names = leftOut.map(({ sample, code }) => `${heldOut[sample]!.id} (${code})`);
      say?.(`left out, for they do not decode: ${names.join(', ')}`);
    }
    const requests = decoded.map(({ sample }) => ({ sample, epoch: 0, substitutes: [] }));
    const rows = rowsOf(heldOut, requests, decoded);
    const batch = looking.assemble(rows);
    const guess = engine.compile(
      (own: TensorTree, arrays: TensorTree, inputs: TensorTree) =>
        looking.guess(own, arrays, inputs),
      { name: 'look' },
    );
    const answers = await guess(params, frozen, uploadBatch(engine, batch));
    const guesses = Object.fromEntries(
      await Promise.all(
        Object.entries(answers).map(async ([name, tensor]) => [name, await tensor.data()] as const),
      ),
    );
    const explained = looking.explain(batch, guesses);

    // The model sees small frames; people see better on larger ones of the same times.
    const large = openClipLoader({
      ...clipLoaderOptions(run.config, run.index, 'heldOut', run.data),
      frameSize: SHOWN_FRAME_PIXELS,
    });
    const pictures = await Promise.all(
      (await large.load(requests)).map(({ frames }) => windowPictures(frames, run.config.data)),
    );
    const file = out ?? join(run.folder, 'look.svg');
    const title = `${run.config.model.name}, step ${step}: what it sees and guesses`;
    await writeFile(file, drawPage(title, rows, explained, pictures)).catch((error: unknown) => {
      throw outputError(error, file);
    });
    return file;
  } finally {
    await trained.close();
  }
}

/** The clips that decode, in the order of the requests, and those that do not. */
async function decodable(
  loader: ClipLoader,
  requests: readonly ClipRequest[],
): Promise<{
  readonly decoded: readonly Clip[];
  readonly leftOut: readonly { readonly sample: number; readonly code: string }[];
}> {
  const tried = await Promise.allSettled(requests.map((request) => loader.load([request])));
  const decoded: Clip[] = [];
  const leftOut: { readonly sample: number; readonly code: string }[] = [];
  for (const [i, result] of tried.entries()) {
    if (result.status === 'fulfilled') decoded.push(...result.value);
    else if (isFileFault(result.reason))
      leftOut.push({ sample: requests[i]!.sample, code: result.reason.code });
    else throw result.reason;
  }
  const failed = tried.find(({ status }) => status === 'rejected');
  if (decoded.length === 0 && failed?.status === 'rejected') throw failed.reason;
  return { decoded, leftOut };
}

/** The first frame of each window as a PNG data URL. */
async function windowPictures(
  frames: Uint8Array,
  { windows, framesPerWindow }: { windows: number; framesPerWindow: number },
): Promise<string[]> {
  const size = SHOWN_FRAME_PIXELS;
  const frameBytes = size * size * 3;
  return Promise.all(
    Array.from({ length: windows }, (_, window) => {
      const start = window * framesPerWindow * frameBytes;
      const pixels = frames.subarray(start, start + frameBytes);
      return pictureUrl(pixels, { width: size, height: size });
    }),
  );
}

function drawPage(
  title: string,
  rows: readonly Row[],
  explained: readonly Explained[],
  pictures: readonly string[][],
): string {
  const [cell, gap, margin, rowHeight] = [116, 8, 24, 200];
  const windows = Math.max(...pictures.map(({ length }) => length));
  const width = 2 * margin + windows * (cell + gap) - gap;
  const height = 88 + rows.length * rowHeight;
  const body = rows.map((row, index) => {
    const top = 72 + index * rowHeight;
    const frames = pictures[index]!.map((url, window) => {
      const x = margin + window * (cell + gap);
      const { guess } = explained[index]!.windows[window]!;
      const image = `<image x="${x}" y="${top + 44}" width="${cell}" height="${cell}" href="${url}"/>`;
      if (guess === undefined) return image;
      const colour = guess ? GREEN : RED;
      return (
        image +
        `<rect x="${x}" y="${top + 44}" width="${cell}" height="${cell}" fill="url(#hidden)" stroke="${colour}" stroke-width="3"/>` +
        `<text x="${x + cell / 2}" y="${top + 44 + cell + 18}" text-anchor="middle" font-size="12" fill="${colour}">hidden: ${guess ? 'right' : 'wrong'} word</text>`
      );
    });
    const words = explained[index]!.words.map(({ text, guess }) => {
      if (guess === undefined) return `<tspan> ${escapeXml(text)}</tspan>`;
      const colour = guess === text ? GREEN : RED;
      return (
        `<tspan> </tspan><tspan fill="${colour}" font-weight="bold" text-decoration="underline">${escapeXml(guess)}</tspan>` +
        (guess === text ? '' : `<tspan fill="#667"> (${escapeXml(text)})</tspan>`)
      );
    });
    return (
      `<text x="${margin}" y="${top + 10}" font-size="11" fill="#889">${escapeXml(row.sample.id)}</text>` +
      `<text x="${margin}" y="${top + 32}" font-size="15" fill="#223">${words.join('')}</text>${frames.join('')}`
    );
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif">
<defs><pattern id="hidden" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="8" height="8" fill="#fff" fill-opacity=".55"/><rect width="4" height="8" fill="#223" fill-opacity=".45"/></pattern></defs>
<rect width="${width}" height="${height}" fill="#fff"/>
<text x="${margin}" y="34" font-size="19" font-weight="bold" fill="#223">${escapeXml(title)}</text>
<text x="${margin}" y="54" font-size="12" fill="#667">Underlined words and hatched frames were hidden. <tspan fill="${GREEN}">Green</tspan>: guessed right. <tspan fill="${RED}">Red</tspan>: guessed wrong (the truth in brackets).</text>
${body.join('\n')}
</svg>
`;
}

const GREEN = '#0a7d3c';
const RED = '#c02639';
