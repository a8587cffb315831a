import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UsageError, VideoloomError } from '../proto/errors.ts';
import { exists } from '../proto/exists.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream, dial } from '../proto/grpc.ts';
import { RUN_PLAN_FILE } from '../proto/run-plan.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { showLeft } from './reports/left-run.ts';
import { openRunView, summary, type Outcome } from './view.ts';

export interface StatusOptions {
  readonly json?: boolean;
  readonly watch?: boolean;
  readonly tls?: string;
  readonly insecure?: boolean;
  readonly env: NodeJS.ProcessEnv;
}

/**
 * Prints the status of a run: of its coordinator while that lives, else what it left behind.
 *
 * @throws UsageError `RUN_NOT_FOUND` when the folder has no run; VideoloomError `COORDINATOR_UNREACHABLE` when nobody
 *   answers at an address
 */
export async function showStatus(run: string, options: StatusOptions): Promise<void> {
  const isAddress = /^[^/]+:\d+$/.test(run);
  const left = isAddress
    ? undefined
    : await readJson<Outcome & { runId: string; step: number }>(join(run, 'summary.json'));
  if (left !== undefined) {
    const text = `${left.runId}: finished, step ${left.step}\n${summary(left, { folder: run })}`;
    process.stdout.write(`${options.json === true ? JSON.stringify(left) : text}\n`);
    return;
  }
  const address = isAddress
    ? run
    : (await readJson<{ address: string }>(join(run, 'coordinator.json')))?.address;
  if (address === undefined) {
    if (!isAddress && (await exists(join(run, RUN_PLAN_FILE)))) {
      await showLeft(run, options.json === true);
      return;
    }
    throw new UsageError(
      'RUN_NOT_FOUND',
      `${run} is neither the folder of a started run nor the address (host:port) of a coordinator`,
    );
  }
  const security = await openSecurity({
    as: { role: 'operator' },
    ...{ tls: options.tls, insecure: options.insecure, env: options.env },
    runFolder: isAddress ? undefined : run,
  });
  const channel = dial(address, { security, peer: { role: 'coordinator' } });
  try {
    if (options.watch !== true) {
      const { status } = await call(channel, Rpc.getStatus, {}, { timeoutMs: 5000 });
      print(status!, options.json === true, run);
      return;
    }
    const view = openRunView(process.stdout);
    for await (const { status } of callStream(
      channel,
      Rpc.watchStatus,
      {},
      { timeoutMs: Infinity },
    )) {
      if (options.json === true) process.stdout.write(`${JSON.stringify(status)}\n`);
      else view.show(status!);
    }
    view.end();
  } catch (error) {
    if (!(error instanceof VideoloomError) || !SILENT_CODES.has(error.code)) throw error;
    if (isAddress) {
      throw new VideoloomError(
        'COORDINATOR_UNREACHABLE',
        `no coordinator answers at ${address}: it has ended, or it listens elsewhere. Check host and port, or name the ` +
          'run folder in place of the address',
        { cause: error },
      );
    }
    await showLeft(run, options.json === true);
  } finally {
    channel.close();
  }
}

/** What a call gives where nobody listens, or somebody does who does not answer. */
const SILENT_CODES = new Set(['UNAVAILABLE', 'DEADLINE_EXCEEDED']);

function print(status: RunStatus, asJson: boolean, folder: string): void {
  if (asJson) {
    process.stdout.write(`${JSON.stringify(status)}\n`);
    return;
  }
  const phase = Object.entries(RunPhase).find(([, value]) => value === status.phase)?.[0] ?? '';
  process.stdout.write(
    `${status.runId}: ${phase.toLowerCase()}, step ${status.committedStep} of ${status.totalSteps}\n` +
      `${summary(status, { folder })}\n`,
  );
}

async function readJson<T>(file: string): Promise<T | undefined> {
  try {
    return JSON.parse(await readFile(file, 'utf8')) as T;
  } catch {
    return undefined;
  }
}
