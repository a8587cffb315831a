/** A value that others follow: a reader that is slower than the changes sees the newest and skips what it missed. */
export class Latest<T> {
  #value: { readonly value: T } | undefined;
  #end: { readonly error: Error | undefined } | undefined;
  #wake: (() => void) | undefined;

  /** Sets the value that the reader sees next. */
  set(value: T): void {
    this.#value = { value };
    this.#wake?.();
  }

  /** Ends the reader once it has seen the newest value; with an error, it throws that. The first end counts. */
  end(error?: Error): void {
    this.#end ??= { error };
    this.#wake?.();
  }

  /** The values for the one reader. Ends when `signal` aborts. */
  async *values(signal: AbortSignal): AsyncGenerator<T, void, undefined> {
    const abort = (): void => {
      this.end();
    };
    signal.addEventListener('abort', abort, { once: true });
    try {
      for (;;) {
        const next = this.#value;
        this.#value = undefined;
        if (signal.aborted) return;
        if (next !== undefined) yield next.value;
        else if (this.#end?.error !== undefined) throw this.#end.error;
        else if (this.#end !== undefined) return;
        else {
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
        }
      }
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }
}
