/** Which of the files below the root, or which URL, the value of a record's field means. Values are not trusted. */
import { redactUrl } from '../storage/paths.ts';
import type { StoredFile } from '../storage/store.ts';
import { DataError } from '../index/sample-index.ts';
import type { SourceMedia } from './source.ts';

const VIDEO_ENDINGS: ReadonlySet<string> = new Set([
  '.mp4',
  '.m4v',
  '.mov',
  '.mkv',
  '.webm',
  '.avi',
  '.mpg',
  '.mpeg',
  '.ts',
  '.flv',
  '.ogv',
  '.wmv',
]);
const IMAGE_ENDINGS: ReadonlySet<string> = new Set(['.jpg', '.jpeg', '.png', '.webp']);

/** The endings that are looked for, for messages. */
export const MEDIA_ENDINGS = [...VIDEO_ENDINGS, ...IMAGE_ENDINGS].join(' ');

export function kindOf(path: string): SourceMedia['kind'] | undefined {
  const ending = endingOf(path).toLowerCase();
  if (VIDEO_ENDINGS.has(ending)) return 'video';
  return IMAGE_ENDINGS.has(ending) ? 'image' : undefined;
}

/** From the last dot of the last component on, empty if there is none or it begins the name. */
export function endingOf(path: string): string {
  const name = baseOf(path);
  const dot = name.lastIndexOf('.');
  return dot > 0 ? name.slice(dot) : '';
}

export function stemOf(path: string): string {
  return path.slice(0, path.length - endingOf(path).length);
}

/** The last component. */
export function baseOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}

/** The folder with its `/`; empty for the root. */
export function folderOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/') + 1);
}

export interface FindOptions {
  /** The file that the record is in: its folder is looked in first. */
  readonly recordFile: string;
  /** Taken where the name's ending does not tell; a value without an ending means a file of this kind. */
  readonly kind: SourceMedia['kind'];
}

export interface MediaNames {
  /**
   * The media file that a value means: a URL; a path from the record's folder or from the root; else the one file whose
   * path ends in it, as where a folder of pictures is put anywhere below the root.
   * @throws DataError PATH_OUTSIDE, MEDIA_NOT_FOUND, MEDIA_AMBIGUOUS
   */
  find(value: string, options: FindOptions): SourceMedia;
}

/** The media among the files, to be found by name. */
export function mediaNamesOf(files: readonly StoredFile[]): MediaNames {
  const paths = new Set<string>();
  // By the last component with its ending and without: the paths that have it.
  const byName = new Map<string, string | string[]>();
  for (const { path } of files) {
    if (kindOf(path) === undefined) continue;
    paths.add(path);
    for (const name of [baseOf(path), baseOf(stemOf(path))]) {
      const others = byName.get(name);
      if (others === undefined) byName.set(name, path);
      else if (typeof others === 'string') byName.set(name, [others, path]);
      else others.push(path);
    }
  }

  return {
    find(value, { recordFile, kind }) {
      const url = urlOf(value);
      if (url !== undefined) return { kind: kindOf(url.pathname) ?? kind, path: url.text };
      const wanted = [folderOf(recordFile) + value, value].map(normalize);
      if (isAbsolute(value) || wanted.every((path) => path === undefined)) {
        throw new DataError(
          'PATH_OUTSIDE',
          `${quote(value)} leads out of the data's folder; name media by paths in it, or by https, http or s3 URLs`,
        );
      }
      const found = wanted.find((path) => path !== undefined && paths.has(path));
      if (found !== undefined) return { kind: kindOf(found)!, path: found };
      const tail = normalize(value) ?? normalize(value.replace(/^(?:\.\.?[/\\])+/, '')) ?? '';
      const ends = withEnding(kindOf(tail) !== undefined, tail, byName.get(baseOf(tail)), kind);
      if (ends.length > 1) {
        const message = `${quote(value)} may be ${ends.slice(0, 3).join(' or ')}; write the whole path`;
        throw new DataError('MEDIA_AMBIGUOUS', message);
      }
      if (ends.length === 0) {
        throw new DataError(
          'MEDIA_NOT_FOUND',
          `there is no file ${quote(value)} below the root; put it there or leave the record out`,
        );
      }
      return { kind: kindOf(ends[0]!)!, path: ends[0]! };
    },
  };
}

function withEnding(
  hasEnding: boolean,
  tail: string,
  candidates: string | readonly string[] = [],
  kind: SourceMedia['kind'],
): string[] {
  return (typeof candidates === 'string' ? [candidates] : candidates).filter((path) => {
    const name = hasEnding ? path : stemOf(path);
    return (name === tail || name.endsWith(`/${tail}`)) && (hasEnding || kindOf(path) === kind);
  });
}

const URL_SCHEME = /^([a-z][a-z0-9+.-]+):\/\//i;

function urlOf(value: string): { readonly text: string; readonly pathname: string } | undefined {
  const scheme = URL_SCHEME.exec(value)?.[1]?.toLowerCase();
  if (scheme === undefined) return undefined;
  if (scheme !== 'https' && scheme !== 'http' && scheme !== 's3') {
    const message = `${quote(value)} is of no kind that is fetched; https, http and s3 URLs are`;
    throw new DataError('PATH_OUTSIDE', message);
  }
  try {
    const { href, pathname } = new URL(value);
    if (scheme !== 's3') return { text: href, pathname };
    // Keys are read as they are written, so nothing of them is encoded; `..` might lead a server to another bucket.
    if (value.split('/').includes('..')) {
      throw new DataError(
        'PATH_OUTSIDE',
        `${quote(value)} has a \`..\`; name the object by its key`,
      );
    }
    return { text: `s3:${value.slice('s3:'.length)}`, pathname: value };
  } catch (cause) {
    if (cause instanceof DataError) throw cause;
    throw new DataError('MEDIA_NOT_FOUND', `${quote(value)} is not a whole URL`, { cause });
  }
}

function isAbsolute(value: string): boolean {
  return /^(?:[/\\]|[a-z]:[/\\]|file:)/i.test(value);
}

/** Without `.`, `..` and `\`; undefined if it is empty, leads out of the root or holds a NUL. */
function normalize(path: string): string | undefined {
  if (path.includes('\0')) return undefined;
  const parts: string[] = [];
  for (const part of path.replaceAll('\\', '/').split('/')) {
    if (part === '..') {
      if (parts.pop() === undefined) return undefined;
    } else if (part !== '.' && part !== '') parts.push(part);
  }
  return parts.length > 0 ? parts.join('/') : undefined;
}

/** A value of a record in a message: short, on one line, of a URL what may be shown. */
export function quote(location: string): string {
  const value = redactUrl(location);
  return JSON.stringify(value.length > 120 ? `${value.slice(0, 119)}…` : value);
}
