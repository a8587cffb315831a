/** Tells whether a path is at or below a pattern: `*` is any one part of it, `**` any number. */
export function pathMatcher(path: string): (name: string) => boolean {
  const parts = path.split('/').map((part) => {
    if (part === '**') return '(?:[^/]+/)*';
    const text = part.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replaceAll('*', '[^/]*');
    return `${text}/`;
  });
  const pattern = new RegExp(`^${parts.join('')}`);
  return (name) => pattern.test(`${name}/`);
}

/** A parameter's path and those of the trees that it is in, with numbers as `*`. */
export function treesOf(path: string): string[] {
  const parts = path.split('/').map((part) => (/^\d+$/.test(part) ? '*' : part));
  return parts.map((_, at) => parts.slice(0, at + 1).join('/'));
}
