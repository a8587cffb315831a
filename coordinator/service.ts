import { status } from '@grpc/grpc-js';

import { parseAddress } from '../proto/address.ts';
import { UsageError, VideoloomError } from '../proto/errors.ts';
import type {
  AttendRequest,
  AttendResponse,
  CoordinatorServiceServer,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import { bidi, demandRole, demandWorker, RpcError, serverStream, unary } from '../proto/grpc.ts';
import type { CallContext } from '../proto/grpc.ts';
import { WORKER_ID } from '../proto/identity.ts';
import { checkProtocolVersion, PROTOCOL_VERSION } from '../proto/protocol.ts';
import { timeLimits } from '../proto/time-limits.ts';
import { workerIdOf } from './membership.ts';
import type { Run } from './run.ts';

/** Most characters of what a worker tells of its host and engine. */
const MAX_DESCRIPTION = 256;
const OUTDATED: ReadonlySet<string> = new Set(['FENCED', 'STALE_GENERATION', 'UNKNOWN_SESSION']);

/** The coordinator's RPCs over one run. */
export function coordinatorService(run: Run): CoordinatorServiceServer {
  const { plan } = run;
  const limits = timeLimits(plan);
  /** For members: the caller has to be the worker of the session. */
  const counted = <Request extends { readonly session: string }, Response>(
    rpc: string,
    handler: (request: Request) => Response | Promise<Response>,
  ) =>
    unary(async (request: Request, context) => {
      demandWorker(context, workerIdOf(request.session));
      try {
        return await handler(request);
      } catch (error) {
        if (error instanceof VideoloomError && OUTDATED.has(error.code))
          run.metrics.observeFenced(rpc);
        throw error;
      }
    });
  return {
    join: unary((request, context) => {
      const { protocolVersion, runId, workerId, host, engine, process } = request;
      checkProtocolVersion(
        protocolVersion,
        'the coordinator',
        `worker "${workerId}" on host ${host}`,
      );
      if (runId !== plan.runId) throw otherRun(plan.runId, runId);
      if (!WORKER_ID.test(workerId)) throw badWorkerId(workerId);
      demandWorker(context, workerId);
      const { tensorAddress, serviceAddress, metricsAddress, stateStep, stateIn } = request;
      const addresses = [tensorAddress, serviceAddress, metricsAddress];
      for (const address of addresses) parseAddress(address);
      for (const text of [host, engine, process, ...addresses])
        if (text.length > MAX_DESCRIPTION) throw tooLong(text);
      const session = run.join({
        workerId,
        host,
        engine,
        stateStep,
        stateIn,
        tensorAddress,
        serviceAddress,
        metricsAddress,
        process,
      });
      return {
        protocolVersion: PROTOCOL_VERSION,
        session,
        heartbeatIntervalMs: limits.beatMs,
        heartbeatTimeoutMs: limits.silenceMs,
        detectWithinMs: limits.detectWithinMs,
      };
    }),
    attend: bidi((requests, context) => attend(run, requests, context)),
    leaseMicrobatches: counted('LeaseMicrobatches', (request) => ({ steps: run.lease(request) })),
    commitStep: counted('CommitStep', (request) => run.commitStep(request)),
    reportCheckpointPart: counted('ReportCheckpointPart', (request) =>
      run.reportCheckpointPart(request),
    ),
    reportDamagedCheckpoint: counted('ReportDamagedCheckpoint', (request) =>
      run.reportDamagedCheckpoint(request),
    ),
    reportResult: counted('ReportResult', (request) => run.reportResult(request)),
    getStatus: unary(() => ({ status: run.status() })),
    watchStatus: serverStream(async function* (_, { signal }) {
      for await (const status of run.watchStatus(signal)) yield { status };
    }),
    stopRun: unary((_, context) => {
      demandRole(context, 'operator');
      run.stop();
      return {};
    }),
  };
}

/** The first beat names the session. */
async function* attend(
  run: Run,
  requests: AsyncIterable<AttendRequest>,
  context: CallContext,
): AsyncGenerator<AttendResponse, void, undefined> {
  const beats = requests[Symbol.asyncIterator]();
  const first = await beats.next();
  if (first.done === true) return;
  demandWorker(context, workerIdOf(first.value.session));
  const rest = { [Symbol.asyncIterator]: () => beats };
  yield* run.attend(first.value.session, rest, context.signal);
}

function otherRun(ours: string, theirs: string): RpcError {
  return new RpcError(
    status.FAILED_PRECONDITION,
    'OTHER_RUN',
    `this coordinator leads run ${ours}, not ${theirs}: give the worker the address of the coordinator of its run.`,
  );
}

function tooLong(text: string): UsageError {
  return new UsageError(
    'TEXT_TOO_LONG',
    `"${text.slice(0, 40)}…" has ${text.length} characters: hosts, engines and addresses have ${MAX_DESCRIPTION} at most.`,
  );
}

function badWorkerId(workerId: string): RpcError {
  return new RpcError(
    status.INVALID_ARGUMENT,
    'BAD_WORKER_ID',
    `worker id ${JSON.stringify(workerId)} is not allowed: use up to 100 letters, digits, dots, dashes and underscores.`,
  );
}
