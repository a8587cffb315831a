import { shared, type SharedWork } from './shared-work.ts';

/** The values of a column of one row group. */
export type ColumnValues = readonly unknown[];

/** Columns of row groups that were read last. */
export interface ColumnCache {
  /**
   * The column under `key`, read once for all who ask meanwhile. Where those that are being read would take more than
   * the cache's size, the next one waits.
   */
  read(
    key: string,
    sizeBytes: number,
    signal: AbortSignal | undefined,
    load: (signal: AbortSignal) => Promise<ColumnValues>,
  ): Promise<ColumnValues>;
}

/** @param maxBytes of the columns that are kept, unpacked; the least lately used go first */
export function openColumnCache(maxBytes: number): ColumnCache {
  const underWay = new Map<string, SharedWork<ColumnValues>>();
  const kept = new Map<string, { readonly values: ColumnValues; readonly sizeBytes: number }>();
  let keptBytes = 0;
  let loadingBytes = 0;
  const waiting: (() => void)[] = [];

  const keep = (key: string, values: ColumnValues, sizeBytes: number): void => {
    if (kept.delete(key)) keptBytes -= sizeBytes;
    if (sizeBytes > maxBytes) return;
    kept.set(key, { values, sizeBytes });
    keptBytes += sizeBytes;
    for (const [oldest, column] of kept) {
      if (keptBytes <= maxBytes) break;
      kept.delete(oldest);
      keptBytes -= column.sizeBytes;
    }
  };

  return {
    async read(key, sizeBytes, signal, load) {
      const known = kept.get(key);
      if (known !== undefined) {
        keep(key, known.values, sizeBytes);
        return known.values;
      }
      return shared(underWay, key, signal, async (own) => {
        while (loadingBytes > 0 && loadingBytes + sizeBytes > maxBytes) {
          await new Promise<void>((resolve) => waiting.push(resolve));
          own.throwIfAborted();
        }
        loadingBytes += sizeBytes;
        try {
          const values = await load(own);
          keep(key, values, sizeBytes);
          return values;
        } finally {
          loadingBytes -= sizeBytes;
          for (const resolve of waiting.splice(0)) resolve();
        }
      });
    },
  };
}
