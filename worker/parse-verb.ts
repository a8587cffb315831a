import { parseArgs } from 'node:util';
import { UsageError } from '../proto/errors.ts';
import { VERBS } from '../proto/verbs.ts';
import { nearest } from './nearest.ts';

type Parsed<Name extends keyof typeof VERBS> = ReturnType<
  typeof parseArgs<{ options: (typeof VERBS)[Name]['options']; allowPositionals: true }>
>;

/**
 * The options and other arguments of a call of a verb.
 * @throws UsageError USAGE, naming what is wrong, the nearest option that there is, and the whole call
 */
export function parseVerb<Name extends keyof typeof VERBS>(
  name: Name,
  argv: readonly string[],
): Parsed<Name> {
  const { usage, takesPositionals, options } = VERBS[name];
  try {
    const parsed: unknown = parseArgs({
      args: [...argv],
      allowPositionals: takesPositionals,
      options,
    });
    // Of a name that is not known yet the compiler would take the options of all verbs together.
    return parsed as Parsed<Name>;
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    if (!code.startsWith('ERR_PARSE_ARGS_')) throw error;
    const unknown = /^Unknown option '-*([^']*)'/.exec(message)?.[1];
    if (unknown === undefined)
      throw new UsageError('USAGE', `${message.split('\n')[0]!}: ${usage}`);
    const known = Object.keys(options);
    const near = nearest(unknown, known);
    const there = known.map((option) => `--${option}`).join(', ');
    throw new UsageError(
      'USAGE',
      `there is no option --${unknown}; ${near === undefined ? `there are ${there}` : `did you mean --${near}?`}\n` +
        `  ${usage}`,
      { cause: error },
    );
  }
}
