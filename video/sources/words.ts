/** The words that lie beside a picture or a video: in a file of its name, or in a member of its tar shard. */
import { parseSrt, parseTxt, parseVtt, type TimedText } from '../text/captions.ts';
import { DataError } from '../index/sample-index.ts';
import { transcriptOf } from './asr.ts';
import { fieldsOf, parseJson, stringOf, stringsOf } from './json-records.ts';

/** Endings of files with words; where there are several, the first is taken. */
export const WORDS_ENDINGS: readonly string[] = ['.vtt', '.srt', '.txt', '.json'];

/** Those of them whose words have times. */
export const SUBTITLE_ENDINGS: readonly string[] = ['.vtt', '.srt'];

export interface Words {
  /** The caption of the whole, or all cues. */
  readonly text: string;
  readonly cues: readonly TimedText[];
  /** Times that are left out because they are faulty. */
  readonly numWarnings: number;
}

export const NO_WORDS: Words = { text: '', cues: [], numWarnings: 0 };

const CAPTION_NAMES: readonly string[] = ['caption', 'text', 'title', 'description'];

/**
 * What a file with one of {@link WORDS_ENDINGS} says; of `.json` the first of `caption`, `text`, `title` and
 * `description`, or a transcript. A file that is there and holds no words is no fault.
 * @throws DataError RECORD_BAD_JSON, TEXT_ENCODING
 */
export function wordsOf(ending: string, content: Uint8Array): Words {
  if (ending === '.json') return jsonWords(content);
  const text = textOf(content);
  if (ending === '.vtt' || ending === '.srt') {
    const { cues, warnings } = ending === '.vtt' ? parseVtt(text) : parseSrt(text);
    const numWarnings = warnings.filter(({ code }) => code !== 'CAPTION_NO_HEADER').length;
    return timedWords(cues, numWarnings);
  }
  return { ...NO_WORDS, text: parseTxt(text) };
}

/** UTF-16 where a byte order mark says so, as Windows' editors write it; else UTF-8. */
function textOf(content: Uint8Array): string {
  const [first, second] = content;
  const isLittle = first === 0xff && second === 0xfe;
  const isBig = first === 0xfe && second === 0xff;
  const encoding = isLittle ? 'utf-16le' : isBig ? 'utf-16be' : 'utf-8';
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(content);
  } catch (cause) {
    const what = encoding.toUpperCase();
    throw new DataError('TEXT_ENCODING', `it is not ${what}; save it as UTF-8`, { cause });
  }
}

export function timedWords(cues: readonly TimedText[], numWarnings: number): Words {
  return { text: cues.map(({ text }) => text).join(' '), cues, numWarnings };
}

function jsonWords(content: Uint8Array): Words {
  const parsed = parseJson(content);
  if ('fault' in parsed) throw new DataError('RECORD_BAD_JSON', parsed.fault);
  const transcript = transcriptOf(parsed.value);
  if (transcript !== undefined) return timedWords(transcript.cues, transcript.numFaulty);
  const fields = fieldsOf(parsed.value) ?? {};
  const caption = stringOf(fields, CAPTION_NAMES) ?? stringsOf(fields['captions'])?.[0];
  return { ...NO_WORDS, text: caption === undefined ? '' : parseTxt(caption) };
}
