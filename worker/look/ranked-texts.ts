import { drawnOf, openRng } from '../../proto/random.ts';
import { captionedOf, type Captioned } from '../eval/evaluate-similarity.ts';
import { openComparer } from '../eval/vectors.ts';
import type { Run } from '../run.ts';
import type { Row, Similarity } from '../systems/system.ts';
import type { TrainedRun } from '../trained-run.ts';

/** Captions that a clip is compared with, at most. */
const MAX_TEXTS = 1000;

/** A text, and how alike a system finds it and a clip. */
export interface RankedText {
  readonly text: string;
  readonly alike: number;
}

/** Of each row all texts, the most alike first. */
export async function rankedTexts(
  trained: TrainedRun,
  similarity: Similarity,
  rows: readonly Row[],
  texts: readonly string[],
): Promise<RankedText[][]> {
  const comparer = openComparer(trained, similarity);
  try {
    const read = await comparer.texts(texts);
    const ranked: RankedText[][] = [];
    for (const clip of await comparer.clips(rows)) {
      const alike = await comparer.alike(clip, read);
      ranked.push(
        texts.map((text, at) => ({ text, alike: alike[at]! })).sort((a, b) => b.alike - a.alike),
      );
    }
    return ranked;
  } finally {
    comparer.close();
  }
}

/** Captions of the held-out clips, each once, and some of the clips with theirs. */
export function heldOutCaptions(
  { index, config }: Run,
  similarity: Similarity,
  numClips: number,
): { readonly texts: readonly string[]; readonly clips: readonly Captioned[] } {
  const rng = openRng(config.train.seed, 'look');
  const all = captionedOf(index.heldOut, similarity);
  const clips = drawnOf(all, numClips, rng);
  const texts = new Set(clips.flatMap(({ captions }) => captions));
  for (const text of drawnOf(
    all.flatMap(({ captions }) => captions),
    MAX_TEXTS,
    rng.fork('texts'),
  ))
    texts.add(text);
  return { texts: [...texts], clips };
}
