/** Several captions of a clip that stand in one text, as what a thing is and how it moves. */

export interface CaptionKinds {
  /** All captions of a text, by the number of their kind. */
  of(text: string): readonly { readonly kind: number; readonly caption: string }[];
}

/**
 * Each pattern is a kind: what it matches of a text is a caption by itself. A text that none matches is its own caption,
 * of the first kind. An invalid pattern is a SyntaxError.
 */
export function captionKinds(patterns: readonly string[]): CaptionKinds {
  const kinds = patterns.map((pattern) => new RegExp(pattern, 'u'));
  return {
    of(text) {
      const found = kinds.flatMap((pattern, kind) => {
        const caption = pattern.exec(text)?.[0].trim() ?? '';
        return caption === '' ? [] : [{ kind, caption }];
      });
      return found.length === 0 ? [{ kind: 0, caption: text }] : found;
    },
  };
}

/** What is wrong with patterns, if anything. */
export function captionKindsFault(path: string, patterns: readonly string[]): string | undefined {
  for (const pattern of patterns) {
    try {
      captionKinds([pattern]);
    } catch (error) {
      return `${path}: ${(error as SyntaxError).message}`;
    }
  }
  return undefined;
}
