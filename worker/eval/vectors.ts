/** Clips and texts as the vectors by which a system compares them. */
import type * as tf from '@tensorflow/tfjs-core';
import { uploadBatch } from '../batches.ts';
import type { HostArray, HostBatch, Row, Similarity } from '../systems/system.ts';
import type { TrainedRun } from '../trained-run.ts';
import { disposeTree, type TensorTree } from '../tree.ts';
import { filledUp, inBatches, refuseUndecoded, type ClipSource } from './asked.ts';
import type { EvaluationFile } from './evaluation-file.ts';

/** Vectors of clips, of which there may be several each, one behind the other, and of texts. */
export interface Vectors {
  /** Undefined for clips that do not decode. */
  readonly clips: readonly (Float32Array | undefined)[];
  readonly texts: readonly Float32Array[];
}

/** A system's programs that make vectors and compare them, each one for any number of clips or texts. */
export interface Comparer {
  /** Of rows, in their order. */
  clips(rows: readonly Row[]): Promise<Float32Array[]>;
  texts(texts: readonly string[]): Promise<Float32Array[]>;
  /** How alike a clip is to each of some texts, as {@link similarityOf} is rounded. */
  alike(clip: Float32Array, texts: readonly Float32Array[]): Promise<number[]>;
  /** Frees the programs. Idempotent. */
  close(): void;
}

export function openComparer(
  { run, engine, params, frozen }: Pick<TrainedRun, 'run' | 'engine' | 'params' | 'frozen'>,
  similarity: Similarity,
): Comparer {
  const batchSize = run.config.train.microbatchSize;
  const compare = similarity.compare?.bind(similarity);
  const compiled = (what: 'clips' | 'texts') =>
    engine.compile(
      (own: TensorTree, arrays: TensorTree, batch: TensorTree) => ({
        vectors: similarity[what](own, arrays, batch),
      }),
      { name: `vectors of ${what}` },
    );
  const programs = {
    clips: compiled('clips'),
    texts: compiled('texts'),
    compare:
      compare &&
      engine.compile(
        (
          own: TensorTree,
          arrays: TensorTree,
          { clips, texts }: { clips: tf.Tensor; texts: tf.Tensor },
        ) => ({
          alike: compare(own, arrays, clips, texts),
        }),
        { name: 'how alike clips and texts are' },
      ),
  };
  const made = async <T>(
    what: 'clips' | 'texts',
    items: readonly T[],
    assemble: (batch: readonly T[]) => HostBatch,
  ): Promise<Float32Array[]> => {
    const rows: Float32Array[] = [];
    for (const own of batchesOf(items, batchSize)) {
      const inputs = uploadBatch(engine, assemble(filledUp(own, batchSize)));
      const { vectors } = await programs[what](params, frozen, inputs);
      const values = (await vectors.data()) as Float32Array;
      disposeTree([vectors, inputs]);
      const width = values.length / batchSize;
      rows.push(...own.map((_, row) => values.slice(row * width, (row + 1) * width)));
    }
    return rows;
  };
  return {
    clips: (rows) => made('clips', rows, (batch) => similarity.assembleClips(batch)),
    texts: (texts) => made('texts', texts, (batch) => similarity.assembleTexts(batch)),
    async alike(clip, texts) {
      if (programs.compare === undefined) return texts.map((text) => similarityOf(clip, text));
      const found: number[] = [];
      for (const own of batchesOf(texts, batchSize)) {
        const arrays = { clips: tableOf([clip]), texts: tableOf(filledUp(own, batchSize)) };
        const inputs = uploadBatch(engine, { arrays, counts: {}, numTokens: 0 });
        const { alike } = await programs.compare(
          params,
          frozen,
          inputs as { clips: tf.Tensor; texts: tf.Tensor },
        );
        const values = (await alike.data()) as Float32Array;
        disposeTree([alike, inputs]);
        found.push(...own.map((_, at) => inFewDigits(values[at]!)));
      }
      return found;
    },
    close() {
      programs.clips.close();
      programs.texts.close();
      programs.compare?.close();
    },
  };
}

function* batchesOf<T>(items: readonly T[], size: number): Generator<readonly T[]> {
  for (let start = 0; start < items.length; start += size) yield items.slice(start, start + size);
}

function tableOf(rows: readonly Float32Array[]): HostArray {
  const width = rows[0]!.length;
  const data = new Float32Array(rows.length * width);
  for (const [at, row] of rows.entries()) data.set(row, at * width);
  return { data, shape: [rows.length, width] };
}

/** Vectors of samples and texts, batch by batch into the file of an evaluation. @throws where no sample decodes, what the first fails by */
export async function vectorsOf(
  comparer: Comparer,
  { samples, texts }: { readonly samples: readonly number[]; readonly texts: readonly string[] },
  {
    source,
    file,
    batchSize,
  }: {
    readonly source: ClipSource;
    readonly file: EvaluationFile;
    readonly batchSize: number;
  },
): Promise<Vectors> {
  const clips = await inBatches(samples, { source, batchSize, file, name: 'clips' }, async (rows) =>
    (await comparer.clips(rows)).map(encoded),
  );
  await refuseUndecoded(source, samples, clips);
  const read: string[] = [];
  for (const [at, own] of [...batchesOf(texts, batchSize)].entries()) {
    const rows = await file.unit(`texts ${at * batchSize}`, async () =>
      (await comparer.texts(own)).map(encoded),
    );
    read.push(...rows);
  }
  return {
    clips: clips.map((row) => (row === undefined ? undefined : decoded(row))),
    texts: read.map(decoded),
  };
}

/** How alike a clip and a text are, as float32 in nine digits, which tell it from any other. */
export function similarityOf(clip: Float32Array, text: Float32Array): number {
  let most = -Infinity;
  for (let start = 0; start < clip.length; start += text.length) {
    let sum = 0;
    for (const [k, value] of text.entries()) sum += clip[start + k]! * value;
    most = Math.max(most, sum);
  }
  return inFewDigits(most);
}

/** As float32 in nine digits: what differs by the order of a sum alone is a tie, and files are no longer than they need. */
function inFewDigits(value: number): number {
  return Number(Math.fround(value).toPrecision(9));
}

/** In base64, little-endian. */
function encoded(values: Float32Array): string {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64');
}

function decoded(text: string): Float32Array {
  return new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer);
}
