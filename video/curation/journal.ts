import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { linesOf } from '../../proto/lines.ts';

/** What has been finished, one JSON value a line; outlives a kill at any time. */
export interface Journal<T> {
  /** Of earlier processes. */
  readonly entries: readonly T[];
  /** Resolves when the entry is on disk. */
  append(entry: T): Promise<void>;
  close(): Promise<void>;
}

/** Opens or begins a journal. What a killed process left of its last line is cut off. */
export async function openJournal<T>(file: string): Promise<Journal<T>> {
  const handle = await open(file, 'a', 0o644);
  const input = createReadStream(file, { highWaterMark: 2 ** 20 });
  try {
    const { size } = await handle.stat();
    const entries: T[] = [];
    let wholeBytes = 0;
    for await (const line of linesOf(input)) {
      const end = wholeBytes + Buffer.byteLength(line) + 1;
      if (end > size) break; // no line feed ends it
      entries.push(JSON.parse(line) as T);
      wholeBytes = end;
    }
    if (wholeBytes < size) await handle.truncate(wholeBytes);
    return {
      entries,
      async append(entry) {
        await handle.write(`${JSON.stringify(entry)}\n`);
        await handle.datasync();
      },
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  } finally {
    input.destroy();
  }
}
