/** How far pictures that are made ready here are from those of transformers; `peers/images.py` makes the cases. */
import path from 'node:path';
import { readImageProcessor } from '../image-processor.ts';
import { readHostTensors } from './reference-tensors.ts';

/** The processors of `peers/images.py`. */
export const IMAGE_PROCESSORS = [
  'clip',
  'clip-padded',
  'clip-cropped',
  'siglip',
  'vit',
  'vit-lanczos',
  'vit-box',
  'blip',
  'video-llava',
] as const;

/** The largest difference of any value of any picture; infinite where a size differs. */
export async function compareImages(
  folder: string,
): Promise<{ readonly numPictures: number; readonly difference: number }> {
  const processor = await readImageProcessor(folder);
  const cases = await readHostTensors(path.join(folder, 'cases.safetensors'));
  const numPictures = cases.size / 2;
  let difference = 0;
  for (let i = 0; i < numPictures; i++) {
    const picture = cases.get(`picture.${i}`)!;
    const wanted = cases.get(`values.${i}`)!;
    const [height, width] = picture.shape as [number, number];
    const made = processor.process({
      width,
      height,
      pixels: Uint8Array.from(picture.data),
    });
    const [wantedHeight, wantedWidth] = wanted.shape;
    if (made.height !== wantedHeight || made.width !== wantedWidth)
      return { numPictures, difference: Infinity };
    for (const [at, value] of wanted.data.entries())
      difference = Math.max(difference, Math.abs(value - made.values[at]!));
  }
  return { numPictures, difference };
}
