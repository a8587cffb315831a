import { writeFile } from 'node:fs/promises';
import { basename, extname, join } from 'node:path';
import { UsageError } from '../../proto/errors.ts';
import { exists } from '../../proto/exists.ts';
import { checkOutputFile, outputError } from '../../proto/output-path.ts';
import { CELL, type ContactSheet, type SheetPicture } from '../../video/look/contact-sheet.ts';
import { drawPage } from '../../video/look/contact-sheet-page.ts';
import { squarePixels } from '../../video/look/picture.ts';
import { uploadBatch } from '../batches.ts';
import { openClipsOfFile, type ClipsOfFile } from '../clip-of-file.ts';
import { openAnswering } from '../generation/answers.ts';
import { openGenerator } from '../generation/generator.ts';
import { openLargeFrames } from './large-frames.ts';
import { heldOutCaptions, rankedTexts } from './ranked-texts.ts';
import { clipLoaderOptions, type Run } from '../run.ts';
import { boxesIn } from '../systems/boxes.ts';
import { framesShown } from './shown-frames.ts';
import type { DrawnPicture, Given, Row } from '../systems/system.ts';
import { openTrainedRun, type TrainedRun, type TrainedRunOptions } from '../trained-run.ts';
import { disposeTree, type TensorTree } from '../tree.ts';

export interface SampleOptions extends TrainedRunOptions {
  /** A video or picture. */
  readonly file: string;
  /** What is asked; for a system that completes texts, one with `[MASK]`s; for one that compares, texts with `|` between. Empty: what the system is asked by itself. */
  readonly question: string;
  /** Shown before what is asked, in their order; none unless given. */
  readonly examples?: readonly SampleExample[];
  /** Contact sheet to write, .svg, .html or .png; undefined: in the run folder, with the file's name. */
  readonly out?: string | undefined;
  /** Told what is asked where it is not the question as it stands, a line each. */
  readonly say?: (line: string) => void;
}

/** A video or picture whose first clip is shown with the right answer. */
export interface SampleExample {
  readonly file: string;
  readonly answer: string;
}

/** What was said of a file's clips. */
export interface Sampled {
  /** One a clip: a long file has several. */
  readonly answers: readonly { readonly startSeconds: number; readonly text: string }[];
  /** The contact sheet: what the model was given of the clips, and its answers. */
  readonly sheet: string;
}

/** Captions that are told of those which a clip is compared with. */
const NUM_NEAREST = 5;
/** Frames beside one another. */
const SHEET_FRAMES = 6;

/**
 * Asks the newest checkpoint of a run about a file, and draws a contact sheet of what it saw and said.
 *
 * @throws UsageError `NO_CHECKPOINT`, `VIDEO_NOT_FOUND`, `OUT_NOT_WRITABLE`, `SAMPLE_UNAVAILABLE` where the system
 *   says nothing in words, `EXAMPLES_UNAVAILABLE` where it reads none; errors of the data
 */
export async function sample(options: SampleOptions): Promise<Sampled> {
  const { file, question, examples = [], out, say } = options;
  for (const named of [file, ...examples.map((example) => example.file)]) {
    if (await exists(named)) continue;
    throw new UsageError('VIDEO_NOT_FOUND', `there is no file ${named}: name a video or a picture`);
  }
  if (out !== undefined) await checkOutputFile(out);
  const trained = await openTrainedRun(options);
  let clips: ClipsOfFile | undefined;
  try {
    const { name, answers: answering } = trained.run.system;
    if (examples.length > 0 && answering?.takesExamples !== true)
      throw new UsageError('EXAMPLES_UNAVAILABLE', `${name} reads no examples before a question`);
    clips = await openClipsOfFile(trained.run, file, options.cacheDir);
    const shown = await rowsOfExamples(trained.run, examples, options.cacheDir);
    const rows =
      examples.length === 0 ? clips.rows : clips.rows.map((row) => ({ ...row, examples: shown }));
    const { given, texts } = await ask(trained, rows, question);
    const drawn = await draw(trained, rows, { question, texts });
    for (const line of linesAbout(given, question)) say?.(line);
    const answers = clips.rows.map((row, i) => ({
      startSeconds: row.sample.media[0]?.startSeconds ?? 0,
      text: texts[i]!,
    }));
    const sheet = out ?? join(trained.run.folder, `sample-${basename(file, extname(file))}.svg`);
    const page = await drawPage(
      await sheetOf(trained, { ...clips, rows }, { given, texts, drawn }),
      sheet,
    );
    await writeFile(sheet, page).catch((error: unknown) => {
      throw outputError(error, sheet);
    });
    return { answers, sheet };
  } finally {
    await clips?.close();
    await trained.close();
  }
}

/** The first clip of each file, of which nothing is said but the answer. */
async function rowsOfExamples(
  run: Run,
  examples: readonly SampleExample[],
  cacheDir: string,
): Promise<Row[]> {
  const rows: Row[] = [];
  for (const { file, answer } of examples) {
    const clips = await openClipsOfFile(run, file, cacheDir);
    try {
      const row = clips.rows[0]!;
      const { id, media, decodeMegapixels } = row.sample;
      rows.push({ ...row, sample: { id, media, decodeMegapixels, text: answer, cues: [] } });
    } finally {
      await clips.close();
    }
  }
  return rows;
}

/** What of the question is to be told: that the system's own is asked, that its end is cut off, or all of it. */
function linesAbout(given: readonly Given[], question: string): ReadonlySet<string> {
  return new Set(
    given.flatMap(({ question: asked, cutTo }) => {
      if (cutTo === 0)
        return question === '' ? [] : ['the question is not read: the model writes captions alone'];
      if (cutTo !== undefined) return [`the question is cut to ${cutTo} word pieces: ${asked}`];
      return question === '' ? [`asked: ${asked}`] : [];
    }),
  );
}

