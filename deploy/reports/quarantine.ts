import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileDurably } from '../../proto/durable-file.ts';
import { UsageError } from '../../proto/errors.ts';
import { checkOutputFile } from '../../proto/output-path.ts';
import { printable } from '../../proto/printable.ts';
import { emptyHistory, extendHistory } from '../../coordinator/history.ts';
import { JOURNAL_FILE, readJournal } from '../../coordinator/journal.ts';
import { locationName, type Sample } from '../../video/index/sample.ts';
import { INDEX_FILE, readIndex } from '../../video/index/sample-index.ts';

/** A file or record of the data that gave nothing to train on. */
export interface QuarantinedFile {
  /** Relative to the root of the data; with the part of it that is meant. */
  readonly path: string;
  /** Code of the error. */
  readonly reason: string;
  readonly message: string;
  /** Places of committed steps that another sample stood in for; 0 for what was never trained on. */
  readonly numSubstituted: number;
  /** Whether it is held out, and in the index: no figure counts it. */
  readonly isHeldOut?: boolean;
}

/**
 * What the data of a run lost: what indexing left out, then what training could not decode, those with the most places
 * first, then what is held out and could not be decoded. Written as JSON Lines where `out` names a file.
 * @throws UsageError RUN_NOT_FOUND, OUT_NOT_WRITABLE; DataError INDEX_DAMAGED
 */
export async function showQuarantine(run: string, { out }: { out?: string }): Promise<void> {
  if (out !== undefined) await checkOutputFile(out);
  const indexFile = join(run, INDEX_FILE);
  if ((await stat(indexFile).catch(() => undefined)) === undefined) {
    throw new UsageError('RUN_NOT_FOUND', `${run} is no run folder: it has no ${INDEX_FILE}`);
  }
  const { files, train, heldOut, skipped } = await readIndex(indexFile);
  const found: QuarantinedFile[] = skipped.map(({ path, code, message }) => ({
    ...{ path, reason: code, message, numSubstituted: 0 },
  }));
  const pathOf = ({ media }: Sample): string =>
    media.map(({ file }) => locationName(files[file]!)).join(', ');
  const history = emptyHistory();
  readJournal(join(run, JOURNAL_FILE), (record) => {
    extendHistory(history, record);
  });
  const training = new Map<string, QuarantinedFile>();
  for (const [step, skips] of history.skipsByStep) {
    if (step > history.committedStep) continue;
    for (const { sample, reason, message } of skips) {
      const path = pathOf(train[sample]!);
      const numSubstituted = 1 + (training.get(path)?.numSubstituted ?? 0);
      training.set(path, { path, reason, message, numSubstituted });
    }
  }
  found.push(...[...training.values()].sort((a, b) => b.numSubstituted - a.numSubstituted));
  for (const { sample, reason, message } of history.finished?.skipped ?? []) {
    const path = pathOf(heldOut[sample]!);
    found.push({ path, reason, message, numSubstituted: 0, isHeldOut: true });
  }
  for (const { path, reason, message, numSubstituted, isHeldOut } of found) {
    const times =
      numSubstituted > 0
        ? `substituted ${numSubstituted} times`
        : isHeldOut === true
          ? 'held out, counts in no figure'
          : 'not in the index';
    process.stdout.write(`${printable(`${path}  ${times}  ${reason}: ${message}`)}\n`);
  }
  if (found.length === 0) process.stdout.write(`nothing was lost of the data of ${run}\n`);
  if (out !== undefined) {
    await writeFileDurably(
      out,
      found.map((file) => `${JSON.stringify(file)}\n`),
    );
  }
}
