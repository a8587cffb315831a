import { openRng } from '../../proto/random.ts';
import type { HostBatch } from '../systems/system.ts';
import { assembleVideoBert, TRAINING, type AssemblyConfig } from '../systems/videobert-batch.ts';

/** How batches of a small model are assembled in tests: some text and half of the windows hidden, some pairs mismatched. */
export function testAssembly(overrides: Partial<AssemblyConfig> = {}): AssemblyConfig {
  return {
    seed: 1,
    special: { pad: 0, cls: 2, sep: 3, mask: 4, join: 5, firstWord: 6 },
    textVocabulary: 20,
    visualVocabulary: 8,
    maxTextTokens: 6,
    numWindows: 4,
    textMaskRatio: 0.4,
    visualMaskRatio: 0.5,
    visualMaskSpan: 2,
    visualStrides: 1,
    textOnlyShare: 0,
    videoOnlyShare: 0,
    mismatchedShare: 0.5,
    modalities: 'both',
    ...overrides,
  };
}

/** A training batch of drawn words: that of a step is always the same. */
export function testBatch(
  assembly: AssemblyConfig,
  { rows, step = 0 }: { readonly rows: number; readonly step?: number },
): HostBatch {
  const { special, textVocabulary, visualVocabulary, numWindows } = assembly;
  const rng = openRng(5, 'examples', step);
  const words = (count: number): Int32Array =>
    Int32Array.from(
      { length: count },
      () => special.firstWord + rng.integer(textVocabulary - special.firstWord),
    );
  const examples = Array.from({ length: rows }, (_, number) => ({
    number,
    epoch: 0,
    textIds: words(3 + (number % 4)),
    visualWords: Int32Array.from({ length: numWindows }, () => rng.integer(visualVocabulary)),
  }));
  return assembleVideoBert(assembly, examples, TRAINING, () => words(4));
}
