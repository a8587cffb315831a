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

/** SubRip. Faults cost their cue and are told as warnings. */
export function parseSrt(content: string): ParsedCaptions {
  return parseBlocks(linesOf(content), []);
}

/** The caption of a whole clip: a text file's words with white space folded. */
export function parseTxt(content: string): string {
  return fold(linesOf(content).join(' '));
}

function parseBlocks(lines: readonly string[], warnings: CaptionWarning[]): ParsedCaptions {
  const cues: TimedText[] = [];
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at]!;
    // Without an arrow: header, NOTE, STYLE, REGION, cue identifier or counter.
    if (/^(?:NOTE|STYLE|REGION)(?:[ \t]|$)/.test(line)) {
      while (at + 1 < lines.length && lines[at + 1] !== '') at++;
      continue;
    }
    if (!line.includes(ARROW)) continue;
    const [from = '', rest = ''] = line.split(ARROW);
    const to = rest.trim().split(/[ \t]/)[0] ?? ''; // cue settings follow
    const [startSeconds, endSeconds] = [secondsOf(from.trim()), secondsOf(to)];
    const timingLine = at + 1;
    const words: string[] = [];
    while (at + 1 < lines.length && lines[at + 1] !== '' && !lines[at + 1]!.includes(ARROW)) {
      words.push(lines[++at]!);
    }
    if (startSeconds === undefined || endSeconds === undefined) {
      const message = `cannot read the times in "${line.trim()}"`;
      warnings.push({ code: 'CAPTION_BAD_TIME', line: timingLine, message });
    } else if (endSeconds < startSeconds) {
      const message = `ends before it starts: "${line.trim()}"`;
      warnings.push({ code: 'CAPTION_NEGATIVE_LENGTH', line: timingLine, message });
    } else {
      const text = plainText(words.join(' '));
      if (text !== '') cues.push({ startSeconds, endSeconds, text });
    }
  }
  cues.sort((a, b) => a.startSeconds - b.startSeconds || a.endSeconds - b.endSeconds);
  return { cues, warnings };
}

function secondsOf(timestamp: string): number | undefined {
  const match = TIMESTAMP.exec(timestamp);
  if (!match) return undefined;
  const [, hours = '0', minutes, seconds, fraction = '0'] = match;
  const whole = Number(hours) * 3600 + Number(minutes) * 60 + Number(seconds);
  return whole + Number(fraction.padEnd(3, '0')) / 1000;
}

const ENTITIES: Readonly<Record<string, string>> = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
  nbsp: ' ',
  lrm: '',
  rlm: '',
};

/** Text without tags (`<i>`, `<v Speaker>`, `<00:01.000>`), SubStation overrides (`{\an8}`) and entities. */
function plainText(marked: string): string {
  const bare = marked.replace(/<\/?[a-z0-9][^<>]*>/gi, '').replace(/\{\\[^{}]*\}/g, '');
  return fold(
    bare.replace(
      /&(?:#(\d{1,7})|([a-z]+));/g,
      (entity, number: string | undefined, name: string | undefined) => {
        if (number !== undefined) {
          return Number(number) <= 0x10ffff ? String.fromCodePoint(Number(number)) : '';
        }
        return ENTITIES[name ?? ''] ?? entity;
      },
    ),
  );
}

function fold(text: string): string {
  return text.replace(/\s+/g, ' ').trim();
}

function linesOf(content: string): string[] {
  return content
    .replace(/^\uFEFF/, '')
    .split(/\r\n|\n|\r/)
    .map((line) => (line.trim() === '' ? '' : line));
}
