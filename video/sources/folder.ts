/** Videos and pictures with their words in files of the same name beside them. */
import { DataError } from '../index/sample-index.ts';
import type { Store, StoredFile } from '../storage/store.ts';
import { transcriptOf } from './asr.ts';
import { DamagedJson, jsonPieces } from './json-pieces.ts';
import { parseJson, tellFault } from './json-records.ts';
import { baseOf, kindOf, MEDIA_ENDINGS, stemOf } from './media-names.ts';
import type { Source } from './source.ts';
import { splitsOf } from './splits.ts';
import { SUBTITLE_ENDINGS } from './words.ts';
import { readWords, wordFilesOf, type WordFile } from './words-beside.ts';

/**
 * The words of `a/b.mp4` are those of `a/b.vtt`, else `a/b.srt`, `a/b.txt`, `a/b.json`; else subtitles with a language
 * (`a/b.en.vtt`, English before others), else `a/b.info.json` as yt-dlp writes it, else what a HowTo100M-style
 * `caption.json` in the root says of `b`. A caption in `a/b.txt` keeps subtitles with a language beside it as its cues. Of
 * files that differ in their ending alone the video counts before the
 * picture, which is its preview. Videos are not cut here. Folders at the top as `train/` and `val/` are the splits.
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
    const subtitles = wordFilesOf(files, SUBTITLE_ENDINGS);
    const shared = await sharedCaptions(store, files, media, signal);
    const splitOf = splitsOf(media.map(({ path }) => topOf(path)));
    const stems = new Set<string>();
    for (const { path } of media) {
      const split = splitOf(topOf(path));
      const told = split === undefined ? {} : { split };
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
      const spoken = wordFile?.ending === '.txt' ? subtitles.get(id) : undefined;
      if (spoken !== undefined) {
        const readSpoken = await readWords(store, spoken, signal);
        yield* tellFault(path, () => {
          const { cues, numWarnings: numCaptionWarnings } = readSpoken();
          const { text } = read();
          return [
            {
              id,
              media: [{ kind, path }],
              text,
              isCaption: true,
              cues,
              numCaptionWarnings,
              ...told,
            },
          ];
        });
        continue;
      }
      yield* tellFault(path, () => {
        const { text, cues, numWarnings: numCaptionWarnings } = read();
        return [{ id, media: [{ kind, path }], text, cues, numCaptionWarnings, ...told }];
      });
    }
  },
};

/** The folder at the top that the file lies in; empty for the root. */
function topOf(path: string): string {
  return path.slice(0, Math.max(0, path.indexOf('/')));
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
