/** Videos and pictures with their words in files of the same name beside them. */
import { messageOf } from '../../proto/errors.ts';
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { transcriptOf } from './asr.ts';
import { DamagedJson, jsonPieces, MAX_RECORD_BYTES } from './json-pieces.ts';
import { parseJson, tellFault } from './json-records.ts';
import { baseOf, endingOf, kindOf, MEDIA_ENDINGS, stemOf } from './media-names.ts';
import type { Source } from './source.ts';
import { NO_WORDS, WORDS_ENDINGS, wordsOf, type Words } from './words.ts';

/**
 * The words of `a/b.mp4` are those of `a/b.vtt`, else `a/b.srt`, `a/b.txt`, `a/b.json`; else subtitles with a language
 * (`a/b.en.vtt`, English before others), else `a/b.info.json` as yt-dlp writes it, else what a HowTo100M-style
 * `caption.json` in the root says of `b`. Of files that differ in their ending alone the video counts before the
 * picture, which is its preview. Videos are not cut here.
 */
export const folder: Source = {
  name: 'folder',
  matches: (_store, files) => Promise.resolve(files.some(({ path }) => kindOf(path) !== undefined)),
  async *read(store, files, signal) {
    const media = files.filter(({ path }) => kindOf(path) !== undefined);
    if (media.length === 0) {
      const message = `there are no videos or pictures in ${store.root} or below it; files that end in ${MEDIA_ENDINGS} are looked for`;
      throw new DataError('DATA_EMPTY', message);
    }
    const isVideo = ({ path }: StoredFile): boolean => kindOf(path) === 'video';
    const videoStems = new Set(media.filter(isVideo).map(({ path }) => stemOf(path)));
    const beside = wordFilesOf(files);
    const shared = await sharedCaptions(store, files, media, signal);
    const stems = new Set<string>();
    for (const { path } of media) {
      const [kind, id] = [kindOf(path)!, stemOf(path)];
      if (kind === 'image' && videoStems.has(id)) continue;
      if (stems.has(id)) {
        const message = `an earlier file has the name ${id} with another ending; rename one of them`;
        yield { skipped: { path, code: 'DUPLICATE_ID', message } };
        continue;
      }
      stems.add(id);
      const wordFile = beside.get(id);
      const read = await readWords(store, wordFile ?? shared.get(baseOf(id)), signal);
      yield* tellFault(path, () => {
        const { text, cues, numWarnings: numCaptionWarnings } = read();
        return [{ id, media: [{ kind, path }], text, cues, numCaptionWarnings }];
      });
    }
  },
};

/** Where words are: a file, or a part of one. */
interface WordFile extends StoredFile {
  readonly ending: string;
  readonly offset: number;
}

/** The words as a function that throws the DataError that reading them met. */
async function readWords(
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

/** By the name of the medium without its ending: the file with its words that counts most. */
function wordFilesOf(files: readonly StoredFile[]): Map<string, WordFile> {
  const found = new Map<string, WordFile & { readonly rank: number }>();
  for (const { path, sizeBytes } of files) {
    const ending = endingOf(path).toLowerCase();
    const rank = WORDS_ENDINGS.indexOf(ending);
    if (rank === -1) continue;
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

const SHARED_NAMES: readonly string[] = ['caption.json', 'captions.json', 'raw_caption.json'];

/** By the last component of a video's name: its part of the file that has the captions of all. */
async function sharedCaptions(
  store: Store,
  files: readonly StoredFile[],
  media: readonly StoredFile[],
  signal?: AbortSignal,
): Promise<Map<string, WordFile>> {
  const found = new Map<string, WordFile>();
  const file = files.find(({ path }) => SHARED_NAMES.includes(path));
  if (file === undefined) return found;
  const wanted = new Set(media.map(({ path }) => baseOf(stemOf(path))));
  try {
    for await (const { key, offset, sizeBytes, bytes } of jsonPieces(store, file, signal)) {
      if (key === undefined || bytes === undefined || !wanted.has(key)) continue;
      const parsed = parseJson(bytes);
      if ('fault' in parsed || transcriptOf(parsed.value) === undefined) continue;
      found.set(key, { path: file.path, ending: '.json', offset, sizeBytes });
    }
  } catch (error) {
    // What comes before the fault is whole; media without words are still samples.
    if (!(error instanceof DamagedJson)) throw error;
  }
  return found;
}
