// JSON has no NaN and no infinities; a diverged loss must come back from the journal as what it was.
const SPELLED: ReadonlyMap<string, number> = new Map([
  ['#NaN', NaN],
  ['#Infinity', Infinity],
  ['#-Infinity', -Infinity],
  ['#-0', -0],
]);

/** Replacer for `JSON.stringify` that spells the numbers that JSON lacks as `"#NaN"` and the like. */
export function spellNumbers(_key: string, value: unknown): unknown {
  if (typeof value !== 'number') return value;
  if (Object.is(value, -0)) return '#-0';
  return Number.isFinite(value) ? value : `#${value}`;
}

/** Reviver for `JSON.parse` that undoes {@link spellNumbers}. */
export function reviveNumbers(_key: string, value: unknown): unknown {
  return typeof value === 'string' ? (SPELLED.get(value) ?? value) : value;
}
