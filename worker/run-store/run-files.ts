import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { CheckpointFileName, CHECKPOINTS_FOLDER } from '../../proto/checkpoint-manifest.ts';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { messageOf, UsageError } from '../../proto/errors.ts';

/** Names of the files of a run folder that `prepare` has made: what another machine needs to go on with the run. */
export const RUN_FILES_LIST = 'run-files.json';

/** Folders that are never part of it: secrets, and what the run itself writes. */
const LEFT_OUT = new Set(['tls', 'logs', CHECKPOINTS_FOLDER]);

/** Lists what lies in the folder, and `more`, which is still to be written. */
export async function writeRunFileNames(folder: string, more: readonly string[]): Promise<void> {
  const found = new Set([RUN_FILES_LIST, ...more]);
  for (const name of await readdir(folder, { recursive: true })) {
    const path = name.replaceAll('\\', '/');
    if (LEFT_OUT.has(path.split('/')[0]!) || !CheckpointFileName.safeParse(path).success) continue;
    if ((await stat(join(folder, name))).isFile()) found.add(path);
  }
  await writeFileDurably(join(folder, RUN_FILES_LIST), `${JSON.stringify([...found].sort())}\n`);
}

/** @throws UsageError RUN_FILES_UNKNOWN */
export async function readRunFileNames(folder: string): Promise<string[]> {
  const path = join(folder, RUN_FILES_LIST);
  try {
    return z.array(CheckpointFileName).parse(JSON.parse(await readFile(path, 'utf8')));
  } catch (error) {
    throw new UsageError(
      'RUN_FILES_UNKNOWN',
      `${path} does not say what the run consists of (${messageOf(error)}): a run that was prepared by an older version ` +
        'has no copy in a store. Train into a new folder.',
      { cause: error },
    );
  }
}
