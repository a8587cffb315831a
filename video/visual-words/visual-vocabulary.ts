/**
 * Visual words: each window of a clip becomes one of a few hundred words, so that a masked window is a classification.
 * Source: Sun et al. 2019, arXiv:1904.01766 (VideoBERT), sec. 4.2: features, hierarchical k-means, centroids as words.
 * Differences: features that are computed instead of those of a pretrained S3D, and PCA before the clustering.
 */
import { openRng, type Rng } from '../../proto/random.ts';
import { VideoloomError } from '../../proto/errors.ts';
import { principalComponents, project } from './principal-components.ts';

/** What `fitVisualVocabulary` found; plain arrays, row-major. */
export interface VisualVocabulary {
  readonly numWords: number;
  readonly numComponents: number;
  readonly featureWidth: number;
  /** [featureWidth] */
  readonly mean: Float32Array;
  /** Orthonormal rows, [numComponents, featureWidth]. */
  readonly components: Float32Array;
  /** Centre of each word among the components, [numWords, numComponents]. */
  readonly centroids: Float32Array;
  /** The clusters of all levels, breadth first without the root, [nodes, numComponents]. */
  readonly nodes: Float32Array;
  /** Number of children of the root and then of each node; nodes without children are the words, in this order. */
  readonly childCounts: readonly number[];
}

export interface FitOptions {
  /** Clusters of a node, and levels: at most branching ** depth words. */
  readonly branching?: number;
  readonly depth?: number;
  readonly seed: number;
  readonly pcaDims?: number;
  readonly featureWidth?: number;
}

/** Too little to make words of. */
export class VocabularyError extends VideoloomError {}

const BLOCKS = 4;
const SCENE_BLOCKS = 2;
const ORIENTATIONS = 4;
const NUM_BLOCKS = BLOCKS * BLOCKS;
const [SCENE_AT, COLOUR_AT, PLACE_AT] = [0, SCENE_BLOCKS ** 2 * 3, SCENE_BLOCKS ** 2 * 3 + 3];
const [MOTION_AT, EDGES_AT] = [PLACE_AT + NUM_BLOCKS, PLACE_AT + 2 * NUM_BLOCKS];
/** Scene, then colour, place, motion and edges of what moves over it. */
export const FEATURE_WIDTH = EDGES_AT + ORIENTATIONS;
// What moves is a small part of the picture and most of what is said about it.
const [SCENE_WEIGHT, COLOUR_WEIGHT, MOTION_WEIGHT] = [1, 2, 0.5];
/** A pixel that differs by this much from the background, summed over red, green and blue, belongs to what moves. */
const FOREGROUND_DIFFERENCE = 90;
const TAN_22_5 = Math.SQRT2 - 1;
const MAX_ITERATIONS = 50;

/**
 * Frames uint8 [N windows, F frames a window, H, W, 3] of one clip to features [N, FEATURE_WIDTH]. The background is
 * the median over all frames, pixel by pixel; the foreground is every pixel that differs from it. For each window: the
 * background's mean colour in 2x2 blocks (the scene); the foreground's mean colour, its share of 4x4 blocks (where it
 * is), how that share changes from the first to the last frame (where it goes), and the share of four orientations in
 * the edges of frame minus background (what shape it has).
 */
