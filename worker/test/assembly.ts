import type { AssemblyConfig } from '../models/videobert-batch.ts';

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
    textOnlyShare: 0,
    videoOnlyShare: 0,
    mismatchedShare: 0.5,
    modalities: 'both',
    ...overrides,
  };
}
