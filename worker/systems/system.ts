/** What a system is: a model with its losses and questions, and how it gets from a recipe to the training loop. */
import type * as tf from '@tensorflow/tfjs-core';
import type * as z from 'zod';
import type { MediaFile, Sample } from '../../video/index/sample.ts';
import type { SampleIndex } from '../../video/index/sample-index.ts';
import type { ClipLoader } from '../../video/loading/loader.ts';
import type { RunConfig } from '../config-fields.ts';
import type { Initializer } from '../initializer.ts';
import type { ObjectiveSums } from '../losses/cross-entropy.ts';
import type { LanguageModel } from '../models/language-model.ts';
import type { Bounds } from '../optim/adamw.ts';
import type { PartKinds } from '../part-kind.ts';
import type { PublishedPart } from '../pretrained/published-parts.ts';
import type { TensorTree } from '../tree.ts';

/** One host array of a batch, a row a clip. Those whose name ends in `Weights` say what counts. */
export interface HostArray {
  readonly data: Int32Array | Float32Array;
  readonly shape: readonly number[];
}

/** A microbatch as the program takes it, and what the sums over it are to be divided by. */
export interface HostBatch {
  readonly arrays: Readonly<Record<string, HostArray>>;
  /** What the predictions of each objective weigh together, that is their number where each weighs 1. */
  readonly counts: Readonly<Record<string, number>>;
  /** Tokens that carry content (no padding). */
  readonly numTokens: number;
}

/** A decoded clip, its sample, and what keys its randomness. */
export interface Row {
  readonly sample: Sample;
  /** Row of the sample in its split. */
  readonly number: number;
  readonly epoch: number;
  /** [windows, frames a window, H, W, 3] uint8, flat. */
  readonly frames: Uint8Array;
  /** When each frame is shown, seconds of its file, [windows x frames a window]. */
  readonly timesSeconds: readonly number[];
  /** Log-mel spectrogram of the clip, [mel bands, frames] flat; where `data.audio` asks for it. */
  readonly audio?: Float32Array;
  /** Clips that are shown before this one, each with what its sample says as the right answer (few-shot). */
  readonly examples?: readonly Row[];
}

/** Whether two places show the same frame, as where a clip has fewer than are shown: they have no order. */
export function isOneFrame({ timesSeconds }: Row, a: number, b: number): boolean {
  return timesSeconds[a] === timesSeconds[b];
}

/** A question put to held-out clips; the answer is one of some classes, and the best constant one gives chance. */
export interface HeldOutTask {
  readonly name: string;
  /** The objective whose predictions are counted. */
  readonly objective: string;
  readonly numClasses: number;
  /** Whether a held-out sample is asked; all are unless given. */
  asks?(sample: Sample): boolean;
  assemble(rows: readonly Row[]): HostBatch;
  /** The right answers that a batch asks for. */
  labels(batch: HostBatch): number[];
  /** Arrays of a batch that hold answers read off frames: where clips are changed, they stay those of the whole clip. */
  readonly frameAnswers?: readonly string[];
}

/**
 * A question put to held-out clips whose answer the model writes out by itself, token by token, and which is right or
 * wrong as a whole. Chance is what the best of all right answers reaches where it is always given.
 */
export interface WrittenTask {
  readonly name: string;
  /** Whether a held-out sample is asked; all are unless given. */
  asks?(sample: Sample): boolean;
  /** Each row's clip with what it is asked, for the model of {@link Answers}. */
  assemble(rows: readonly Row[]): HostBatch;
  /** A right answer, as the model would write it. */
  answerOf(sample: Sample): string;
  /** Whether what was written answers what is asked of the sample. */
  isRight(sample: Sample, text: string): boolean;
}

/** What one row showed to the model and what it answered. */
export interface Explained {
  readonly words: readonly { readonly text: string; readonly guess?: string }[];
  /** One entry a window of frames; `guess` tells whether a hidden one was named right. */
  readonly windows: readonly { readonly guess?: boolean }[];
}

