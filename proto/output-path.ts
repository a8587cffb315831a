import { constants } from 'node:fs';
import { access, mkdir, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { UsageError } from './errors.ts';

/** What the system says, in words that tell what to do about it. */
const REASONS: Readonly<Record<string, string>> = {
  EACCES: 'this user may not write there: name another place, or change its permissions',
  EPERM: 'this user may not write there: name another place, or change its permissions',
  EROFS: 'that disk is read only: name another place',
  ENOENT: 'no folder can be made there: name another place',
  EEXIST: 'a file is in the way: name another place, or remove it',
  ENOTDIR: 'a part of the path is a file, not a folder: name another place',
  EISDIR: 'a folder is there: name a file',
  ENOSPC: 'the disk is full: make room, or name a place on another one',
  EDQUOT: "this user's share of the disk is full: make room, or name a place on another one",
};

/**
 * An error of writing at `path` as one that says how to mend it; any other as it is.
 * `OUT_NOT_WRITABLE`, whatever the reason.
 */
export function outputError(error: unknown, path: string): unknown {
  const { code = '', path: at = path } = error as NodeJS.ErrnoException;
  const reason = REASONS[code];
  if (!(error instanceof Error) || reason === undefined) return error;
  const where = resolve(at) === resolve(path) ? path : `${path} (${at})`;
  return new UsageError('OUT_NOT_WRITABLE', `cannot write ${where}: ${reason}`, { cause: error });
}

/**
 * Makes sure that a file can be written at `path`, before the work is done that goes into it.
 * @throws UsageError OUT_NOT_WRITABLE
 */
export async function checkOutputFile(path: string): Promise<void> {
  const folder = dirname(path);
  const refuse = (why: string): UsageError =>
    new UsageError('OUT_NOT_WRITABLE', `cannot write ${path}: ${why}`);
  try {
    const parent = await stat(folder).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT')
        throw refuse(`there is no folder ${folder}: make it, or name another place`);
      throw error;
    });
    if (!parent.isDirectory()) throw refuse(`${folder} is a file, not a folder`);
    const old = await stat(path).catch(() => undefined);
    if (old?.isDirectory() === true) throw refuse(REASONS['EISDIR']!);
    await access(folder, constants.W_OK);
    if (old !== undefined) await access(path, constants.W_OK);
  } catch (error) {
    throw outputError(error, path);
  }
}

/**
 * Makes a folder and those above it, and makes sure that something can be written into it. Node's own way of that tries
 * for ever below folders that take none, such as /proc.
 * @throws UsageError OUT_NOT_WRITABLE
 */
export async function makeOutputFolder(path: string): Promise<void> {
  try {
    await makeFolder(resolve(path));
    await access(path, constants.W_OK);
  } catch (error) {
    throw outputError(error, path);
  }
}

async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' && dirname(path) !== path) {
      const parent = dirname(path);
      // Where the folder above is there, trying again would say the same again.
      if ((await stat(parent).catch(() => undefined)) !== undefined) throw error;
      await makeFolder(parent);
      await mkdir(path).catch(unlessThere(path));
      return;
    }
    await unlessThere(path)(error);
  }
}

/** Another process may have made the folder, or it was there. */
function unlessThere(path: string): (error: unknown) => Promise<void> {
  return async (error) => {
    if ((await stat(path).catch(() => undefined))?.isDirectory() !== true) throw error;
  };
}
