import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { CheckpointFileName, CHECKPOINTS_FOLDER } from '../../proto/checkpoint-manifest.ts';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { messageOf, UsageError } from '../../proto/errors.ts';
import { mayBeSecret } from '../../proto/security-folder.ts';

/** Names of the files of a run folder that `prepare` has made: what another machine needs to go on with the run. */
export const RUN_FILES_LIST = 'run-files.json';

/** Folders that are never part of it: what the run itself writes. */
const LEFT_OUT = new Set(['logs', CHECKPOINTS_FOLDER]);

/** Files of a folder by name, each with what becomes another one when it is written again. */
export type FolderLook = ReadonlyMap<string, string>;

/** Looks at what lies in a run folder, whoever put it there. */
export async function lookAtFiles(folder: string): Promise<FolderLook> {
  const found = new Map<string, string>();
  for (const name of await readdir(folder, { recursive: true })) {
    const path = name.replaceAll('\\', '/');
    if (LEFT_OUT.has(path.split('/')[0]!) || !CheckpointFileName.safeParse(path).success) continue;
    const seen = await stat(join(folder, name));
    if (seen.isFile()) found.set(path, `${seen.ino} ${seen.ctimeMs}`);
  }
  return found;
}

/**
 * Lists what has been written into the folder since `before`, and `more`, which is still to be written: what else lies
 * there is the user's own, and perhaps nothing that a bucket should have.
 */
export async function writeRunFileNames(
  folder: string,
  { before, more }: { readonly before: FolderLook; readonly more: readonly string[] },
): Promise<void> {
  const written = [...(await lookAtFiles(folder))].flatMap(([path, look]) =>
    before.get(path) === look || mayBeSecret(path) ? [] : [path],
  );
  const names = [...new Set([RUN_FILES_LIST, ...more, ...written])].sort();
  await writeFileDurably(join(folder, RUN_FILES_LIST), `${JSON.stringify(names)}\n`);
}

/** @throws UsageError RUN_FILES_UNKNOWN */
export async function readRunFileNames(folder: string): Promise<string[]> {
  const path = join(folder, RUN_FILES_LIST);
  try {
    const names = z.array(CheckpointFileName).parse(JSON.parse(await readFile(path, 'utf8')));
    // An older version listed whatever lay in the folder.
    return names.filter((name) => !mayBeSecret(name));
  } catch (error) {
    throw new UsageError(
      'RUN_FILES_UNKNOWN',
      `${path} does not say what the run consists of (${messageOf(error)}): a run that was prepared by an older version ` +
        'has no copy in a store. Train into a new folder.',
      { cause: error },
    );
  }
}
