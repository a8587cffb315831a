import { readFile, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pc from 'picocolors';
import { newestCheckpointStep, verifyStep } from '../proto/checkpoint-manifest.ts';
import { reachedAt } from '../proto/address.ts';
import { EXIT_USAGE, messageOf, UsageError, VideoloomError } from '../proto/errors.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream, dial, type Channel } from '../proto/grpc.ts';
import { EXIT_RESUMABLE, outliveTerminal, SAME_WISH_MS } from '../proto/parent-process.ts';
import { forgetLeaderFailure, tellLeaderFailure } from '../proto/leader-failure.ts';
import { isOver } from '../proto/run-phase.ts';
import { isRunLocked } from '../proto/run-lock.ts';
import { SUMMARY_FILE } from '../proto/run-plan.ts';
import { endOfCertificate, openSecurity } from '../proto/security-folder.ts';
import { checkReach } from '../proto/security.ts';
import { shellWord } from '../proto/shell-word.ts';
import { slurmJob } from '../proto/slurm-job.ts';
import {
  COORDINATOR,
  prepareRun,
  RUN_STOPPED,
  startCluster,
  type Cluster,
  type Prepared,
} from './cluster.ts';
import type { Host } from './hosts.ts';
import { makeCertificates } from './own-certificates.ts';
import { ProcessFailed } from './processes.ts';
import { openRunView, summary, type Outcome, type RunView } from './view.ts';

export interface LauncherOptions {
  /** Arguments of `worker/main.ts prepare`. */
  readonly prepareArgs: readonly string[];
  readonly metricsAddress: string;
  readonly listenAddress: string;
  /** Flags and environment of {@link openSecurity}, which the children get too. */
  readonly tls?: string | undefined;
  readonly insecure?: boolean | undefined;
  /** Machines to start the workers on; none: this one. */
  readonly hosts?: readonly Host[];
  /** Where the run will lie, as far as the command says so. */
  readonly runFolder?: string | undefined;
  /** Somebody else starts the workers. */
  readonly startsNoWorkers?: boolean;
  readonly env: NodeJS.ProcessEnv;
}

/** Leads a run from this machine, stage after stage where the recipe has several. Started again it goes on where it was. */
export async function leadRun(options: LauncherOptions): Promise<number> {
  outliveTerminal();
  const { startsNoWorkers = false, runFolder } = options;
  if (!startsNoWorkers || runFolder === undefined) return trainStages(options);
  // Workers wait there for this leader. A folder that cannot be written is told of by what prepares it.
  const ignore = (): undefined => undefined;
  await forgetLeaderFailure(runFolder).catch(ignore);
  const tell = async (code: number): Promise<void> => {
    // Somebody else leads it.
    if (isRunLocked(runFolder, { job: slurmJob(options.env) })) return;
    await tellLeaderFailure(runFolder, { code, isFinal: code === EXIT_USAGE }).catch(ignore);
  };
  let code: number;
  try {
    code = await trainStages(options);
  } catch (error) {
    if (!messageOf(error).includes('RUN_LOCKED'))
      await tell(error instanceof UsageError ? EXIT_USAGE : 1);
    throw error;
  }
  if (code !== 0 && code !== EXIT_RESUMABLE) await tell(code);
  return code;
}

async function trainStages(options: LauncherOptions): Promise<number> {
  const signals = openSignals();
  try {
    const { code, furtherStages } = await trainStage(options, signals);
    if (code !== 0) return code;
    for (const stage of furtherStages) {
      // It came when the stage was at its end.
      if (signals.wantEnd()) return EXIT_RESUMABLE;
      const prepareArgs = [...options.prepareArgs, '--stage', stage];
      const own = await trainStage({ ...options, prepareArgs }, signals);
      if (own.code !== 0) return own.code;
    }
    return 0;
  } finally {
    signals.close();
  }
}

/** SIGINT and SIGTERM, from the beginning of the command to its end. */
interface Signals {
  /** Whether one has come. */
  wantEnd(): boolean;
  /** Who is told of them; undefined: the command ends at once, and can be resumed. */
  handler: (() => void) | undefined;
  close(): void;
}

function openSignals(): Signals {
  let isWanted = false;
  const onSignal = (): void => {
    isWanted = true;
    // What prepares a run ends with this process, and leaves nothing half done.
    if (signals.handler === undefined) {
      say('stopped, and nothing was training; the same command goes on');
      process.exit(EXIT_RESUMABLE);
    }
    signals.handler();
  };
  const signals: Signals = {
    wantEnd: () => isWanted,
    handler: undefined,
    close() {
      process.off('SIGINT', onSignal);
      process.off('SIGTERM', onSignal);
    },
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  return signals;
}

/** What a run writes of itself when it is finished. */
type FinishedRun = Outcome & { readonly step: number; readonly runId: string };

/** What a stage ended with, and the stages to train after it. */
interface StageEnd {
  readonly code: number;
  readonly furtherStages: readonly string[];
}

/** Prepares the run folder of a stage, then a coordinator and workers as processes of their own. */
async function trainStage(options: LauncherOptions, signals: Signals): Promise<StageEnd> {
  // --- The run folder.
  let prepared: Prepared;
  try {
    prepared = await prepareRun(options.prepareArgs, options.env);
  } catch (error) {
    // It has said itself what went wrong.
    if (error instanceof ProcessFailed) return { code: error.exit.code ?? 1, furtherStages: [] };
    throw error;
  }
  const { folder, furtherStages } = prepared;
  const shown = relative(process.cwd(), folder) || folder;

  const finished = await readSummary(folder);
  const damage = finished && (await damageOfResult(folder, finished));
  if (damage !== undefined) {
    say(`${pc.yellow('!')} ${damage}`);
    // Who comes to train it anew is not to take it for finished.
    await rm(join(folder, SUMMARY_FILE), { force: true });
  } else if (finished !== undefined) {
    say(
      `${pc.green('✓')} ${shown} is complete: ${finished.step} steps.\n\n${summary(finished, { folder: shown })}`,
    );
    say(nextSteps(shown));
    return { code: 0, furtherStages };
  }

  // --- Coordinator and workers.
  await makeCertificates(prepared, options);
  const security = await openSecurity({
    as: { role: 'operator' },
    ...{ tls: options.tls, insecure: options.insecure, env: options.env, runFolder: folder },
  });
  checkReach(security, options.listenAddress, 'the coordinator would listen on');
  const cluster = await startCluster(prepared, { ...options, say });
  if (prepared.existed) say(`resuming ${shown}`);
  for (const warning of cluster.addresses.warnings) say(`${pc.yellow('!')} ${warning}`);
  say(
    `coordinator ${cluster.addresses.address}   metrics http://${cluster.addresses.metricsAddress}/metrics   logs ${shown}/logs`,
  );
  const certificateEnd = endOfCertificate(security);
  if (certificateEnd !== undefined)
    say(
      `certificates until ${certificateEnd.toISOString().slice(0, 10)}: processes read them when they start`,
    );
  if (options.startsNoWorkers === true) {
    const there = reachedAt(cluster.addresses.address, hostname());
    const run = shellWord(folder);
    say(`workers: npx videoloom worker --run ${run} --coordinator ${there} --id worker-0`);
  }
  const channel = dial(cluster.addresses.address, { security, peer: { role: 'coordinator' } });
  const view = openRunView();
  const over = new AbortController();
  signals.handler = stopper({ channel, view, cluster, over: over.signal });
  try {
    const last = await watch(channel, view, cluster);
    over.abort();
    await cluster.end();
    view.end();
    return { code: conclude(last, shown), furtherStages };
  } catch (error) {
    if (!(error instanceof VideoloomError && error.code === RUN_STOPPED)) throw error;
    await cluster.end();
    view.end();
    const step = await newestCheckpointStep(folder);
    const from = step === undefined ? 'its beginning' : `the checkpoint of step ${step}`;
    say(`stopped; the same command resumes it from ${from}`);
    return { code: EXIT_RESUMABLE, furtherStages };
  } finally {
    over.abort();
    channel.close();
    await cluster.end();
    signals.handler = undefined;
  }
}

function conclude(last: RunStatus, folder: string): number {
  switch (last.phase) {
    case RunPhase.FINISHED:
      say(`\n${summary(last, { folder })}\n${nextSteps(folder)}`);
      return 0;
    case RunPhase.FAILED:
      say(`${pc.red('the run failed')}: ${last.failure}\nlogs: ${folder}/logs`);
      return 1;
    default:
      say(
        `stopped after step ${last.committedStep} of ${last.totalSteps}; the same command resumes it`,
      );
      return EXIT_RESUMABLE;
  }
}

/** How long the coordinator's word is waited for when a process has ended the run. */
const LAST_WORD_MS = 1000;

/** Draws the run until it is over; a coordinator that is being started again is waited for. */
async function watch(channel: Channel, view: RunView, cluster: Cluster): Promise<RunStatus> {
  let last: RunStatus | undefined;
  const follow = async (): Promise<RunStatus> => {
    for (let failures = 0; ; failures++) {
      try {
        for await (const { status } of callStream(
          channel,
          Rpc.watchStatus,
          {},
          { timeoutMs: Infinity },
        )) {
          if (status === undefined) continue;
          failures = 0;
          last = status;
          view.show(status);
        }
        if (last !== undefined && isOver(last)) return last;
      } catch (error) {
        // One that is started again first reads and checks all that there is, for as long as that takes.
        if (failures > 100 && !cluster.processes().has(COORDINATOR)) throw error;
      }
      await delay(100);
    }
  };
  // A worker may end with a failed run before its coordinator's word of that has come, which says more.
  const broken = cluster.broken.catch(async (error: unknown) => {
    await delay(LAST_WORD_MS);
    throw error;
  });
  return Promise.race([follow(), broken]);
}

/** A coordinator that was killed has forgotten that it was asked. */
const ASK_AGAIN_MS = 500;

/** First signal: checkpoint and stop. Another one, later: the processes are ended at once. */
function stopper({
  channel,
  view,
  cluster,
  over,
}: {
  readonly channel: Channel;
  readonly view: RunView;
  readonly cluster: Cluster;
  /** Nothing is asked any more. */
  readonly over: AbortSignal;
}): () => void {
  /** Until the run is over: a coordinator that is being started again does not answer, or answers and is killed. */
  const ask = async (): Promise<void> => {
    for (;;) {
      try {
        await call(channel, Rpc.stopRun, {}, { timeoutMs: 10_000, signal: over });
      } catch (error) {
        if (over.aborted) return;
        if (!(error instanceof VideoloomError && error.retryable)) {
          view.note(`could not stop the run: ${messageOf(error)}`);
          return;
        }
      }
      await delay(ASK_AGAIN_MS, undefined, { signal: over }).catch(() => undefined);
      if (over.aborted) return;
    }
  };
  let askedMs: number | undefined;
  return () => {
    if (askedMs !== undefined) {
      if (performance.now() - askedMs < SAME_WISH_MS) return;
      cluster.kill();
      process.exit(130);
    }
    askedMs = performance.now();
    view.note('stopping after this step (again to stop at once)');
    void ask();
  };
}

/** What a finished run left; undefined for one that has not finished. */
async function readSummary(folder: string): Promise<FinishedRun | undefined> {
  try {
    return JSON.parse(await readFile(join(folder, SUMMARY_FILE), 'utf8')) as FinishedRun;
  } catch {
    return undefined;
  }
}

/** Why the weights that a finished run is to have left cannot be had; undefined where they can. */
async function damageOfResult(folder: string, finished: FinishedRun): Promise<string | undefined> {
  try {
    await verifyStep(folder, finished);
    return undefined;
  } catch (error) {
    return `the run was finished, and its weights cannot be read any more: ${messageOf(error)}`;
  }
}

function nextSteps(folder: string): string {
  const steps = [
    [`look ${shellWord(folder)}`, 'what the model sees and guesses, as a page'],
    ['train videobert --data DATA', 'your own videos and words, in any form, from anywhere'],
    ['train --help', 'presets, steps, workers, every field of the config'],
  ] as const;
  const width = Math.max(...steps.map(([command]) => command.length));
  const lines = steps.map(
    ([command, what]) => `  npx videoloom ${command.padEnd(width)}   ${what}`,
  );
  return ['next:', ...lines].join('\n');
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