/**
 * Losses that compare every row with every other of the global batch, whoever holds them. The embeddings of all rows
 * are computed first, without a gradient, and exchanged; the losses' gradients by them then go into each microbatch's
 * backward pass. Exact for any number of workers, and a microbatch's activations are all that is kept at a time.
 * Source: Gao et al. 2021, arXiv:2101.06983, sec. 3 (gradient caching).
 */
export interface Contrast<P extends TensorTree = TensorTree> {
  /** Those of the system's objectives that {@link sums} gives; the others are per microbatch. */
  readonly objectives: readonly string[];
  /** Paths of the parameters that {@link sums} uses itself, such as a temperature. */
  readonly parameters: readonly string[];
  /**
   * What is compared of a microbatch, float32 [rows, ...] each. Those whose name ends in `Ids` have no gradient: whole
   * numbers to tell equals by.
   */
  embed(params: P, frozen: TensorTree, batch: TensorTree): Record<string, tf.Tensor>;
  /**
   * What {@link embed} gives and the system's other sums of a training microbatch, for those that have most of the way in
   * common: it is gone once, and back once. Each by itself unless given.
   */
  together?(
    params: P,
    frozen: TensorTree,
    batch: TensorTree,
  ): {
    readonly embeddings: Record<string, tf.Tensor>;
    readonly sums: Record<string, ObjectiveSums>;
  };
  /** Sums over the global batch; `embeddings` are those of all rows, [all rows, ...], in the order of the microbatches. */
  sums(
    params: P,
    embeddings: Readonly<Record<string, tf.Tensor>>,
    frozen: TensorTree,
  ): Record<string, ObjectiveSums>;
}

/** How alike clips and texts are, of a system that compares vectors of the two: the higher their products the more. */
export interface Similarity<P extends TensorTree = TensorTree> {
  assembleClips(rows: readonly Row[]): HostBatch;
  /** [rows, E], or several of each clip, [rows, K, E], of which the one that is most like a text counts. */
  clips(params: P, frozen: TensorTree, batch: TensorTree): tf.Tensor;
  assembleTexts(texts: readonly string[]): HostBatch;
  /** [texts, E]. */
  texts(params: P, frozen: TensorTree, batch: TensorTree): tf.Tensor;
  /**
   * How alike they are, [clips, texts], where that is another thing than products: of what {@link clips} and
   * {@link texts} give, each flat in a row, float32 [clips, ...] and [texts, ...].
   */
  compare?(params: P, frozen: TensorTree, clips: tf.Tensor, texts: tf.Tensor): tf.Tensor;
  /** The captions that a sample has, where it reads other ones than the whole text. */
  captionsOf?(sample: Sample): readonly string[];
}

/** What is given of a clip and of what is asked about it, as people read it. */
export interface Given {
  /** What is asked, as far as it is given: the end of a long one is cut off. */
  readonly question: string;
  /** So many word pieces of the question are given; absent: all. */
  readonly cutTo?: number;
  /** All that is read before the answer; absent: nothing beside the question. */
  readonly words?: string;
  /** The windows of frames that are shown; absent: all. */
  readonly windows?: readonly number[];
}

/** How a system answers questions about clips in words; see `openAnswering`. */
export interface Answers<P extends TensorTree = TensorTree> {
  /** Each row's clip with the question, as {@link model} is given them. A system that only captions reads no question. */
  assemble(rows: readonly Row[], question: string): HostBatch;
  /** What {@link assemble} gives to the model of a row. */
  given(row: Row, question: string): Given;
  /** Writes an answer: it is given the parameters and what {@link assemble} made. */
  readonly model: LanguageModel<AnsweringParams<P>>;
  /** An answer ends with any of these. */
  readonly eosIds: readonly number[];
  /** Longer answers are cut. */
  readonly maxNewTokens: number;
  /** Whether {@link Row.examples} are read, as many of each row of a batch; false unless given. */
  readonly takesExamples?: boolean;
  /** Ids of an answer, without its end, in words. */
  decode(ids: readonly number[]): string;
}

