/** How well a system that compares clips with texts finds one by the other, and tells captions apart. */
import { UsageError } from '../../proto/errors.ts';
import { drawnOf, openRng } from '../../proto/random.ts';
import { shownKey, type Sample } from '../../video/index/sample.ts';
import type { Similarity } from '../systems/system.ts';
import { demoPairs } from './demo-pairs.ts';
import { tellSkipped } from './evaluate-answers.ts';
import type { EvaluationContext, EvaluationResult } from './evaluate.ts';
import { readPairs, type PairItem } from './pairs-file.ts';
import { scorePairs, type PairScores } from './scores/pairs.ts';
import { scoreRetrieval } from './scores/retrieval.ts';
import { openComparer, vectorsOf, type Comparer } from './vectors.ts';

/** Held-out clips by their captions, and captions by their clips: of clips that several samples show, all captions. */
export function evaluateRetrieval(
  context: EvaluationContext,
  similarity: Similarity,
): Promise<EvaluationResult> {
  return comparing(context, similarity, (comparer) => retrieval(context, comparer, similarity));
}

async function retrieval(
  { trained, limit, say, open }: EvaluationContext,
  comparer: Comparer,
  similarity: Similarity,
): Promise<EvaluationResult> {
  const { index, config, heldOutLoader: loader, folder } = trained.run;
  const captioned = captionedOf(index.heldOut, similarity);
  if (captioned.length === 0)
    throw new UsageError('NOTHING_HELD_OUT', `${folder} holds out no clip with a caption`);
  const asked = drawnOf(captioned, limit, openRng(config.train.seed, 'evaluate'));
  const texts = [...new Set(asked.flatMap(({ captions }) => captions))];
  checkNumScores(asked.length, texts.length);
  const samples = asked.map(({ sample }) => sample);
  const source = { samples: index.heldOut, loader };
  const file = await open(asked);
  const batchSize = config.train.microbatchSize;
  const vectors = await vectorsOf(comparer, { samples, texts }, { source, file, batchSize });
  const whole = asked.flatMap(({ id, captions }, at) => {
    const vector = vectors.clips[at];
    return vector === undefined ? [] : [{ id, captions, vector }];
  });
  tellSkipped(say, asked.length - whole.length, asked.length);
  // Of texts whose clips do not decode none is left.
  const left = [...new Set(whole.flatMap(({ captions }) => captions))];
  const columnOf = new Map(left.map((text, column) => [text, column]));
  const textOf = new Map(texts.map((text, at) => [text, vectors.texts[at]!]));
  const read = left.map((text) => textOf.get(text)!);
  const lines: { id: string; captions: readonly string[]; scores: number[] }[] = [];
  const values = new Float64Array(whole.length * left.length);
  const mediaOf = left.map((): number[] => []);
  for (const [row, { id, captions, vector }] of whole.entries()) {
    const scores = await comparer.alike(vector, read);
    lines.push({ id, captions, scores });
    values.set(scores, row * left.length);
    for (const caption of captions) mediaOf[columnOf.get(caption)!]!.push(row);
  }
  const scores = scoreRetrieval({
    ...{ values, mediaOf, numMedia: lines.length, numTexts: left.length },
  });
  return { lines, scores };
}

/** Node reads no text of more than 2^29 characters, and a score with its comma takes 12 to 16 of them. */
const MAX_SCORES = 2 ** 25;

/** Whether the file of so many media and texts can be read back. @throws UsageError EVALUATION_TOO_LARGE */
export function checkNumScores(numMedia: number, numTexts: number): void {
  if (numMedia * numTexts <= MAX_SCORES) return;
  throw new UsageError(
    'EVALUATION_TOO_LARGE',
    `${numMedia} clips with ${numTexts} captions have ${numMedia * numTexts} scores, and a file of more than ${MAX_SCORES} ` +
      'cannot be read again: ask about fewer clips with --clips',
  );
}

/** What is shown, and what is said of it. */
export interface Captioned {
  readonly id: string;
  readonly sample: number;
  readonly captions: readonly string[];
}

/** What is shown, once, with all captions of it. */
export function captionedOf(
  samples: readonly Sample[],
  { captionsOf = ({ text }) => [text] }: Pick<Similarity, 'captionsOf'>,
): Captioned[] {
  const found = new Map<string, Omit<Captioned, 'captions'> & { readonly captions: Set<string> }>();
  for (const [number, sample] of samples.entries()) {
    const { id, media, text, parts } = sample;
    if (media.length === 0 || parts !== undefined || text.trim() === '') continue;
    const key = shownKey(sample);
    const known = found.get(key) ?? { id, sample: number, captions: new Set<string>() };
    for (const caption of captionsOf(sample)) known.captions.add(caption);
    found.set(key, known);
  }
  return [...found.values()].map((each) => ({ ...each, captions: [...each.captions] }));
}

/**
 * Captions of a file about media below the folder `root`, or without one those that can be made of the held-out captions
 * of the demo world.
 */
