/**
 * Questions about pictures of the world `places`, each behind the identifier of its task. Where things are is asked for in
 * the same words by two of them, in words or as a box, and what there is by two as well: only the identifier tells which.
 * Pure. Source: MiniGPT-v2, arXiv:2310.09478, sec. 3.2: identifiers, and boxes as `{<x1><y1><x2><y2>}`.
 */
import type { PlacesTruth } from './controlled-truth.ts';
import type { Box } from './ground-truth.ts';
import { quarterOf } from './places.ts';
import { questionRecord, type QuestionRecord } from './questions.ts';

/** Coordinates are hundredths of the picture's sides, to the nearest ten: a tokenizer of a few hundred pieces has them. */
export const COORDINATE_STEP = 10;

/** A box in pixels as text. */
export function boxText(
  [left, top, right, bottom]: Box,
  { width, height }: { readonly width: number; readonly height: number },
): string {
  const coarse = (share: number): number =>
    COORDINATE_STEP * Math.round((100 * share) / COORDINATE_STEP);
  const edges = [left / width, top / height, right / width, bottom / height];
  return `{${edges.map((share) => `<${coarse(share)}>`).join('')}}`;
}

const WHAT_IS_THERE = 'what is in the picture ?';

/** All questions of one picture: two of the whole, three of each object. */
export function placeQuestionsOf(truth: PlacesTruth): QuestionRecord[] {
  const { id, objects, caption } = truth;
  const placed = objects.map(({ colour, shape, track }) => ({
    name: `${colour} ${shape}`,
    quarter: quarterOf(track.centers[0]!, truth),
    box: boxText(track.boxes[0]!, truth),
  }));
  const grounded = placed.map(({ name, box }) => `<p>${name}</p> ${box}`).join(' ');
  return [
    questionRecord(id, 'caption', [`[caption] ${WHAT_IS_THERE}`, caption.text]),
    questionRecord(id, 'grounding', [`[grounding] ${WHAT_IS_THERE}`, grounded]),
    ...placed.flatMap(({ name, quarter, box }, i) => [
      questionRecord(id, `vqa-${i + 1}`, [`[vqa] where is the ${name} ?`, quarter]),
      questionRecord(id, `refer-${i + 1}`, [`[refer] where is the ${name} ?`, box]),
      questionRecord(id, `identify-${i + 1}`, [`[identify] what is at ${box} ?`, name]),
    ]),
  ];
}