export function frameFeatures(
  frames: Uint8Array,
  [numWindows, framesPerWindow, height, width]: readonly [number, number, number, number, number],
): Float32Array {
  const features = new Float32Array(numWindows * FEATURE_WIDTH);
  const frameBytes = height * width * 3;
  const background = medianFrame(frames, frameBytes);
  const scene = blockMeans(background, width, height, SCENE_BLOCKS);
  for (let window = 0; window < numWindows; window++) {
    const out = new Float64Array(FEATURE_WIDTH);
    for (const [at, value] of scene.entries()) out[SCENE_AT + at] = SCENE_WEIGHT * value;
    const colour = new Float64Array(3);
    let numForeground = 0;
    const edges = new Float64Array(ORIENTATIONS);
    for (let i = 0; i < framesPerWindow; i++) {
      const from = (window * framesPerWindow + i) * frameBytes;
      const frame = frames.subarray(from, from + frameBytes);
      const sign = framesPerWindow === 1 ? 0 : i === 0 ? -1 : i === framesPerWindow - 1 ? 1 : 0;
      const foreground = foregroundOf(frame, background, width, height);
      numForeground += foreground.numPixels;
      for (let c = 0; c < 3; c++) colour[c]! += foreground.colourSums[c]!;
      for (const [block, share] of foreground.blockShares.entries()) {
        out[PLACE_AT + block]! += share / framesPerWindow;
        out[MOTION_AT + block]! += sign * MOTION_WEIGHT * share;
      }
      for (const [at, strength] of edgeStrengths(frame, background, width, height).entries()) {
        edges[at]! += strength;
      }
    }
    const allEdges = edges.reduce((a, b) => a + b, 0);
    for (let c = 0; c < 3; c++) {
      // Where nothing moves the colour is grey: it is near no other.
      out[COLOUR_AT + c] =
        COLOUR_WEIGHT * (numForeground === 0 ? 0.5 : colour[c]! / 255 / numForeground);
    }
    for (const [at, strength] of edges.entries())
      out[EDGES_AT + at] = allEdges === 0 ? 0 : strength / allEdges;
    features.set(out, window * FEATURE_WIDTH);
  }
  return features;
}

/** The pixels of a frame that differ from the background: their number, colours and share of each 4x4 block. */
function foregroundOf(
  frame: Uint8Array,
  background: Uint8Array,
  width: number,
  height: number,
): { numPixels: number; colourSums: Float64Array; blockShares: Float64Array } {
  const colourSums = new Float64Array(3);
  const counts = new Float64Array(NUM_BLOCKS);
  let numPixels = 0;
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor((y * BLOCKS) / height) * BLOCKS;
    for (let x = 0; x < width; x++, at += 3) {
      const [r, g, b] = [frame[at]!, frame[at + 1]!, frame[at + 2]!];
      const difference =
        Math.abs(r - background[at]!) +
        Math.abs(g - background[at + 1]!) +
        Math.abs(b - background[at + 2]!);
      if (difference < FOREGROUND_DIFFERENCE) continue;
      numPixels++;
      colourSums[0]! += r;
      colourSums[1]! += g;
      colourSums[2]! += b;
      counts[row + Math.floor((x * BLOCKS) / width)]!++;
    }
  }
  const blockShares = counts.map((count) => (count * NUM_BLOCKS) / (width * height));
  return { numPixels, colourSums, blockShares };
}

/** Median over frames of each byte; the lower one of an even number. */
function medianFrame(frames: Uint8Array, frameBytes: number): Uint8Array {
  const numFrames = frames.length / frameBytes;
  const median = new Uint8Array(frameBytes);
  const sorted = new Uint8Array(numFrames);
  const middle = (numFrames - 1) >> 1;
  for (let at = 0; at < frameBytes; at++) {
    for (let frame = 0; frame < numFrames; frame++) {
      const value = frames[frame * frameBytes + at]!;
      let place = frame;
      for (; place > 0 && sorted[place - 1]! > value; place--) sorted[place] = sorted[place - 1]!;
      sorted[place] = value;
    }
    median[at] = sorted[middle]!;
  }
  return median;
}

/** Mean colours, [blocks, blocks, 3], in [0, 1]. */
function blockMeans(
  frame: Uint8Array,
  width: number,
  height: number,
  blocks: number,
): Float64Array {
  const sums = new Float64Array(blocks * blocks * 3);
  const counts = new Float64Array(blocks * blocks);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor((y * blocks) / height) * blocks;
    for (let x = 0; x < width; x++, at += 3) {
      const block = row + Math.floor((x * blocks) / width);
      counts[block]!++;
      for (let c = 0; c < 3; c++) sums[block * 3 + c]! += frame[at + c]!;
    }
  }
  return sums.map((sum, i) => sum / (255 * Math.max(1, counts[Math.floor(i / 3)]!)));
}

