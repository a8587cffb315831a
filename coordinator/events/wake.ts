/** Wakes the one who waits. */
export class Wake {
  #isTold = false;
  #resolve: (() => void) | undefined;

  /** Ends the wait, or the next one where nobody waits. */
  tell(): void {
    this.#isTold = true;
    this.#resolve?.();
  }

  /** Until it is told, or `limitMs` are over. */
  async wait(limitMs?: number): Promise<void> {
    if (!this.#isTold) {
      let timer: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve) => {
        this.#resolve = resolve;
        if (limitMs !== undefined) timer = setTimeout(resolve, limitMs);
      });
      clearTimeout(timer);
      this.#resolve = undefined;
    }
    this.#isTold = false;
  }
}
