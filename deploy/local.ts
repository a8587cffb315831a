import { readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pc from 'picocolors';
import { messageOf } from '../proto/errors.ts';
import { CoordinatorServiceService as Rpc } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RunPhase, type RunStatus } from '../proto/gen/videoloom/v1/run.ts';
import { call, callStream, dial, type Channel } from '../proto/grpc.ts';
import { EXIT_RESUMABLE } from '../proto/parent-process.ts';
import { openSecurity } from '../proto/security-folder.ts';
import { checkReach } from '../proto/security.ts';
import { prepareRun, startCluster, type Cluster, type Prepared } from './local-cluster.ts';
import { ProcessFailed } from './processes.ts';
import { openRunView, summary, type Outcome, type RunView } from './view.ts';

export interface LocalOptions {
  /** Arguments of `worker/main.ts prepare`. */
  readonly prepareArgs: readonly string[];
  readonly metricsAddress: string;
  readonly listenAddress: string;
  /** Flags and environment of {@link openSecurity}, which the children get too. */
  readonly tls?: string | undefined;
  readonly insecure?: boolean | undefined;
  readonly env: NodeJS.ProcessEnv;
}

/** Trains on this machine, stage after stage where the recipe has several. Started again it goes on where it was. */
export async function trainLocally(options: LocalOptions): Promise<number> {
  const { code, furtherStages } = await trainStage(options);
  if (code !== 0) return code;
  for (const stage of furtherStages) {
    const prepareArgs = [...options.prepareArgs, '--stage', stage];
    const own = await trainStage({ ...options, prepareArgs });
    if (own.code !== 0) return own.code;
  }
  return 0;
}

/** What a stage ended with, and the stages to train after it. */
interface StageEnd {
  readonly code: number;
  readonly furtherStages: readonly string[];
}

/** Prepares the run folder of a stage, then a coordinator and workers as processes of their own. */
async function trainStage(options: LocalOptions): Promise<StageEnd> {
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
  if (finished !== undefined) {
    say(
      `${pc.green('✓')} ${shown} is complete: ${finished.step} steps.\n\n${summary(finished, { folder: shown })}`,
    );
    say(nextSteps(shown));
    return { code: 0, furtherStages };
  }

  // --- Coordinator and workers.
  const security = await openSecurity({
    as: { role: 'operator' },
    ...{ tls: options.tls, insecure: options.insecure, env: options.env, runFolder: folder },
  });
  checkReach(security, options.listenAddress, 'the coordinator would listen on');
  const cluster = await startCluster(prepared, { ...options, say });
  if (prepared.existed) say(`resuming ${shown}`);
  say(
    `coordinator ${cluster.addresses.address}   metrics http://${cluster.addresses.metricsAddress}/metrics   logs ${shown}/logs`,
  );
  const channel = dial(cluster.addresses.address, { security, peer: { role: 'coordinator' } });
  const view = openRunView();
  const stopOnSignal = stopper(channel, view, cluster);
  process.on('SIGINT', stopOnSignal);
  process.on('SIGTERM', stopOnSignal);
  try {
    const last = await watch(channel, view, cluster);
    await cluster.end();
    view.end();
    return { code: conclude(last, shown), furtherStages };
  } finally {
    process.off('SIGINT', stopOnSignal);
    process.off('SIGTERM', stopOnSignal);
    channel.close();
    await cluster.end();
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
        if (failures > 100) throw error;
      }
      await delay(100);
    }
  };
  return Promise.race([follow(), cluster.broken]);
}

function isOver({ phase }: RunStatus): boolean {
  return phase === RunPhase.FINISHED || phase === RunPhase.FAILED || phase === RunPhase.STOPPED;
}

/** First signal: checkpoint and stop. Second: the processes are ended at once. */
function stopper(channel: Channel, view: RunView, cluster: Cluster): () => void {
  let asked = false;
  return () => {
    if (asked) {
      cluster.kill();
      process.exit(130);
    }
    asked = true;
    view.note('stopping after this step (again to stop at once)');
    call(channel, Rpc.stopRun, {}, { timeoutMs: 10_000 }).catch((error: unknown) => {
      view.note(`could not stop the run: ${messageOf(error)}`);
    });
  };
}

/** What a finished run left; undefined for one that has not finished. */
async function readSummary(folder: string): Promise<(Outcome & { step: number }) | undefined> {
  try {
    return JSON.parse(await readFile(join(folder, 'summary.json'), 'utf8')) as Outcome & {
      step: number;
    };
  } catch {
    return undefined;
  }
}

function nextSteps(folder: string): string {
  return [
    'next:',
    `  npx videoloom look ${folder}                      what the model sees and guesses, as a page`,
    '  npx videoloom train videobert --data DATA          your own videos and words, in any form, from anywhere',
    '  npx videoloom train --help                         presets, steps, workers, every field of the config',
  ].join('\n');
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
