import { open, readFile } from 'node:fs/promises';

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
  try {
    const content = await readFile(file, 'utf8');
    const whole = content.slice(0, content.lastIndexOf('\n') + 1);
    if (whole.length < content.length) await handle.truncate(Buffer.byteLength(whole));
    return {
      entries: whole
        .split('\n')
        .slice(0, -1)
        .map((line) => JSON.parse(line) as T),
      async append(entry) {
        await handle.write(`${JSON.stringify(entry)}\n`);
        await handle.datasync();
      },
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}
