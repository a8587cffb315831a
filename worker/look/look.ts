import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UsageError } from '../../proto/errors.ts';
import { checkOutputFile, outputError } from '../../proto/output-path.ts';
import { drawnOf, openRng } from '../../proto/random.ts';
import { isFileFault } from '../../video/loading/file-fault.ts';
import type { Clip } from '../../video/loading/loader.ts';
import type { ShownBox } from '../../video/look/drawn-box.ts';
import { checkPageName, pageAs } from '../../video/look/page-file.ts';
import { pictureUrl } from '../../video/look/picture.ts';
import { spread } from '../../video/look/spread.ts';
import { rowsOf, uploadBatch } from '../batches.ts';
import { questionsOf } from '../eval/held-out-questions.ts';
import { plainAnswer } from '../eval/scores/score.ts';
import { openAnswering } from '../generation/answers.ts';
import { openLargeFrames } from './large-frames.ts';
import { drawLookPage, type LookEntry, type ShownPicture } from './look-page.ts';
import { heldOutCaptions, rankedTexts } from './ranked-texts.ts';
import { clipLoaderOptions, type Run } from '../run.ts';
import { boxesIn } from '../systems/boxes.ts';
import { framesShown } from './shown-frames.ts';
import type { Answers, Given, Row, Similarity, VideoLanguageSystem } from '../systems/system.ts';
import { openTrainedRun, type TrainedRun, type TrainedRunOptions } from '../trained-run.ts';
import type { TensorTree } from '../tree.ts';

export interface LookOptions extends TrainedRunOptions {
  readonly clips: number;
  /** File to write; undefined: `look.svg` in the run folder. */
  readonly out?: string | undefined;
  /** Told in one line which clips are left out, if any. */
  readonly say?: (line: string) => void;
}

/** Held-out samples with what a model made of them. */
interface Looked {
  readonly title: string;
  readonly legend: string;
  readonly entries: readonly {
    readonly row: Row;
    readonly lines: LookEntry['lines'];
    /** The frames that are drawn; a hidden one with whether it was named right. */
    readonly frames: readonly { readonly place: number; readonly guess?: boolean | undefined }[];
    /** On each of them. */
    readonly boxes: readonly ShownBox[];
  }[];
}

const SHOWN_FRAME_PIXELS = 112;
/** Of one sample, evenly drawn from those that the model sees. */
const MAX_PICTURES = 8;

/**
 * Draws held-out samples with what the newest checkpoint's model made of them: what it guessed for what was hidden, what
 * it wrote, or the caption that it finds nearest; gives the file. Samples that do not decode are left out.
 *
 * @throws UsageError `NO_CHECKPOINT` when the run has none yet; `OUT_NOT_WRITABLE`; `NOTHING_HELD_OUT`; where no sample
 *   decodes, what the first of them failed by
 */
export async function look({ clips, out, say, ...options }: LookOptions): Promise<string> {
  if (out !== undefined) await checkOutputFile(out);
  checkPageName(out ?? 'look.svg');
  const trained = await openTrainedRun(options);
  const { run, step } = trained;
  try {
    const { look: looking, answers, similarity, name } = run.system;
    const looked =
      looking !== undefined
        ? await guessHidden(trained, looking, clips, say)
        : answers !== undefined
          ? await writeAnswers(trained, answers, clips, say)
          : similarity !== undefined
            ? await findNearest(trained, similarity, clips, say)
            : undefined;
    if (looked === undefined) {
      throw new UsageError(
        'LOOK_UNAVAILABLE',
        `${name} neither guesses nor writes nor compares: see its held-out figures with videoloom probe`,
      );
    }
    const file = out ?? join(run.folder, 'look.svg');
    const pictures = await largePictures(run, looked);
    const svg = drawLookPage({
      title: `${name}, step ${step}: ${looked.title}`,
      legend: looked.legend,
      entries: looked.entries.map(({ row, lines }, at) => ({
        id: row.sample.id,
        ...{ lines, pictures: pictures[at]! },
      })),
    });
    await writeFile(file, await pageAs(svg, file, name)).catch((error: unknown) => {
      throw outputError(error, file);
    });
    return file;
  } finally {
    await trained.close();
  }
}

async function guessHidden(
  { run, engine, params, frozen }: TrainedRun,
  looking: NonNullable<VideoLanguageSystem['look']>,
  clips: number,
  say: LookOptions['say'],
): Promise<Looked> {
  const rows = await decodable(run, spread([...run.index.heldOut.keys()], clips), say);
  const batch = looking.assemble(rows);
  const guess = engine.compile(
    (own: TensorTree, arrays: TensorTree, inputs: TensorTree) => looking.guess(own, arrays, inputs),
    { name: 'look' },
  );
  const answers = await guess(params, frozen, uploadBatch(engine, batch));
  const guesses = Object.fromEntries(
    await Promise.all(
      Object.entries(answers).map(async ([name, tensor]) => [name, await tensor.data()] as const),
    ),
  );
  const { framesPerWindow } = run.config.data;
  return {
    title: 'what it sees and guesses',
    legend:
      'Underlined words and hatched frames were hidden. {green}: guessed right. {red}: guessed wrong (the truth in brackets).',
    entries: looking.explain(batch, guesses).map(({ words, windows }, at) => ({
      row: rows[at]!,
      lines: [words],
      frames: windows.map(({ guess: right }, window) => ({
        place: window * framesPerWindow,
        guess: right,
      })),
      boxes: [],
    })),
  };
}

