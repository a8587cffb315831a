import { readFile, rename, writeFile } from 'node:fs/promises';
import { messageOf, VideoloomError } from '../proto/errors.ts';
import {
  packVisualVocabulary,
  unpackVisualVocabulary,
  type PackedVocabulary,
  type VisualVocabulary,
} from '../video/visual-words/visual-vocabulary.ts';
import type { TensorData } from './checkpoint/format.ts';
import { readSafetensorsStream, safetensorsStream } from './checkpoint/stream.ts';

const CHILD_COUNTS = 'childCounts';

/** Writes a fitted visual vocabulary as safetensors: its arrays by name, and the form of its tree as one more. */
export async function writeVisualVocabulary(
  file: string,
  vocabulary: VisualVocabulary,
): Promise<void> {
  const tensors = new Map<string, TensorData>();
  for (const [name, { data, shape }] of Object.entries(packVisualVocabulary(vocabulary).tensors)) {
    tensors.set(name, { dtype: 'F32', shape, data: bytesOf(data) });
  }
  const counts = Int32Array.from(vocabulary.childCounts);
  tensors.set(CHILD_COUNTS, { dtype: 'I32', shape: [counts.length], data: bytesOf(counts) });
  await writeFile(`${file}.tmp`, Buffer.concat([...safetensorsStream(tensors)]));
  await rename(`${file}.tmp`, file);
}

/** @throws VideoloomError `VOCABULARY_UNREADABLE` when it is not a file of {@link writeVisualVocabulary}. */
export async function readVisualVocabulary(file: string): Promise<VisualVocabulary> {
  try {
    const tensors = await readSafetensorsStream(chunksOf(await readFile(file)));
    const counts = tensors.get(CHILD_COUNTS)?.data.slice().buffer ?? new ArrayBuffer(0);
    tensors.delete(CHILD_COUNTS);
    const arrays = [...tensors].map(([name, { data, shape }]) => [
      name,
      { data: new Float32Array(data.slice().buffer), shape },
    ]);
    return unpackVisualVocabulary({
      tensors: Object.fromEntries(arrays) as PackedVocabulary['tensors'],
      metadata: { childCounts: [...new Int32Array(counts)].join(',') },
    });
  } catch (error) {
    throw new VideoloomError(
      'VOCABULARY_UNREADABLE',
      `${file} is no visual vocabulary (${messageOf(error)}): remove the run folder and start the run again`,
      { cause: error },
    );
  }
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

async function* chunksOf(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(bytes);
}
