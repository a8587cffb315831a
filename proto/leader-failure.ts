import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileDurably } from './durable-file.ts';
import { UsageError } from './errors.ts';

/**
 * Workers that come by themselves wait for their leader for hours, with GPUs that somebody pays for. A leader that has
 * failed says so in the run folder, and the next one takes that back before it does anything else.
 */
const LEADER_FAILURE_FILE = 'leader-failure.json';

interface LeaderFailure {
  readonly time: string;
  readonly code: number;
  /** Whoever starts it again would see the same. */
  readonly isFinal: boolean;
}

/** Longer than what starts it again waits before that; Kubernetes waits six minutes at most. */
const AGAIN_MS = 15 * 60_000;

/** The folder need not be there. */
export async function tellLeaderFailure(
  folder: string,
  failure: Omit<LeaderFailure, 'time'>,
): Promise<void> {
  await mkdir(folder, { recursive: true });
  const told: LeaderFailure = { time: new Date().toISOString(), ...failure };
  await writeFileDurably(join(folder, LEADER_FAILURE_FILE), `${JSON.stringify(told)}\n`);
}

export async function forgetLeaderFailure(folder: string): Promise<void> {
  await rm(join(folder, LEADER_FAILURE_FILE), { force: true });
}

/** Looks, as often as it is asked, whether the leader that is waited for comes no more. */
export class LeaderFailureWatch {
  readonly #folder: string;
  readonly #clock: () => number;
  #told: string | undefined;
  #sinceMs = 0;
  /** It was there at the first look: of a leader before, or of one that was quicker than this process. */
  #isOld = true;

  constructor(folder: string, clock: () => number = () => performance.now()) {
    this.#folder = folder;
    this.#clock = clock;
  }

  /** @throws UsageError LEADER_FAILED */
  async check(): Promise<void> {
    const isFirst = this.#told === undefined;
    const nowMs = this.#clock();
    const told = await readFile(join(this.#folder, LEADER_FAILURE_FILE), 'utf8').catch(() => '');
    if (isFirst || told !== this.#told) {
      this.#told = told;
      this.#sinceMs = nowMs;
      this.#isOld = isFirst;
    }
    if (told === '') return;
    const { time, code, isFinal } = JSON.parse(told) as LeaderFailure;
    if (nowMs - this.#sinceMs < AGAIN_MS && (this.#isOld || !isFinal)) return;
    throw new UsageError(
      'LEADER_FAILED',
      `who leads the run in ${this.#folder} failed with exit code ${code} at ${time}, and nobody has led it since: mend what it ` +
        'says, start it again, and then this worker.',
    );
  }
}
