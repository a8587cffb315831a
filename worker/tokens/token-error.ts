import { VideoloomError } from '../../proto/errors.ts';

/**
 * Tokens that cannot be merged or masked as asked, since their number or a setting does not fit: `TOKENS_NOT_DIVISIBLE`,
 * `TOKENS_SHAPE_MISMATCH`, `TOKENS_BAD_SETTING`.
 */
export class TokenError extends VideoloomError {}

/** @throws TokenError `TOKENS_NOT_DIVISIBLE` */
export function checkDivisible(what: string, size: number, by: number): void {
  if (Number.isInteger(by) && by >= 1 && size % by === 0) return;
  throw new TokenError(
    'TOKENS_NOT_DIVISIBLE',
    `${what}: ${size} is not a multiple of ${by}. Choose a group that divides it, or pad or crop the tokens before.`,
  );
}

/** @throws TokenError `TOKENS_BAD_SETTING` unless `low <= value <= high`, or `< high` where `isOpen` */
export function checkBetween(
  what: string,
  value: number,
  { low = 0, high, isOpen = false }: { low?: number; high: number; isOpen?: boolean },
): void {
  if (value >= low && (isOpen ? value < high : value <= high)) return;
  throw new TokenError(
    'TOKENS_BAD_SETTING',
    `${what} is ${value}; it must lie in [${low}, ${high}${isOpen ? ')' : ']'}.`,
  );
}

/** @throws TokenError `TOKENS_BAD_SETTING` unless `value` is an integer of at least `least` */
export function checkCount(what: string, value: number, least = 0): void {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw new TokenError(
    'TOKENS_BAD_SETTING',
    `${what} is ${value}; it must be an integer of at least ${least}.`,
  );
}
