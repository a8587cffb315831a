import { writeFile } from 'node:fs/promises';
import { basename, extname, join } from 'node:path';
import { UsageError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { checkOutputFile, outputError } from '../proto/output-path.ts';
import { openContactSheet } from '../video/look/contact-sheet.ts';
import { drawPage } from '../video/look/contact-sheet-page.ts';
import { uploadBatch } from './batches.ts';
import { openClipsOfFile, type ClipsOfFile } from './clip-of-file.ts';
import { openAnswering } from './generation/answers.ts';
import type { Row } from './systems/system.ts';
import { openTrainedRun, type TrainedRun, type TrainedRunOptions } from './trained-run.ts';
import { disposeTree, type TensorTree } from './tree.ts';

export interface SampleOptions extends TrainedRunOptions {
  /** A video or picture. */
  readonly file: string;
  /** What is asked; for a system that completes texts, one with `[MASK]`s. Empty: what the system is asked by itself. */
  readonly question: string;
  /** Contact sheet to write, .svg, .html or .png; undefined: in the run folder, with the file's name. */
  readonly out?: string | undefined;
}

/** What was said of a file's clips. */
export interface Sampled {
  readonly question: string;
  /** One a clip: a long file has several. */
  readonly answers: readonly { readonly startSeconds: number; readonly text: string }[];
  /** The contact sheet: frames of the clips with question and answer. */
  readonly sheet: string;
}

const SHEET_FRAMES = 6;

/**
 * Asks the newest checkpoint of a run about a file, and draws a contact sheet of what it saw and said.
 *
 * @throws UsageError `NO_CHECKPOINT`, `VIDEO_NOT_FOUND`, `OUT_NOT_WRITABLE`, `SAMPLE_UNAVAILABLE` where the system
 *   says nothing in words; errors of the data
 */
export async function sample({ file, question, out, ...options }: SampleOptions): Promise<Sampled> {
  if (!(await exists(file))) {
    throw new UsageError('VIDEO_NOT_FOUND', `there is no file ${file}: name a video or a picture`);
  }
  if (out !== undefined) await checkOutputFile(out);
  const trained = await openTrainedRun(options);
  let clips: ClipsOfFile | undefined;
  try {
    clips = await openClipsOfFile(trained.run, file, options.cacheDir);
    const { asked, texts } = await say(trained, clips.rows, question);
    const answers = clips.rows.map((row, i) => ({
      startSeconds: row.sample.media[0]?.startSeconds ?? 0,
      text: texts[i]!,
    }));
    const sheet = out ?? join(trained.run.folder, `sample-${basename(file, extname(file))}.svg`);
    await drawSheet(clips, { sheet, asked, texts });
    return { question: asked, answers, sheet };
  } finally {
    await clips?.close();
    await trained.close();
  }
}

async function say(
  { run, engine, params, frozen }: TrainedRun,
  rows: readonly Row[],
  question: string,
): Promise<{ asked: string; texts: readonly string[] }> {
  const { name, answers, fillIn } = run.system;
  if (answers !== undefined) {
    const answering = openAnswering(engine, answers, { params, frozen });
    const said = await answering.ask(rows, question);
    answering.close();
    return { asked: question, texts: said.map(({ text }) => text) };
  }
  if (fillIn === undefined) {
    throw new UsageError(
      'SAMPLE_UNAVAILABLE',
      `${name} compares clips with texts and writes none: see its held-out figures with videoloom probe`,
    );
  }
  const asked = question === '' ? fillIn.example : question;
  const batch = fillIn.assemble(rows, asked);
  const inputs = uploadBatch(engine, batch);
  const program = engine.compile(
    (own: TensorTree, arrays: TensorTree, given: TensorTree) => fillIn.logits(own, arrays, given),
    { name: 'fill in' },
  );
  const logits = await program(params, frozen, inputs);
  const texts = fillIn.complete(batch, await logits.data());
  disposeTree([logits, inputs]);
  program.close();
  return { asked, texts };
}

/** The clips with what was asked and said in place of their own words. */
async function drawSheet(
  { index, data }: ClipsOfFile,
  { sheet, asked, texts }: { sheet: string; asked: string; texts: readonly string[] },
): Promise<void> {
  const drawn = await openContactSheet({
    ...{ index, media: data.media, pool: data.pool },
    numSamples: texts.length,
    framesPerSample: SHEET_FRAMES,
  });
  const entries = drawn.entries.map((entry, i) => ({
    ...entry,
    sample: {
      ...entry.sample,
      parts: [
        ...(asked === '' ? [] : [{ role: 'user' as const, text: asked }]),
        { role: 'assistant' as const, text: texts[i] ?? '' },
      ],
    },
  }));
  const page = await drawPage({ ...drawn, entries }, sheet);
  await writeFile(sheet, page).catch((error: unknown) => {
    throw outputError(error, sheet);
  });
}