async function ask(
  trained: TrainedRun,
  rows: readonly Row[],
  question: string,
): Promise<{ given: readonly Given[]; texts: readonly string[] }> {
  const { run, engine, params, frozen } = trained;
  const { name, answers, fillIn, similarity } = run.system;
  if (answers !== undefined) {
    const answering = openAnswering(engine, answers, { params, frozen });
    const said = await answering.ask(rows, question);
    answering.close();
    return {
      given: rows.map((row) => answers.given(row, question)),
      texts: said.map(({ text }) => text),
    };
  }
  if (fillIn === undefined && similarity !== undefined) {
    const given = question.split('|').flatMap((text) => text.trim() || []);
    const texts = given.length > 0 ? given : heldOutCaptions(run, similarity, 0).texts;
    const ranked = await rankedTexts(trained, similarity, rows, texts);
    const asked =
      given.length > 0 ? given.join(' | ') : `which of ${texts.length} held-out captions ?`;
    return {
      given: rows.map(() => ({ question: asked })),
      texts: ranked.map((all) =>
        all
          .slice(0, Math.max(given.length, NUM_NEAREST))
          .map(({ text, alike }) => `${alike.toFixed(3)} ${text}`)
          .join(' | '),
      ),
    };
  }
  if (fillIn === undefined) {
    throw new UsageError(
      'SAMPLE_UNAVAILABLE',
      `${name} neither writes nor compares: see its held-out figures with videoloom probe`,
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
  return { given: rows.map((row) => fillIn.given(row, asked)), texts };
}

/** A picture that is no frame, and what it is. */
interface Drawn extends DrawnPicture {
  readonly label: string;
}

/** Where a system draws: of each clip what the model sees of it, and what it draws of the text; else nothing. */
async function draw(
  { run, engine, params, frozen }: TrainedRun,
  rows: readonly Row[],
  { question, texts }: { readonly question: string; readonly texts: readonly string[] },
): Promise<readonly (readonly Drawn[])[]> {
  const { draws } = run.system;
  if (draws === undefined) return rows.map(() => []);
  const wanted = texts.map((text) => draws.textOf(question, text));
  const generator = openGenerator(engine, draws.model, { maxNewTokens: draws.numTokens });
  const prompt = uploadBatch(engine, draws.assemble(wanted));
  try {
    const pictures = await generator.generate({ params, frozen }, prompt, {
      strategy: { kind: 'sample', seed: run.config.train.seed },
      eosIds: [],
    });
    return rows.map((row, i) => [
      { ...draws.picture(draws.seen(row)), label: 'as the model sees it' },
      { ...draws.picture(pictures[i]!.ids), label: `drawn: ${wanted[i]!}` },
    ]);
  } finally {
    disposeTree(prompt);
    generator.close();
  }
}

/** The clips with what was given of them and what was said, in place of their own words. */
async function sheetOf(
  { run: { config, system }, step }: TrainedRun,
  { index, data, rows }: ClipsOfFile,
  {
    given,
    texts,
    drawn,
  }: {
    readonly given: readonly Given[];
    readonly texts: readonly string[];
    readonly drawn: readonly (readonly Drawn[])[];
  },
): Promise<ContactSheet> {
  const options = clipLoaderOptions(config, index, 'heldOut', data);
  const framesOfRow = openLargeFrames(options, CELL.width);
  const entries = await Promise.all(
    rows.map(async (row, i) => {
      const { question, words, windows } = given[i]!;
      const frameAt = await framesOfRow(row);
      const own = await Promise.all(
        drawn[i]!.map(async ({ pixels, label, ...size }): Promise<SheetPicture> => ({
          pixels: await squarePixels(pixels, size, CELL.width),
          ...{ width: CELL.width, height: CELL.width, ptsSeconds: undefined, label },
        })),
      );
      // Examples are of other files: as the model has them, in large.
      const examples = await Promise.all(
        (row.examples ?? []).map(async (example): Promise<SheetPicture> => {
          const { frameSize, framesPerWindow } = config.data;
          const first = framesShown(example, windows, framesPerWindow)[0] ?? 0;
          const bytes = frameSize * frameSize * 3;
          const pixels = example.frames.subarray(first * bytes, (first + 1) * bytes);
          const size = { width: frameSize, height: frameSize };
          return {
            pixels: await squarePixels(pixels, size, CELL.width),
            ...{ width: CELL.width, height: CELL.width, ptsSeconds: undefined },
            label: `example: ${example.sample.text}`,
          };
        }),
      );
      const isVideo = index.files[row.sample.media[0]!.file]!.kind === 'video';
      return {
        sample: {
          ...row.sample,
          cues: [],
          parts: [
            ...(question === '' ? [] : [{ role: 'user' as const, text: question }]),
            ...(words === undefined ? [] : [{ text: `read before the answer: ${words}` }]),
            { role: 'assistant' as const, text: texts[i]! },
          ],
        },
        split: undefined,
        pictures: [
          ...examples,
          ...framesShown(row, windows, config.data.framesPerWindow).map((frame): SheetPicture => {
            return {
              pixels: frameAt(frame),
              ...{ width: CELL.width, height: CELL.width },
              ptsSeconds: isVideo ? row.timesSeconds[frame] : undefined,
              boxes: [
                ...boxesIn(question).map((box) => ({ box, of: 'question' as const })),
                ...boxesIn(texts[i]!).map((box) => ({ box, of: 'answer' as const })),
              ],
            };
          }),
          ...own,
        ],
        failure: undefined,
      };
    }),
  );
  const title = `${system.name}, step ${step}: what it saw and said`;
  return { title, index, framesPerSample: SHEET_FRAMES, entries };
}