export function evaluatePairs(
  context: EvaluationContext,
  similarity: Similarity,
  from: PairsFrom,
): Promise<EvaluationResult> {
  return comparing(context, similarity, (comparer) => pairs(context, comparer, from));
}

type PairsFrom = { readonly file: string; readonly root: string } | undefined;

async function pairs(
  context: EvaluationContext,
  comparer: Comparer,
  from: PairsFrom,
): Promise<EvaluationResult> {
  const { trained, say, open } = context;
  const { items, source, sampleOf, digest } = await (from === undefined
    ? heldOutPairs(context)
    : filePairs(context, from));
  const media = [...new Set(items.flatMap((item) => item.media))];
  const usable = media.filter((medium) => sampleOf(medium) !== undefined);
  const texts = [...new Set(items.flatMap((item) => item.captions))];
  const samples = usable.map((medium) => sampleOf(medium)!);
  const file = await open([items, digest]);
  const batchSize = trained.run.config.train.microbatchSize;
  const vectors = await vectorsOf(comparer, { samples, texts }, { source, file, batchSize });
  const clipOf = new Map(usable.map((medium, at) => [medium, vectors.clips[at]]));
  const textOf = new Map(texts.map((text, at) => [text, vectors.texts[at]!]));
  const compared: ReturnType<typeof comparedOf>[] = [];
  for (const item of items) {
    const clips = item.media.map((medium) => clipOf.get(medium));
    if (clips.some((clip) => clip === undefined)) continue;
    const read = item.captions.map((caption) => textOf.get(caption)!);
    const table = await Promise.all(clips.map((clip) => comparer.alike(clip!, read)));
    compared.push(comparedOf(item, table));
  }
  tellSkipped(say, items.length - compared.length, items.length);
  if (compared.length === 0) say('nothing is scored: of each pair a clip does not decode');
  return {
    lines: compared.map(({ line }) => line),
    scores: scorePairs(compared.map(({ scores }) => scores)),
  };
}

async function comparing<T>(
  { trained }: EvaluationContext,
  similarity: Similarity,
  body: (comparer: Comparer) => Promise<T>,
): Promise<T> {
  const comparer = openComparer(trained, similarity);
  try {
    return await body(comparer);
  } finally {
    comparer.close();
  }
}

/** @param table of each medium how alike it is to each caption */
function comparedOf(
  item: PairItem,
  table: readonly (readonly number[])[],
): { readonly line: unknown; readonly scores: PairScores } {
  const { id, captions } = item;
  if (item.kind === 'list') {
    const { type } = item;
    const [scores] = table as [readonly number[]];
    return {
      line: { id, type, captions, scores },
      scores: { kind: 'list', type, right: scores[0]!, wrong: scores.slice(1) },
    };
  }
  const [[c0i0, c1i0], [c0i1, c1i1]] = table as [[number, number], [number, number]];
  return {
    line: { id, captions, c0_i0: c0i0, c0_i1: c0i1, c1_i0: c1i0, c1_i1: c1i1 },
    scores: { kind: 'cross', c0i0, c0i1, c1i0, c1i1 },
  };
}

async function filePairs(
  { trained, limit, openMedia }: EvaluationContext,
  { file, root }: { readonly file: string; readonly root: string },
) {
  const rng = openRng(trained.run.config.train.seed, 'evaluate');
  const items = drawnOf(await readPairs(file), limit, rng);
  const media = await openMedia(root, [...new Set(items.flatMap((item) => item.media))]);
  return {
    items,
    source: { samples: media.index.heldOut, loader: media.loader },
    sampleOf: (path: string) => media.sampleOf(path),
    digest: media.index.digest,
  };
}

function heldOutPairs({ trained: { run }, limit }: EvaluationContext) {
  const samples = run.index.heldOut;
  const { similarity, name } = run.system;
  for (const sample of samples) {
    const read = similarity?.captionsOf?.(sample) ?? [sample.text];
    if (read.length !== 1 || read[0] !== sample.text)
      throw new UsageError(
        'EVALUATE_UNAVAILABLE',
        `${name} reads ${read.join(' and ')} of "${sample.text}", and false captions are made of whole ones: name a file ` +
          'with --pairs',
      );
  }
  const { data, train } = run.config;
  // Of anything else, and of stories with several things, nobody knows that a changed caption is false.
  const isTold = data.folder === null && data.demoWorld !== 'stories';
  const items = isTold ? drawnOf(demoPairs(samples), limit, openRng(train.seed, 'evaluate')) : [];
  if (items.length === 0)
    throw new UsageError(
      'NOTHING_HELD_OUT',
      `${run.folder} was not trained on a demo world of moves, slides or places, of which false captions are made: name a ` +
        'file with --pairs',
    );
  return Promise.resolve({
    ...{ items, source: { samples, loader: run.heldOutLoader }, digest: '' },
    sampleOf: (number: string): number | undefined => Number(number),
  });
}