/** Summed gradient of frame minus background by orientation: edges that run |, /, -, \ . */
function edgeStrengths(
  frame: Uint8Array,
  background: Uint8Array,
  width: number,
  height: number,
): Float64Array {
  const sums = new Float64Array(ORIENTATIONS);
  const brightness = (x: number, y: number): number => {
    const at = (y * width + x) * 3;
    const whole = frame[at]! + frame[at + 1]! + frame[at + 2]!;
    return whole - background[at]! - background[at + 1]! - background[at + 2]!;
  };
  for (let y = 1; y + 1 < height; y++) {
    for (let x = 1; x + 1 < width; x++) {
      const gx = brightness(x + 1, y) - brightness(x - 1, y);
      const gy = brightness(x, y + 1) - brightness(x, y - 1);
      if (gx === 0 && gy === 0) continue;
      const [ax, ay] = [Math.abs(gx), Math.abs(gy)];
      const orientation =
        ay <= TAN_22_5 * ax ? 0 : ax <= TAN_22_5 * ay ? 2 : gx > 0 === gy > 0 ? 1 : 3;
      sums[orientation]! += Math.sqrt(gx * gx + gy * gy);
    }
  }
  return sums;
}

/**
 * Features [N, featureWidth] to a vocabulary. Few or similar windows give fewer words than asked for.
 * @throws VocabularyError VOCABULARY_EMPTY if N is 0.
 */
export function fitVisualVocabulary(features: Float32Array, options: FitOptions): VisualVocabulary {
  const { branching = 8, depth = 2, seed, pcaDims = 48, featureWidth = FEATURE_WIDTH } = options;
  if (features.length < featureWidth) {
    throw new VocabularyError(
      'VOCABULARY_EMPTY',
      'there is no window to make visual words of; every clip that was looked at failed to decode',
    );
  }
  const { mean, components } = principalComponents(features, featureWidth, pcaDims);
  const numComponents = components.length / featureWidth;
  const points = project(features, { mean, components }); // [N, numComponents]
  const rng = openRng(seed, 'visual-vocabulary');

  interface Cluster {
    readonly members: readonly number[];
    readonly level: number;
  }
  const nodes: number[] = [];
  const words: number[] = [];
  const childCounts: number[] = [];
  const numPoints = features.length / featureWidth;
  const queue: { cluster: Cluster; centroid?: Float64Array }[] = [
    { cluster: { members: Array.from({ length: numPoints }, (_, i) => i), level: 0 } },
  ];
  for (let next = 0; next < queue.length; next++) {
    const { cluster, centroid } = queue[next]!;
    const { members, level } = cluster;
    if (centroid) nodes.push(...centroid);
    const k = level < depth ? branching : 0;
    let parts = k > 0 ? kMeans(points, numComponents, members, k, rng.fork('node', next)) : [];
    if (parts.length < 2 && centroid) parts = []; // all alike: this cluster is a word already
    childCounts.push(parts.length);
    if (parts.length === 0) words.push(...centroid!);
    for (const part of parts) {
      queue.push({ cluster: { members: part.members, level: level + 1 }, centroid: part.centroid });
    }
  }
  return {
    numWords: words.length / numComponents,
    numComponents,
    featureWidth,
    mean,
    components,
    centroids: Float32Array.from(words),
    nodes: Float32Array.from(nodes),
    childCounts,
  };
}

/** A vocabulary of all words that there can be, which all lie in one place: for what depends on its sizes alone. */
export function emptyVocabulary({
  branching,
  depth,
  numComponents: wanted,
  featureWidth = FEATURE_WIDTH,
}: {
  readonly branching: number;
  readonly depth: number;
  readonly numComponents: number;
  readonly featureWidth?: number;
}): VisualVocabulary {
  const numComponents = Math.min(wanted, featureWidth);
  const numWords = branching ** depth;
  // The root, and all levels but the last.
  const numParents = (numWords - 1) / (branching - 1);
  const numNodes = numParents - 1 + numWords;
  return {
    ...{ numWords, numComponents, featureWidth },
    mean: new Float32Array(featureWidth),
    components: new Float32Array(numComponents * featureWidth),
    centroids: new Float32Array(numWords * numComponents),
    nodes: new Float32Array(numNodes * numComponents),
    childCounts: Array.from({ length: numNodes + 1 }, (_, i) => (i < numParents ? branching : 0)),
  };
}

