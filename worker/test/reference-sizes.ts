/**
 * Parameters of the originals of MERLOT and VideoOFA, part by part as their released code makes them: what a published
 * round number is made of, and where ours differ.
 */

const WIDTH = 768;
const dense = (numIn: number, numOut: number): number => numIn * numOut + numOut;
const NORM = 2 * WIDTH;
const SQUARE = dense(WIDTH, WIDTH);
/** Attention, MLP of four times the width, two norms. */
const BLOCK = 4 * SQUARE + dense(WIDTH, 4 * WIDTH) + dense(4 * WIDTH, WIDTH) + 2 * NORM;

export type Parts = Readonly<Record<string, number>>;

export function sumOf(parts: Parts): number {
  return Object.values(parts).reduce((a, b) => a + b, 0);
}

/** The stages of a ResNet with a norm behind each convolution, without what comes before them. */
function resNetStages(blocks: readonly number[]): number {
  let [total, numIn] = [0, 64];
  for (const [stage, count] of blocks.entries()) {
    const width = 64 * 2 ** stage;
    const numOut = 4 * width;
    for (let block = 0; block < count; block++) {
      const norms = 2 * (width + width + numOut);
      total += numIn * width + 9 * width * width + width * numOut + norms;
      if (block === 0) total += numIn * numOut + 2 * numOut;
      numIn = numOut;
    }
  }
  return total;
}

/** One convolution of 7 x 7, as ResNets begin and ours do. */
const ROOT = 7 * 7 * 3 * 64 + 2 * 64;

/**
 * rowanz/merlot, model/modeling.py and utils/vision_transformer.py with model/configs/merlot.yaml. Its tables of
 * positions have rows for 1,024 words, 1,024 frames and 64 x 64 patches, whatever is used of them.
 */
export const MERLOT_REFERENCE: Parts = {
  words: 50_370 * WIDTH,
  wordHead: SQUARE + NORM + 50_370,
  wordPositions: 2 * (1024 * WIDTH + NORM), // beside frames, and alone
  frameIndices: 1024 * WIDTH,
  pooledPositions: (64 * 64 + 1) * WIDTH + NORM,
  patchPositions: (64 * 64 + 2) * WIDTH + NORM,
  stem: 9 * (3 * 32 + 32 * 32 + 32 * 64) + 2 * (32 + 32 + 64) + resNetStages([3, 4, 9]),
  stemProjection: dense(1024, WIDTH),
  visionBlocks: 12 * BLOCK + NORM,
  jointBlocks: 12 * BLOCK + NORM,
  contrastHeads: 2 * (SQUARE + NORM + SQUARE),
  orderHeads: 2 * (dense(2 * WIDTH, WIDTH) + NORM + dense(WIDTH, 4)), // text to frame, frame to frame
};

/** What {@link MERLOT_REFERENCE} has more than our `paper` preset; of a part that ours has more of, less than 0. */
export const MERLOT_DIFFERENCES: Parts = {
  'rows of positions that 16 segments of 32 words do not use':
    (2 * 1024 - 4 * 32 - 16 * 32) * WIDTH + (1024 - 2 * 16) * WIDTH,
  'positions of patches, for 64 x 64 in place of 16 x 16':
    (64 * 64 + 2) * WIDTH - (16 * 16 + 2) * WIDTH,
  'class tokens of their own, which are positions there': -2 * WIDTH,
  'positions of pooled patches in the joint encoder': (64 * 64 + 1) * WIDTH,
  'norms of patches, of frames, and a second one of words': 3 * NORM,
  'norms within the heads of contrast': 2 * NORM,
  'a head of order for each pair of kinds, and a class for other films':
    dense(2 * WIDTH, WIDTH) + NORM + dense(WIDTH, 4) + (WIDTH + 1),
  'three convolutions of 3 x 3 in place of one of 7 x 7':
    9 * (3 * 32 + 32 * 32 + 32 * 64) + 2 * (32 + 32 + 64) - ROOT,
};

const [OFA_LAYERS, OFA_HEADS] = [6, 12];
/** Biases of attention by distance, for each head and layer. */
const WORD_DISTANCES = OFA_LAYERS * OFA_HEADS * 511;
const PATCH_DISTANCES = OFA_LAYERS * OFA_HEADS * (83 * 83 + 3);
/** Tables of positions of words and of 42 x 42 patches, with a norm each. */
const [WORD_POSITIONS, PATCH_POSITIONS] = [1026 * WIDTH + NORM, (42 * 42 + 1) * WIDTH + NORM];
/** Norms behind the parts of a layer, and a factor a head: `scale_attn`, `scale_fc`, `scale_heads`. */
const [ATTENTION_SCALES, MLP_NORM] = [NORM + OFA_HEADS, 2 * 4 * WIDTH];

/**
 * OFA-Sys/OFA, models/ofa/unify_transformer.py with `ofa_base_architecture` and the flags of its pre-training script,
 * which VideoOFA begins from.
 */
export const OFA_REFERENCE: Parts = {
  words: 59_457 * WIDTH,
  stem: ROOT + resNetStages([3, 4, 23]),
  stemProjection: dense(1024, WIDTH),
  readerEntrance: 2 * NORM + 2 * WIDTH, // norms of words and patches, and what tells them apart
  readerPositions: WORD_POSITIONS + PATCH_POSITIONS + 2 * SQUARE,
  readerDistances: WORD_DISTANCES + PATCH_DISTANCES,
  readerBlocks: OFA_LAYERS * (BLOCK + ATTENTION_SCALES + MLP_NORM) + NORM,
  writerEntrance: 2 * NORM, // of words, and of the codes of pictures
  writerPositions: WORD_POSITIONS + PATCH_POSITIONS + 4 * SQUARE,
  writerDistances: WORD_DISTANCES + PATCH_DISTANCES,
  writerBlocks: OFA_LAYERS * (BLOCK + 4 * SQUARE + NORM + 2 * ATTENTION_SCALES + MLP_NORM) + NORM,
};

/** What {@link OFA_REFERENCE} has more than our `paper` preset of single pictures. */
export const OFA_DIFFERENCES: Parts = {
  'positions of the codes that the decoder writes pictures with': PATCH_POSITIONS,
  'biases by distance of such codes': PATCH_DISTANCES,
  'a norm of such codes': NORM,
  'the position, and the distances, of a class token that pictures have not':
    WIDTH + OFA_LAYERS * OFA_HEADS * 3,
  'the place of a frame in its clip, which pictures have not': -WIDTH,
};
