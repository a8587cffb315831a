import { decodeEntities } from './entities.ts';

/** Words and when they are said or shown. */
export interface TimedText {
  readonly startSeconds: number;
  readonly endSeconds: number;
  readonly text: string;
}

/** Why a cue was left out. */
export type CaptionWarningCode =
  'CAPTION_BAD_TIME' | 'CAPTION_NEGATIVE_LENGTH' | 'CAPTION_NO_HEADER';

export interface CaptionWarning {
  readonly code: CaptionWarningCode;
  /** Counted from 1. */
  readonly line: number;
  readonly message: string;
}

export interface ParsedCaptions {
  /** By start, then by end. */
  readonly cues: readonly TimedText[];
  readonly warnings: readonly CaptionWarning[];
}

const ARROW = '-->';
// Hours optional, `,` of SubRip beside `.` of WebVTT.
const TIMESTAMP = /^(?:(\d+):)?([0-5]?\d):([0-5]?\d)(?:[.,](\d{1,3}))?$/;

/**
 * WebVTT, or what people save under that ending. Faults cost their cue and are told as warnings.
 * Rolling captions, as YouTube makes them of speech, tell each line up to three times: of these every word is told once,
 * at its own time where it has one, and without sound tags such as `[Music]`.
 * Source: W3C WebVTT, sec. 6.1, more forgiving: a missing header, `,` and one-digit fields are read.
 */
export function parseVtt(content: string): ParsedCaptions {
  const lines = linesOf(content);
  const warnings: CaptionWarning[] = [];
  if (!/^WEBVTT(?:[ \t]|$)/.test(lines[0] ?? '')) {
    warnings.push({ code: 'CAPTION_NO_HEADER', line: 1, message: 'does not begin with WEBVTT' });
  }
  return parseBlocks(lines, warnings);
}

/** SubRip. Faults cost their cue and are told as warnings. Rolling captions are read as in {@link parseVtt}. */
export function parseSrt(content: string): ParsedCaptions {
  return parseBlocks(linesOf(content), []);
}

/** The caption of a whole clip: a text file's words with white space folded. */
export function parseTxt(content: string): string {
  return fold(linesOf(content).join(' '));
}

/** A cue as it is written. */
interface Block {
  readonly startSeconds: number;
  readonly endSeconds: number;
  /** With their tags; blank ones too, as they tell that nothing was rolled up. */
  readonly lines: readonly string[];
}

function parseBlocks(lines: readonly string[], warnings: CaptionWarning[]): ParsedCaptions {
  const blocks: Block[] = [];
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at]!;
    // Without an arrow: header, NOTE, STYLE, REGION, cue identifier or counter.
    if (/^(?:NOTE|STYLE|REGION)(?:[ \t]|$)/.test(line)) {
      while (at + 1 < lines.length && lines[at + 1]!.trim() !== '') at++;
      continue;
    }
    if (!line.includes(ARROW)) continue;
    const [from = '', rest = ''] = line.split(ARROW);
    const to = rest.trim().split(/[ \t]/)[0] ?? ''; // cue settings follow
    const [startSeconds, endSeconds] = [secondsOf(from.trim()), secondsOf(to)];
    const timingLine = at + 1;
    const words: string[] = [];
    while (at + 1 < lines.length && !endsBlock(lines[at + 1]!, words)) words.push(lines[++at]!);
    if (startSeconds === undefined || endSeconds === undefined) {
      const message = `cannot read the times in "${line.trim()}"`;
      warnings.push({ code: 'CAPTION_BAD_TIME', line: timingLine, message });
    } else if (endSeconds < startSeconds) {
      const message = `ends before it starts: "${line.trim()}"`;
      warnings.push({ code: 'CAPTION_NEGATIVE_LENGTH', line: timingLine, message });
    } else {
      blocks.push({ startSeconds, endSeconds, lines: words });
    }
  }
  blocks.sort((a, b) => a.startSeconds - b.startSeconds || a.endSeconds - b.endSeconds);
  return { cues: isRolling(blocks) ? unroll(blocks) : blocks.flatMap(cuesOf), warnings };
}

