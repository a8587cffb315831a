import { controlledTruth } from '../../video/world/clip.ts';
import type { PlacesTruth } from '../../video/world/controlled-truth.ts';
import { placeQuestionsOf } from '../../video/world/place-questions.ts';
import type { Sample } from '../../video/index/sample.ts';

const WORLD = { seed: 7, width: 64, height: 64, fps: 8, seconds: 1, kind: 'places' } as const;

/** Samples of pictures of the demo world `places`, one for each question, as its index has them; without media. */
export function placedSamples(numPictures: number): Sample[] {
  return Array.from({ length: numPictures }, (_, file) =>
    placeQuestionsOf(controlledTruth(WORLD, { split: 'train', index: file }) as PlacesTruth).map(
      ({ id, conversations: [human, gpt] }): Sample => {
        const question = human.value.replace('<video>\n', '');
        return {
          id,
          media: [{ file, startSeconds: 0, endSeconds: 1 }],
          text: `${question}\n${gpt.value}`,
          cues: [],
          parts: [
            { role: 'user', media: 0 },
            { role: 'user', text: question },
            { role: 'assistant', text: gpt.value },
          ],
          decodeMegapixels: 1,
        };
      },
    ),
  ).flat();
}