/** The word of each row of features [N, featureWidth]: down the tree, at each level to the nearest centre. */
export function assignVisualWords(
  vocabulary: VisualVocabulary,
  features: Float32Array,
): Int32Array {
  const { numComponents, nodes, childCounts } = vocabulary;
  const points = project(features, vocabulary);
  const tree = treeOf(childCounts);
  return Int32Array.from({ length: points.length / numComponents }, (_, row) => {
    const point = points.subarray(row * numComponents, (row + 1) * numComponents);
    let at = 0;
    while (tree[at]!.numChildren > 0) {
      const { firstChild, numChildren } = tree[at]!;
      // Children are numbered with the root as 0; `nodes` has no root.
      at = firstChild + nearest(point, nodes, numComponents, firstChild - 1, numChildren).index;
    }
    return tree[at]!.word;
  });
}

/** What words stand for: the features in the middle of each, as far as the components tell, [N, featureWidth]. */
export function featuresOfWords(
  { centroids, components, mean, numComponents, featureWidth }: VisualVocabulary,
  words: ArrayLike<number>,
): Float32Array {
  const features = new Float32Array(words.length * featureWidth);
  for (let row = 0; row < words.length; row++) {
    for (let d = 0; d < featureWidth; d++) {
      let sum = mean[d]!;
      for (let k = 0; k < numComponents; k++)
        sum += centroids[words[row]! * numComponents + k]! * components[k * featureWidth + d]!;
      features[row * featureWidth + d] = sum;
    }
  }
  return features;
}

interface TreeNode {
  readonly firstChild: number;
  readonly numChildren: number;
  /** -1 for nodes with children. */
  readonly word: number;
}

function treeOf(childCounts: readonly number[]): TreeNode[] {
  let [firstChild, word] = [1, 0];
  return childCounts.map((numChildren) => {
    const node = { firstChild, numChildren, word: numChildren === 0 ? word++ : -1 };
    firstChild += numChildren;
    return node;
  });
}

/** The nearest of `count` rows of `centers` from row `first` on, the first of equals, and its squared distance. */
function nearest(
  point: Float64Array,
  centers: Float32Array | Float64Array,
  width: number,
  first: number,
  count: number,
): { index: number; distance: number } {
  let [index, distance] = [0, Infinity];
  for (let i = 0; i < count; i++) {
    let sum = 0;
    for (let d = 0, at = (first + i) * width; d < width; d++)
      sum += (point[d]! - centers[at + d]!) ** 2;
    if (sum < distance) [index, distance] = [i, sum];
  }
  return { index, distance };
}

interface Part {
  readonly centroid: Float64Array;
  readonly members: readonly number[];
}

/** Lloyd's algorithm from k-means++ starts, over the rows `members` of `points`; no part is empty. */
function kMeans(
  points: Float64Array,
  width: number,
  members: readonly number[],
  k: number,
  rng: Rng,
): Part[] {
  const pointOf = (member: number): Float64Array =>
    points.subarray(member * width, (member + 1) * width);
  const starts = kMeansPlusPlus(members, pointOf, width, k, rng);
  const count = starts.length;
  const centers = Float64Array.from(starts.flatMap((start) => [...pointOf(start)]));
  const owner = new Int32Array(members.length).fill(-1);
  for (let iteration = 0; iteration < MAX_ITERATIONS; iteration++) {
    let changed = false;
    const [sums, sizes] = [new Float64Array(count * width), new Int32Array(count)];
    let farthest = { member: 0, distance: -1 };
    for (const [i, member] of members.entries()) {
      const point = pointOf(member);
      const { index, distance } = nearest(point, centers, width, 0, count);
      if (distance > farthest.distance) farthest = { member: i, distance };
      changed ||= owner[i] !== index;
      owner[i] = index;
      sizes[index]!++;
      for (let d = 0; d < width; d++) sums[index * width + d]! += point[d]!;
    }
    const empty = sizes.indexOf(0);
    if (!changed && empty < 0) break;
    for (let c = 0; c < count; c++) {
      for (let d = 0; d < width; d++) {
        if (sizes[c]! > 0) centers[c * width + d] = sums[c * width + d]! / sizes[c]!;
      }
    }
    // A cluster that lost all its points starts again at the point that fits worst.
    if (empty >= 0) centers.set(pointOf(members[farthest.member]!), empty * width);
  }
  return Array.from({ length: count }, (_, c) => ({
    centroid: centers.slice(c * width, (c + 1) * width),
    members: members.filter((_member, i) => owner[i] === c),
  })).filter(({ members: own }) => own.length > 0);
}

