/** A picture as one code a patch, of a codebook that is found in the training split and then stays as it is. */
import { join } from 'node:path';
import { patchFeatures, patchFeatureWidth } from '../../video/visual-words/patch-features.ts';
import {
  emptyVocabulary,
  fitVisualVocabulary,
  type VisualVocabulary,
} from '../../video/visual-words/visual-vocabulary.ts';
import { readVisualVocabulary, writeVisualVocabulary } from '../assets.ts';
import { count } from '../config-fields.ts';
import { fittingFeatures } from './fitting-features.ts';
import { isTextAlone, type FitContext, type ModelConfig, type SystemContext } from './system.ts';

/** Fields of recipes. */
export const codebookFields = {
  visualBranching: count('Branches of each level of the hierarchical k-means', 2),
  visualDepth: count('Levels of the hierarchical k-means; branching^depth visual words of patches'),
  visualComponents: count('Principal components of what patches look like'),
};

type CodebookConfig = ModelConfig & {
  readonly [field in keyof typeof codebookFields]: number;
};

const CODEBOOK_FILE = 'visual-vocabulary.safetensors';

/** Fits the codebook to one picture of each clip of the training split and writes it; gives the number of codes. */
export async function fitCodebook(
  {
    config: { model, data, train },
    index,
    loader,
    folder,
  }: Pick<FitContext<CodebookConfig>, 'config' | 'index' | 'loader' | 'folder'>,
  patchSize: number,
): Promise<number> {
  const pictureBytes = data.framesPerWindow * data.frameSize ** 2 * 3;
  const shape = { size: data.frameSize, patchSize };
  const { features, numClips, progress } = await fittingFeatures(
    { index, loader, seed: train.seed, what: 'visual words' },
    ({ sample, frames }) => {
      if (isTextAlone(index.train[sample]!)) return new Float32Array(0);
      const middle = Math.floor(frames.length / pictureBytes / 2);
      return patchFeatures(
        frames.subarray(middle * pictureBytes, (middle + 1) * pictureBytes),
        shape,
      );
    },
  );
  const vocabulary = fitVisualVocabulary(features, {
    branching: model.visualBranching,
    depth: model.visualDepth,
    seed: train.seed,
    pcaDims: model.visualComponents,
    featureWidth: patchFeatureWidth(data.framesPerWindow),
  });
  progress.done(`${vocabulary.numWords} words of the patches of ${numClips} clips`);
  await writeVisualVocabulary(join(folder, CODEBOOK_FILE), vocabulary);
  return vocabulary.numWords;
}

/** Writes a codebook of all codes that there may be, for a plan by shapes. */
export async function writeStandInCodebook({
  config: { model, data },
  folder,
}: Pick<SystemContext<CodebookConfig>, 'config' | 'folder'>): Promise<void> {
  const { visualBranching: branching, visualDepth: depth, visualComponents } = model;
  const featureWidth = patchFeatureWidth(data.framesPerWindow);
  const vocabulary = emptyVocabulary({
    ...{ branching, depth, numComponents: visualComponents, featureWidth },
  });
  await writeVisualVocabulary(join(folder, CODEBOOK_FILE), vocabulary);
}

export function readCodebook(folder: string): Promise<VisualVocabulary> {
  return readVisualVocabulary(join(folder, CODEBOOK_FILE));
}
