import { once } from 'node:events';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { Command, Option } from 'commander';
import { Registry } from 'prom-client';

import { writeFileDurably } from '../proto/durable-file.ts';
import { reportFatal, UsageError, VideoloomError } from '../proto/errors.ts';
import { CoordinatorServiceService } from '../proto/gen/videoloom/v1/coordinator.ts';
import { RendezvousServiceService } from '../proto/gen/videoloom/v1/rendezvous.ts';
import { RunPhase } from '../proto/gen/videoloom/v1/run.ts';
import { serve } from '../proto/grpc.ts';
import type { RpcServer } from '../proto/grpc.ts';
import { openLog } from '../proto/log.ts';
import { checkNatsReach, parseNatsServers } from '../proto/nats-servers.ts';
import { serveMetrics } from '../proto/metrics.ts';
import type { MetricsServer } from '../proto/metrics.ts';
import {
  EXIT_RESUMABLE,
  GRACE_SECONDS,
  onLauncherGone,
  outliveTerminal,
} from '../proto/parent-process.ts';
import { COORDINATOR_FILE, readRunPlan } from '../proto/run-plan.ts';
import type { RunPlan } from '../proto/run-plan.ts';
import { endOfCertificate, openSecurity } from '../proto/security-folder.ts';
import { checkReach, refusalLog, warnWhileInsecure } from '../proto/security.ts';
import { slurmJob } from '../proto/slurm-job.ts';
import { timeLimits } from '../proto/time-limits.ts';
import type { EventPublisher, EventPublisherOptions } from './events/event-publisher.ts';
import { JOURNAL_FILE } from './journal.ts';
import { KeyValues, rendezvousService } from './key-values.ts';
import { openRun } from './run.ts';
import type { Run } from './run.ts';
import { coordinatorService } from './service.ts';
import { whenFree } from './taken-port.ts';

interface Flags {
  readonly run: string;
  readonly listen: string;
  readonly metrics: string;
  readonly graceSeconds: number;
  readonly lingerSeconds: number;
  readonly takeOver?: boolean;
  readonly followLauncher?: boolean;
  readonly startedAgain?: boolean;
  readonly logFile?: string;
  readonly tls?: string;
  readonly insecure?: boolean;
}

async function main(argv: readonly string[]): Promise<number> {
  const flags = parseFlags(argv);
  outliveTerminal();
  const ends: readonly string[] =
    flags.followLauncher === true ? ['SIGTERM'] : ['SIGTERM', 'SIGINT'];
  if (flags.followLauncher === true) process.on('SIGINT', () => undefined);
  // Heard from the beginning: the run may be open, and its start be told, before anybody waits for its end.
  const stopping = new AbortController();
  const asked = Promise.race([
    ...ends.map((name) => once(process, name)),
    new Promise<void>((resolve) => {
      onLauncherGone(resolve);
    }),
  ]);
  void asked.then(() => {
    stopping.abort();
  });
  const plan = await readRunPlan(flags.run);
  const { run: runFolder, tls, insecure } = flags;
  const security = await openSecurity({
    as: { role: 'coordinator' },
    ...{ tls, insecure, runFolder, env: process.env },
  });
  checkReach(security, flags.listen, 'the coordinator would listen on');
  const secrets = security.token === undefined ? [] : [security.token];
  const log = openLog({ run_id: plan.runId }, { file: flags.logFile, secrets });
  const endWarnings = warnWhileInsecure(security, log);
  const certificateEnd = endOfCertificate(security);
  if (certificateEnd !== undefined)
    log.info(`the certificate of the coordinator runs out at ${certificateEnd.toISOString()}`);
  const registry = new Registry();
  const nowMs = (): number => performance.now();
  const wallTime = (): Date => new Date();
  const events = await openEvents(runFolder, plan, { security, log, registry, wallTime });
  const onJournaled = events?.journaled.bind(events);
  const surroundings = { log, registry, nowMs, wallTime, onJournaled };
  const run = await openRun(flags.run, plan, surroundings, {
    takeOver: flags.takeOver ?? false,
    job: slurmJob(process.env),
  });
  let server: RpcServer | undefined;
  let metrics: MetricsServer | undefined;
  try {
    const service = { definition: CoordinatorServiceService, handlers: coordinatorService(run) };
    const values = new KeyValues(plan.runId, () => run.status().generation?.number ?? 0);
    const rendezvous = {
      definition: RendezvousServiceService,
      handlers: rendezvousService(values),
    };
    const refused = refusalLog(log, 'a connection to the coordinator');
    // Whether a worker is lost, its beats tell: a connection is not cut before they do.
    const { patience, reconnectMs, callMs } = timeLimits(plan);
    const services = [service, rendezvous];
    const isAgain = flags.startedAgain === true;
    // Its workers look for it on that port, which some connection may have been given meanwhile.
    const listen = (): Promise<RpcServer> =>
      serve(services, flags.listen, security, refused, patience);
    server = await whenFree(listen, isAgain ? reconnectMs : 0, stopping.signal);
    if (server === undefined) {
      run.stop();
      await run.over;
      return exitCodeOf(run, true);
    }
    const warnings = [...run.warnings];
    const discovery = {
      others: () => run.scrapeTargets(),
      labels: { run: plan.runId, role: 'coordinator' },
    };
    const measure = (address: string): Promise<MetricsServer> =>
      serveMetrics(registry, address, discovery);
    const waiting = { limitMs: isAgain ? callMs : 0, signal: stopping.signal };
    metrics = await openMetrics(measure, flags.metrics, waiting);
    if (metrics.address !== flags.metrics && isAgain) {
      const moved = `the metrics are at http://${metrics.address}/metrics now: port ${flags.metrics} is taken by another process`;
      log.warn(moved);
      warnings.push(moved);
    }
    const reachable = {
      address: server.address,
      metricsAddress: metrics.address,
      pid: process.pid,
    };
    const whereabouts = { ...reachable, host: hostname() };
    await writeFileDurably(join(flags.run, COORDINATOR_FILE), `${JSON.stringify(whereabouts)}\n`);
    process.stdout.write(`${JSON.stringify({ ...reachable, warnings })}\n`);
    const isPreempted = await runToItsEnd(run, asked, ends, flags.graceSeconds * 1000);
    // Workers leave by themselves once they have their answers; then whoever watches may still ask how it went.
    await run.abandoned(isPreempted ? 1000 : flags.graceSeconds * 1000);
    if (!isPreempted) await sleep(flags.lingerSeconds * 1000);
    await events?.end(timeLimits(plan).farewellMs);
    return exitCodeOf(run, isPreempted);
  } finally {
    endWarnings();
    await events?.end(0);
    await run.close();
    await server?.close(1000);
    await metrics?.close();
  }
}