/** An empty line ends a cue, and one of spaces does unless it comes first: rolling captions have it there. */
function endsBlock(line: string, words: readonly string[]): boolean {
  return line === '' || line.includes(ARROW) || (line.trim() === '' && words.length > 0);
}

function cuesOf({ lines, ...times }: Block): TimedText[] {
  const text = plainText(lines.join(' '));
  return text === '' ? [] : [{ ...times, text }];
}

// The time at which the next word of a line is said.
const WORD_TIME = /<((?:\d+:)?\d{1,2}:\d{1,2}\.\d{1,3})>/;
/** A cue no longer than this that only repeats is there to roll a line up. */
const FILLER_SECONDS = 0.025;
const SOUND_TAG = /\[[^\]]*\]/g;

function isRolling(blocks: readonly Block[]): boolean {
  let numFillers = 0;
  let shown: readonly string[] = [];
  for (const block of blocks) {
    if (block.lines.some((line) => WORD_TIME.test(line) && line.includes('<c'))) return true;
    const lines = block.lines.map(plainText).filter((line) => line !== '');
    const isFiller = block.endSeconds - block.startSeconds <= FILLER_SECONDS;
    if (isFiller && lines.length > 0 && numRolled(shown, lines) === lines.length) numFillers++;
    shown = lines;
  }
  return numFillers >= 2 && numFillers >= blocks.length / 4;
}

/** Each line once, by its words where they have times. */
function unroll(blocks: readonly Block[]): TimedText[] {
  const cues: TimedText[] = [];
  let shown: readonly string[] = [];
  for (const { startSeconds, endSeconds, lines } of blocks) {
    const isFresh = lines[0]?.trim() === '';
    const written = lines.filter((line) => plainText(line) !== '');
    const plain = written.map(plainText);
    const numOld = isFresh ? 0 : numRolled(shown, plain);
    for (const line of written.slice(numOld)) {
      // Text, time, text, time, text: each time is that of the text after it.
      const parts = line.split(WORD_TIME);
      const starts = [startSeconds];
      for (let i = 1; i < parts.length; i += 2) {
        starts.push(Math.max(starts.at(-1)!, secondsOf(parts[i]!) ?? 0));
      }
      for (const [i, start] of starts.entries()) {
        const text = fold(plainText(parts[2 * i]!).replace(SOUND_TAG, ' '));
        const end = Math.max(start, starts[i + 1] ?? endSeconds);
        if (text !== '') cues.push({ startSeconds: start, endSeconds: end, text });
      }
    }
    if (plain.length > 0) shown = plain;
  }
  return cues.sort((a, b) => a.startSeconds - b.startSeconds || a.endSeconds - b.endSeconds);
}

/** How many lines at the beginning were shown last before. */
function numRolled(shown: readonly string[], lines: readonly string[]): number {
  for (let count = Math.min(shown.length, lines.length); count > 0; count--) {
    if (lines.slice(0, count).every((line, i) => line === shown[shown.length - count + i])) {
      return count;
    }
  }
  return 0;
}

function secondsOf(timestamp: string): number | undefined {
  const match = TIMESTAMP.exec(timestamp);
  if (!match) return undefined;
  const [, hours = '0', minutes, seconds, fraction = '0'] = match;
  const whole = Number(hours) * 3600 + Number(minutes) * 60 + Number(seconds);
  return whole + Number(fraction.padEnd(3, '0')) / 1000;
}

/** Text without tags (`<i>`, `<v Speaker>`, `<00:01.000>`), SubStation overrides (`{\an8}`) and entities. */
function plainText(marked: string): string {
  const bare = marked.replace(/<\/?[a-z0-9][^<>]*>/gi, '').replace(/\{\\[^{}]*\}/g, '');
  return fold(decodeEntities(bare));
}

function fold(text: string): string {
  return text.replace(/\s+/g, ' ').trim();
}

function linesOf(content: string): string[] {
  return content.replace(/^\uFEFF/, '').split(/\r\n|\n|\r/);
}