/** Source: Arthur & Vassilvitskii 2007, "k-means++". Fewer than k starts where there are fewer distinct points. */
function kMeansPlusPlus(
  members: readonly number[],
  pointOf: (member: number) => Float64Array,
  width: number,
  k: number,
  rng: Rng,
): number[] {
  const starts = [members[rng.integer(members.length)]!];
  const distances = Float64Array.from(members, () => Infinity);
  while (starts.length < k) {
    const last = pointOf(starts.at(-1)!);
    let total = 0;
    for (const [i, member] of members.entries()) {
      distances[i] = Math.min(distances[i]!, nearest(pointOf(member), last, width, 0, 1).distance);
      total += distances[i];
    }
    if (total === 0) break;
    let left = rng.uniform() * total;
    const chosen = distances.findIndex((distance) => (left -= distance) < 0);
    // Rounding may leave a rest behind the last point: it goes to the farthest.
    const at = chosen >= 0 ? chosen : distances.indexOf(Math.max(...distances));
    starts.push(members[at]!);
  }
  return starts;
}

/** A vocabulary as named arrays and text, to be kept in a file of tensors. */
export interface PackedVocabulary {
  readonly tensors: Readonly<Record<string, PackedTensor>>;
  readonly metadata: Readonly<Record<string, string>>;
}

export interface PackedTensor {
  readonly data: Float32Array;
  readonly shape: readonly number[];
}

export function packVisualVocabulary(vocabulary: VisualVocabulary): PackedVocabulary {
  const { mean, components, centroids, nodes, numComponents, featureWidth, childCounts } =
    vocabulary;
  const rows = (data: Float32Array, width: number): PackedTensor => ({
    data,
    shape: [data.length / width, width],
  });
  return {
    tensors: {
      mean: { data: mean, shape: [featureWidth] },
      components: rows(components, featureWidth),
      centroids: rows(centroids, numComponents),
      nodes: rows(nodes, numComponents),
    },
    metadata: { childCounts: childCounts.join(',') },
  };
}

/** @throws VocabularyError VOCABULARY_INVALID if parts are missing or do not fit together. */
export function unpackVisualVocabulary({ tensors, metadata }: PackedVocabulary): VisualVocabulary {
  const childCounts = (metadata['childCounts'] ?? '').split(',').map(Number);
  const [mean, components, centroids, nodes] = ['mean', 'components', 'centroids', 'nodes'].map(
    (name) => tensors[name],
  );
  const numWords = childCounts.filter((count) => count === 0).length;
  const numComponents = components?.shape[0] ?? 0;
  const fits =
    mean &&
    components &&
    centroids &&
    nodes &&
    components.data.length === numComponents * mean.data.length &&
    centroids.data.length === numWords * numComponents &&
    nodes.data.length === (childCounts.length - 1) * numComponents &&
    childCounts.reduce((a, b) => a + b, 0) === childCounts.length - 1;
  if (!fits || numWords === 0) {
    throw new VocabularyError(
      'VOCABULARY_INVALID',
      'the stored visual vocabulary is incomplete; fit it again',
    );
  }
  return {
    numWords,
    numComponents,
    featureWidth: mean.data.length,
    mean: mean.data,
    components: components.data,
    centroids: centroids.data,
    nodes: nodes.data,
    childCounts,
  };
}
