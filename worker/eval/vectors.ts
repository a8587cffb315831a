/** Clips and texts as the vectors by which a system compares them. */
import { uploadBatch } from '../batches.ts';
import type { HostBatch, Row, Similarity } from '../systems/system.ts';
import type { TrainedRun } from '../trained-run.ts';
import { disposeTree, type TensorTree } from '../tree.ts';
import { inBatches, type ClipSource } from './asked.ts';
import type { EvaluationFile } from './evaluation-file.ts';

/** Vectors of clips, of which there may be several each, one behind the other, and of texts. */
export interface Vectors {
  /** Undefined for clips that do not decode. */
  readonly clips: readonly (Float32Array | undefined)[];
  readonly texts: readonly Float32Array[];
}

/** A system's programs that make vectors, one for clips and one for texts, whatever their number. */
export interface Vectorizer {
  /** Of rows, in their order. */
  clips(rows: readonly Row[]): Promise<Float32Array[]>;
  texts(texts: readonly string[]): Promise<Float32Array[]>;
  /** Frees the programs. Idempotent. */
  close(): void;
}

export function openVectorizer(
  { run, engine, params }: Pick<TrainedRun, 'run' | 'engine' | 'params'>,
  similarity: Similarity,
): Vectorizer {
  const batchSize = run.config.train.microbatchSize;
  const compiled = (what: 'clips' | 'texts') =>
    engine.compile(
      (own: TensorTree, batch: TensorTree) => ({ vectors: similarity[what](own, batch) }),
      { name: `vectors of ${what}` },
    );
  const programs = { clips: compiled('clips'), texts: compiled('texts') };
  const made = async <T>(
    what: 'clips' | 'texts',
    items: readonly T[],
    assemble: (batch: readonly T[]) => HostBatch,
  ): Promise<Float32Array[]> => {
    const rows: Float32Array[] = [];
    for (let start = 0; start < items.length; start += batchSize) {
      const own = items.slice(start, start + batchSize);
      // One program for any number: the last ones are filled up.
      const filled = Array.from({ length: batchSize }, (_, at) => own[at % own.length]!);
      const inputs = uploadBatch(engine, assemble(filled));
      const { vectors } = await programs[what](params, inputs);
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
    close() {
      programs.clips.close();
      programs.texts.close();
    },
  };
}

/** Vectors of samples and texts, batch by batch into the file of an evaluation. */
export async function vectorsOf(
  trained: TrainedRun,
  similarity: Similarity,
  { samples, texts }: { readonly samples: readonly number[]; readonly texts: readonly string[] },
  { source, file }: { readonly source: ClipSource; readonly file: EvaluationFile },
): Promise<Vectors> {
  const batchSize = trained.run.config.train.microbatchSize;
  const vectorizer = openVectorizer(trained, similarity);
  try {
    const clips = await inBatches(
      samples,
      { source, batchSize, file, name: 'clips' },
      async (rows) => (await vectorizer.clips(rows)).map(encoded),
    );
    const read: string[] = [];
    for (let start = 0; start < texts.length; start += batchSize) {
      const own = texts.slice(start, start + batchSize);
      const rows = await file.unit(`texts ${start}`, async () =>
        (await vectorizer.texts(own)).map(encoded),
      );
      read.push(...rows);
    }
    return {
      clips: clips.map((row) => (row === undefined ? undefined : decoded(row))),
      texts: read.map(decoded),
    };
  } finally {
    vectorizer.close();
  }
}

/** How alike a clip and a text are, in nine digits, which tell every float32 from any other. */
export function similarityOf(clip: Float32Array, text: Float32Array): number {
  let most = -Infinity;
  for (let start = 0; start < clip.length; start += text.length) {
    let sum = 0;
    for (const [k, value] of text.entries()) sum += clip[start + k]! * value;
    most = Math.max(most, sum);
  }
  return Number(Math.fround(most).toPrecision(9));
}

/** In base64, little-endian. */
function encoded(values: Float32Array): string {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64');
}

function decoded(text: string): Float32Array {
  return new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer);
}