async function writeAnswers(
  { run, engine, params, frozen }: TrainedRun,
  answers: Answers,
  clips: number,
  say: LookOptions['say'],
): Promise<Looked> {
  const rng = openRng(run.config.train.seed, 'look');
  const asked = drawnOf(questionsOf(run.index.heldOut, ''), clips, rng);
  const decoded = await decodable(run, [...new Set(asked.map(({ sample }) => sample))], say);
  const rows = new Map(decoded.map((row) => [row.number, row]));
  const answering = openAnswering(engine, answers, { params, frozen });
  try {
    const entries: Looked['entries'][number][] = [];
    for (const { sample, question, references } of asked) {
      const row = rows.get(sample);
      if (row === undefined) continue;
      const [said] = await answering.ask([row], question);
      const given = answers.given(row, question);
      const right = references.find((each) => plainAnswer(each) === plainAnswer(said!.text));
      const truth = right ?? references[0]!;
      const boxes = (of: ShownBox['of'], text: string): ShownBox[] =>
        boxesIn(text).map((box) => ({ box, of }));
      entries.push({
        row,
        lines: [
          ...(given.question === '' ? [] : [[{ text: given.question }]]),
          ...(given.words === undefined
            ? []
            : [[{ text: `read before the answer: ${given.words}` }]]),
          [{ text: truth, guess: right ?? said!.text }],
        ],
        frames: framesOf(run, row, given.windows),
        boxes: [
          ...boxes('question', given.question),
          ...boxes(right === undefined ? 'wrong' : 'right', said!.text),
          ...(right === undefined ? boxes('data', truth) : []),
        ],
      });
    }
    return {
      title: 'what it sees and says',
      legend:
        'Underlined: what it wrote. {green}: as the data have it. {red}: something else (in brackets and dashed what they have).',
      entries,
    };
  } finally {
    answering.close();
  }
}

async function findNearest(
  trained: TrainedRun,
  similarity: Similarity,
  clips: number,
  say: LookOptions['say'],
): Promise<Looked> {
  const { run } = trained;
  const { texts, clips: asked } = heldOutCaptions(run, similarity, clips);
  const rows = await decodable(
    run,
    asked.map(({ sample }) => sample),
    say,
  );
  const captionsOf = new Map(asked.map(({ sample, captions }) => [sample, captions]));
  const ranked = await rankedTexts(trained, similarity, rows, texts);
  return {
    title: 'what it sees and finds nearest',
    legend: `Underlined: the nearest of ${texts.length} held-out captions. {green}: its own. {red}: another (its own in brackets).`,
    entries: rows.map((row, at) => {
      const own = captionsOf.get(row.number)!;
      const { text: truth, alike } = ranked[at]!.find(({ text }) => own.includes(text))!;
      // As in figures: one that is as near as its own is before it.
      const before = ranked[at]!.filter((each) => !own.includes(each.text) && each.alike >= alike);
      const place = before.length;
      const first = before[0] ?? { text: truth, alike };
      const compared = `alike ${first.alike.toFixed(3)}`;
      return {
        row,
        lines: [
          [{ text: truth, guess: first.text }],
          [
            {
              text:
                place === 0
                  ? compared
                  : `${compared}, its own ${alike.toFixed(3)} in place ${place + 1}`,
            },
          ],
        ],
        frames: framesOf(run, row, undefined),
        boxes: [],
      };
    }),
  };
}

/** Some of the frames that the model sees, evenly drawn. */
function framesOf(run: Run, row: Row, windows: Given['windows']): { readonly place: number }[] {
  const places = framesShown(row, windows, run.config.data.framesPerWindow);
  return spread(places, MAX_PICTURES).map((place) => ({ place }));
}

/** The held-out samples that decode, in their order; tells of the others. */
async function decodable(
  { heldOutLoader, index: { heldOut }, folder }: Run,
  samples: readonly number[],
  say: LookOptions['say'],
): Promise<Row[]> {
  if (samples.length === 0)
    throw new UsageError('NOTHING_HELD_OUT', `${folder} holds out no sample to look at`);
  const requests = samples.map((sample) => ({ sample, epoch: 0, substitutes: [] }));
  const tried = await Promise.allSettled(requests.map((request) => heldOutLoader.load([request])));
  const decoded: Clip[] = [];
  const leftOut: string[] = [];
  for (const [i, result] of tried.entries()) {
    if (result.status === 'fulfilled') decoded.push(...result.value);
    else if (isFileFault(result.reason))
      leftOut.push(`${heldOut[samples[i]!]!.id} (${result.reason.code})`);
    else throw result.reason;
  }
  const failed = tried.find(({ status }) => status === 'rejected');
  if (decoded.length === 0 && failed?.status === 'rejected') throw failed.reason;
  if (leftOut.length > 0) say?.(`left out, for they do not decode: ${leftOut.join(', ')}`);
  return rowsOf(
    heldOut,
    decoded.map(() => ({ epoch: 0 })),
    decoded,
  );
}

async function largePictures(
  { config, index, data }: Run,
  { entries }: Looked,
): Promise<ShownPicture[][]> {
  const options = clipLoaderOptions(config, index, 'heldOut', data);
  const framesOfRow = openLargeFrames(options, SHOWN_FRAME_PIXELS);
  const size = { width: SHOWN_FRAME_PIXELS, height: SHOWN_FRAME_PIXELS };
  return Promise.all(
    entries.map(async ({ row, frames, boxes }) => {
      if (frames.length === 0) return [];
      const frameAt = await framesOfRow(row);
      return Promise.all(
        frames.map(async ({ place, guess }) => ({
          url: await pictureUrl(frameAt(place), size),
          ...{ guess, boxes },
        })),
      );
    }),
  );
}
