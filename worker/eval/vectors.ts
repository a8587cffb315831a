/** Clips and texts as the vectors by which a system compares them. */
import { uploadBatch } from '../batches.ts';
import type { HostBatch, Similarity } from '../systems/system.ts';
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

export async function vectorsOf(
  { run, engine, params }: TrainedRun,
  similarity: Similarity,
  { samples, texts }: { readonly samples: readonly number[]; readonly texts: readonly string[] },
  { source, file }: { readonly source: ClipSource; readonly file: EvaluationFile },
): Promise<Vectors> {
  const batchSize = run.config.train.microbatchSize;
  const compiled = (what: 'clips' | 'texts') =>
    engine.compile(
      (own: TensorTree, batch: TensorTree) => ({ vectors: similarity[what](own, batch) }),
      { name: `vectors of ${what}` },
    );
  type Program = ReturnType<typeof compiled>;
  const [clipsProgram, textsProgram] = [compiled('clips'), compiled('texts')];
  const rowsBy = async (program: Program, batch: HostBatch): Promise<string[]> => {
    const inputs = uploadBatch(engine, batch);
    const { vectors } = await program(params, inputs);
    const values = (await vectors.data()) as Float32Array;
    disposeTree([vectors, inputs]);
    const width = values.length / batchSize;
    return Array.from({ length: batchSize }, (_, row) =>
      encoded(values.subarray(row * width, (row + 1) * width)),
    );
  };
  try {
    const clips = await inBatches(
      samples,
      { source, batchSize, file, name: 'clips' },
      async (rows) => rowsBy(clipsProgram, similarity.assembleClips(rows)),
    );
    const read: string[] = [];
    for (let start = 0; start < texts.length; start += batchSize) {
      const own = texts.slice(start, start + batchSize);
      const filled = Array.from({ length: batchSize }, (_, at) => own[at % own.length]!);
      const rows = await file.unit(`texts ${start}`, () =>
        rowsBy(textsProgram, similarity.assembleTexts(filled)),
      );
      read.push(...rows.slice(0, own.length));
    }
    return {
      clips: clips.map((row) => (row === undefined ? undefined : decoded(row))),
      texts: read.map(decoded),
    };
  } finally {
    clipsProgram.close();
    textsProgram.close();
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
