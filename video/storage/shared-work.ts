/** A piece of work that several wait for. */
export interface SharedWork<T> {
  readonly done: Promise<T>;
  numWaiting: number;
  readonly leave: () => void;
}

/** Runs `work` once for all who ask for `key` meanwhile; it ends early when the last of them has gone. */
export async function shared<T>(
  underWay: Map<string, SharedWork<T>>,
  key: string,
  signal: AbortSignal | undefined,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  let job = underWay.get(key);
  if (job === undefined) {
    const controller = new AbortController();
    const done = work(controller.signal).finally(() => {
      if (underWay.get(key) === job) underWay.delete(key);
    });
    job = {
      done,
      numWaiting: 0,
      leave: () => {
        controller.abort();
      },
    };
    underWay.set(key, job);
  }
  const { done, leave } = job;
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => {
      reject(signal!.reason as Error);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
  });
  job.numWaiting++;
  try {
    return await Promise.race([done, aborted]);
  } finally {
    signal?.removeEventListener('abort', onAbort!);
    if (--job.numWaiting === 0) {
      if (underWay.get(key) === job) underWay.delete(key); // whoever comes now begins anew
      leave();
    }
  }
}
