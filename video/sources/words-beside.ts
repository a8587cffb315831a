/** Files with words that lie beside media files and bear their names. */
import { messageOf } from '../../proto/errors.ts';
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { MAX_RECORD_BYTES } from './json-pieces.ts';
import { endingOf, stemOf } from './media-names.ts';
import { NO_WORDS, WORDS_ENDINGS, wordsOf, type Words } from './words.ts';

/** Where words are: a file, or a part of one. */
export interface WordFile extends StoredFile {
  readonly ending: string;
  readonly offset: number;
}

/** The words as a function that throws the DataError that reading them met. */
export async function readWords(
  store: Store,
  file: WordFile | undefined,
  signal?: AbortSignal,
): Promise<() => Words> {
  if (file === undefined) return () => NO_WORDS;
  const { path, offset, sizeBytes, ending } = file;
  const unreadable = (why: string): DataError =>
    new DataError('CAPTION_UNREADABLE', `the captions ${path} cannot be read: ${why}`);
  if (sizeBytes > MAX_RECORD_BYTES) {
    return () => {
      throw unreadable(`${sizeBytes} bytes are more than the ${MAX_RECORD_BYTES} that are read`);
    };
  }
  const range = { offset, sizeBytes };
  const content = await store.read(path, signal === undefined ? { range } : { range, signal });
  return () => {
    try {
      return wordsOf(ending, content);
    } catch (error) {
      if (error instanceof DataError) throw unreadable(messageOf(error));
      throw error;
    }
  };
}

/** Subtitles with a language before their ending, as `b.en.vtt` or `b.pt-BR.srt`. */
const WITH_LANGUAGE = /\.[a-z]{2,3}(?:-[a-z0-9]+)*$/i;

/** By the name of the medium without its ending: the file with its words, of these endings, that counts most. */
export function wordFilesOf(
  files: readonly StoredFile[],
  endings: readonly string[] = WORDS_ENDINGS,
): Map<string, WordFile> {
  const found = new Map<string, WordFile & { readonly rank: number }>();
  for (const { path, sizeBytes } of files) {
    const ending = endingOf(path).toLowerCase();
    const rank = WORDS_ENDINGS.indexOf(ending);
    if (!endings.includes(ending)) continue;
    const offer = (stem: string, ownRank: number): void => {
      const other = found.get(stem);
      if (other !== undefined && other.rank <= ownRank) return;
      found.set(stem, { path, sizeBytes, ending, offset: 0, rank: ownRank });
    };
    const stem = stemOf(path);
    offer(stem, rank);
    const language = rank < 2 ? WITH_LANGUAGE.exec(stem)?.[0] : undefined;
    if (language !== undefined) {
      const languageRank = /^\.en(?:-|$)/i.test(language) ? 10 : 20;
      offer(stem.slice(0, -language.length), languageRank + rank);
    } else if (ending === '.json' && stem.endsWith('.info')) {
      offer(stem.slice(0, -'.info'.length), 30);
    }
  }
  return found;
}