export type AnsweringParams<P extends TensorTree = TensorTree> = {
  readonly params: P;
  /** The system's frozen arrays. */
  readonly frozen: TensorTree;
};

/** How a system that writes no text completes one: words for its `[MASK]`s, from what a clip shows. */
export interface FillIn<P extends TensorTree = TensorTree> {
  /** A text for those who give none. */
  readonly example: string;
  assemble(rows: readonly Row[], text: string): HostBatch;
  /** What {@link assemble} gives to the model of a row. */
  given(row: Row, text: string): Given;
  /** Logits of the hidden positions, [B, P, V]. */
  logits(params: P, frozen: TensorTree, batch: TensorTree): tf.Tensor;
  /** Each row's text with the likeliest words in it. */
  complete(batch: HostBatch, logits: ArrayLike<number>): readonly string[];
}

/** RGB, 8 bits, [height, width, 3]. */
export interface DrawnPicture {
  readonly pixels: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/** How a system draws pictures of texts, token by token. */
export interface Draws<P extends TensorTree = TensorTree> {
  /** What is drawn where this was asked of a clip, and that was said. */
  textOf(question: string, said: string): string;
  /** What {@link model} draws the texts from. */
  assemble(texts: readonly string[]): HostBatch;
  readonly model: LanguageModel<AnsweringParams<P>>;
  /** Tokens of a picture. */
  readonly numTokens: number;
  /** The tokens that a clip's picture comes to: all that the model sees of it. */
  seen(row: Row): readonly number[];
  picture(tokens: readonly number[]): DrawnPicture;
}

/** A video-language model with its losses: what the training loop knows of it. */
export interface VideoLanguageSystem<P extends TensorTree = TensorTree> {
  readonly name: string;
  /** Objectives with their weights in the total loss. */
  readonly objectives: Readonly<Record<string, number>>;
  readonly heldOutTasks: readonly HeldOutTask[];
  /** Questions that a run does not put at its end, but `videoloom probe` does. */
  readonly furtherTasks?: readonly HeldOutTask[];
  /** Questions that {@link answers} answers; none unless given. */
  readonly writtenTasks?: readonly WrittenTask[];
  init(initializer: Initializer): P;
  /** What its parts compute, for those whose weights may come from elsewhere. */
  readonly kinds?: PartKinds;
  /** What of it transformers has too. */
  readonly published?: readonly PublishedPart[];
  /** Arrays that the program takes but does not train. */
  readonly frozen: Readonly<Record<string, HostArray>>;
  /** {@link sums} compares with the model as the run began: see `referenceOf`. */
  readonly needsReference?: boolean;
  /** Whether weight decay applies to a parameter; of stacked layers, `shape` is that of one. */
  decays(path: string, shape: readonly number[]): boolean;
  /** Least and greatest value that a step leaves to a parameter, by its path; none unless given. */
  readonly bounds?: Bounds;
  /** A training microbatch; a pure function of rows and the run's seed. */
  assemble(rows: readonly Row[]): HostBatch;
  /** Rows with something hidden, to look at what the model makes of them. */
  readonly look?: {
    assemble(rows: readonly Row[]): HostBatch;
    /** The most likely id at each hidden position; one tensor a modality, of any names. */
    guess(params: P, frozen: TensorTree, batch: TensorTree): Record<string, tf.Tensor>;
    explain(batch: HostBatch, guesses: Readonly<Record<string, ArrayLike<number>>>): Explained[];
  };
  readonly answers?: Answers<P>;
  readonly fillIn?: FillIn<P>;
  /** For retrieval and for telling captions apart; none unless given. */
  readonly similarity?: Similarity<P>;
  /** Of systems with {@link answers}. */
  readonly draws?: Draws<P>;
  /**
   * Sums over a microbatch by objective, but for those of {@link contrast}, save where a held-out question's batch
   * holds all that is compared: what is given of them then counts.
   */
  sums(params: P, frozen: TensorTree, batch: TensorTree): Record<string, ObjectiveSums>;
  readonly contrast?: Contrast<P>;
}

/** The model's fields of a recipe. */
export interface ModelConfig {
  readonly name: string;
}

/** What a system is opened from. */
export interface SystemContext<M extends ModelConfig = ModelConfig> {
  readonly config: RunConfig & { readonly model: M };
  readonly index: SampleIndex;
  /** The run's folder, with the files that {@link SystemDefinition.fit} wrote. */
  readonly folder: string;
}

/** What a system fits its vocabularies with, from the training split alone. */
export interface FitContext<M extends ModelConfig = ModelConfig> extends SystemContext<M> {
  readonly loader: ClipLoader;
  /** Where initial weights come from, as far as those of words do: what their tokens mean is not to change. */
  readonly initialWords: readonly InitialWords[];
}

/** A folder with a tokenizer, where it has one. */
export interface InitialWords {
  readonly folder: string;
  /** Rows of the table of words of somebody else's model; undefined: the folder is that of a run. */
  readonly rows?: number | undefined;
}

/** A kind of run: its fields in recipes, the samples it takes, and how it is opened. */
export interface SystemDefinition<M extends ModelConfig = ModelConfig> {
  /** Fields of `model`; `name` is the literal that chooses this system. */
  readonly schema: z.ZodObject<{ name: z.ZodLiteral<string> }>;
  /** What it trains on, in words for messages: `a clip of one video`. */
  readonly sampleKind: string;
  takes(sample: Sample, files: readonly MediaFile[]): boolean;
  /** What is wrong with the fields taken together, if anything. */
  check?(config: RunConfig & { readonly model: M }): string | undefined;
  /** The samples of the training split as it trains on them, as many as there are; as they are unless given. */
  arrange?(
    config: RunConfig & { readonly model: M },
    samples: readonly Sample[],
  ): readonly Sample[];
  /** Writes into the run's folder what is found out from the training split; says what it was. */
  fit(context: FitContext<M>): Promise<string>;
  /**
   * Writes what {@link fit} finds out beside the tokenizer, as large as it may be and without meaning: for a plan by
   * shapes. Nothing unless given.
   */
  standIn?(context: SystemContext<M>): Promise<void>;
  /** A pure function of the context's files and config: every worker opens the same. */
  open(context: SystemContext<M>): Promise<VideoLanguageSystem>;
}

/** A definition whose types are forgotten, for the list of all. */
export function defineSystem<M extends ModelConfig, P extends TensorTree>(
  definition: Omit<SystemDefinition<M>, 'open' | 'schema'> & {
    readonly schema: z.ZodObject;
    open(context: SystemContext<M>): Promise<VideoLanguageSystem<P>>;
  },
): SystemDefinition {
  return definition as unknown as SystemDefinition;
}

/** A choice of {@link SystemDefinition.takes}: with words or without. */
export function isClipOfOneVideo({ media }: Sample, files: readonly MediaFile[]): boolean {
  return media.length === 1 && files[media[0]!.file]!.kind === 'video';
}

/** What is no clip of one video, or has nothing said of it, would teach that nothing is to be said. */
export function isClipWithWords(sample: Sample, files: readonly MediaFile[]): boolean {
  return isClipOfOneVideo(sample, files) && sample.text !== '';
}

/** One picture, or a clip of one video, with words. */
export function isOneMediumWithWords({ media, text }: Sample): boolean {
  return media.length === 1 && text !== '';
}

/** Words without a picture or a clip, as documents and conversations may be. */
export function isTextAlone({ media, text }: Sample): boolean {
  return media.length === 0 && text !== '';
}