/**
 * The metrics at `address`. Where it stays taken for longer than `limitMs`, which is above 0 for a coordinator that is
 * started again, they move to a free port: that is no reason to end a run that trains.
 */
async function openMetrics(
  measure: (address: string) => Promise<MetricsServer>,
  address: string,
  { limitMs, signal }: { readonly limitMs: number; readonly signal: AbortSignal },
): Promise<MetricsServer> {
  const open = await whenFree(() => measure(address), limitMs, signal).catch((error: unknown) => {
    if (limitMs > 0 && error instanceof VideoloomError && error.code === 'PORT_IN_USE')
      return undefined;
    throw error;
  });
  return open ?? measure(address.replace(/\d+$/, '0'));
}

/** What publishes the run's events, where its config names servers for them. @throws UsageError */
async function openEvents(
  runFolder: string,
  { runId, events }: RunPlan,
  surroundings: Pick<EventPublisherOptions, 'security' | 'log' | 'registry' | 'wallTime'>,
): Promise<EventPublisher | undefined> {
  if (events === undefined) return undefined;
  const servers = parseNatsServers(events, 'cluster.events');
  checkNatsReach(servers, surroundings.security);
  const { natsAuthenticator, NATS_CREDENTIALS_VARIABLE } = await import('../proto/nats.ts');
  const { openEventPublisher } = await import('./events/event-publisher.ts');
  const credentialsFile = process.env[NATS_CREDENTIALS_VARIABLE];
  // What is wrong with it is said now, not in the middle of the run.
  await natsAuthenticator(credentialsFile);
  const journal = join(runFolder, JOURNAL_FILE);
  return openEventPublisher({ ...surroundings, runId, journal, servers, credentialsFile });
}

/**
 * Waits for the end of the run. `asked` asks for an early one, and a further one of the signals `ends` or `graceMs` cuts
 * it short.
 */
async function runToItsEnd(
  run: Run,
  asked: Promise<unknown>,
  ends: readonly string[],
  graceMs: number,
): Promise<boolean> {
  const signals = new AbortController();
  const { signal } = signals;
  const isPreempted = await Promise.race([run.over.then(() => false), asked.then(() => true)]);
  if (isPreempted) {
    const again = Promise.race(ends.map((name) => once(process, name, { signal })));
    run.stop();
    await Promise.race([run.over, again, sleep(graceMs, undefined, { signal })]);
  }
  // Aborting rejects what still waits; nobody needs it any more.
  signals.abort();
  return isPreempted;
}

function exitCodeOf(run: Run, isPreempted: boolean): number {
  const { phase } = run.status();
  if (phase === RunPhase.FAILED) return 1;
  if (phase === RunPhase.FINISHED) return 0;
  return isPreempted ? EXIT_RESUMABLE : 0;
}

function parseFlags(argv: readonly string[]): Flags {
  const command = new Command('coordinator')
    .description('Leads one run: membership, sample order, commits, checkpoints.')
    .requiredOption('--run <folder>', 'run folder that holds run.json')
    .option('--listen <host:port>', 'where workers find it; port 0 takes a free one', '127.0.0.1:0')
    .option(
      '--metrics <host:port>',
      'where /metrics is served, plain HTTP: whoever reaches it reads it',
      '127.0.0.1:0',
    )
    .option(
      '--grace-seconds <n>',
      'time to checkpoint and end after SIGTERM',
      seconds,
      GRACE_SECONDS,
    )
    .option('--linger-seconds <n>', 'time to go on answering after the end of the run', seconds, 1)
    .option('--take-over', 'take the run from a coordinator that does not answer any more')
    .addOption(
      // Of the launcher of a whole run: a terminal's Ctrl-C is for that one, which asks for the stop and waits for it.
      new Option('--follow-launcher').hideHelp(),
    )
    .addOption(
      // Of the launcher too: the addresses are those of one that died, and neither end the run by being taken.
      new Option('--started-again').hideHelp(),
    )
    .option('--log-file <file>', 'JSON lines go there instead of stderr')
    .option('--tls <folder>', 'certificates and token of `videoloom init --tls`')
    .option('--insecure', 'plain text, off the loopback too')
    .exitOverride((error) => {
      process.exit(error.exitCode === 0 ? 0 : 2);
    });
  return command.parse(argv, { from: 'user' }).opts<Flags>();
}

function seconds(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value >= 0 && value <= 86_400) return value;
  throw new UsageError('BAD_FLAG', `"${text}" is no number of seconds between 0 and 86400.`);
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => process.exit(reportFatal(error)),
);
