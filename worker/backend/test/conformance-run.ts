import path from 'node:path';

import { pluginCacheDir } from '../../pjrt/plugin.ts';
import { openEngine } from '../engine.ts';
import { EXCLUSIONS } from './conformance-exclusions.ts';

/** What jasmine reports of a spec. */
interface SpecResult {
  readonly fullName: string;
  readonly status: 'passed' | 'failed' | 'excluded' | 'pending';
  readonly failedExpectations: readonly { readonly message: string; readonly stack: string }[];
}

/** Opens the engine whose backend is tested; gives what closes it. */
export async function openBackend(engine: 'xla' | 'cpu'): Promise<() => void> {
  const cacheDir = path.dirname(pluginCacheDir(process.env));
  const opened = await openEngine({ engine, cacheDir });
  return () => {
    opened.close();
  };
}

/** A jasmine reporter that holds each spec against the list of exclusions. */
export class Verdicts {
  readonly #isVerbose: boolean;
  readonly #counts = { passed: 0, failed: 0, excluded: 0 };
  readonly #wrong: string[] = [];
  readonly #start = performance.now();

  constructor({ verbose }: { readonly verbose: boolean }) {
    this.#isVerbose = verbose;
  }

  specDone({ fullName, status, failedExpectations }: SpecResult): void {
    if (status === 'excluded' || status === 'pending') return; // not wanted, or switched off by tfjs
    const reason = EXCLUSIONS[fullName];
    if (reason === undefined) {
      this.#counts[status]++;
      if (status === 'passed') return;
      const details = failedExpectations.map(({ message, stack }) =>
        this.#isVerbose ? `${message}\n${stack}` : message.slice(0, 300),
      );
      this.#wrong.push([`failed: ${fullName}`, ...details].join('\n    '));
      return;
    }
    this.#counts.excluded++;
    if (status === 'passed') {
      this.#wrong.push(`passed, although it is excluded (${reason}): ${fullName}`);
    }
  }

  /** Whether all went as it should. */
  print(): boolean {
    for (const line of this.#wrong) console.log(line);
    const { passed, failed, excluded } = this.#counts;
    const seconds = ((performance.now() - this.#start) / 1000).toFixed(1);
    console.log(`passed ${passed}, failed ${failed}, excluded ${excluded} in ${seconds} s`);
    return this.#wrong.length === 0;
  }
}
