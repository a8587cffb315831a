import { status } from '@grpc/grpc-js';

import { VideoloomError } from '../proto/errors.ts';
import type {
  AttendRequest,
  AttendResponse,
  CoordinatorServiceServer,
} from '../proto/gen/videoloom/v1/coordinator.ts';
import { bidi, RpcError, serverStream, unary } from '../proto/grpc.ts';
import type { CallContext } from '../proto/grpc.ts';
import { checkProtocolVersion, PROTOCOL_VERSION } from '../proto/protocol.ts';
import type { Run } from './run.ts';

const WORKER_ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;
const OUTDATED: ReadonlySet<string> = new Set(['FENCED', 'STALE_GENERATION', 'UNKNOWN_SESSION']);

/** The coordinator's RPCs over one run. */
export function coordinatorService(run: Run): CoordinatorServiceServer {
  const { plan } = run;
  const counted = <Request, Response>(
    rpc: string,
    handler: (request: Request) => Response | Promise<Response>,
  ) =>
    unary(async (request: Request) => {
      try {
        return await handler(request);
      } catch (error) {
        if (error instanceof VideoloomError && OUTDATED.has(error.code))
          run.metrics.observeFenced(rpc);
        throw error;
      }
    });
  return {
    join: unary((request) => {
      const { protocolVersion, runId, workerId, host, engine, stateStep } = request;
      checkProtocolVersion(
        protocolVersion,
        'the coordinator',
        `worker "${workerId}" on host ${host}`,
      );
      if (runId !== plan.runId) throw otherRun(plan.runId, runId);
      if (!WORKER_ID.test(workerId)) throw badWorkerId(workerId);
      const { tensorAddress, serviceAddress } = request;
      const session = run.join({
        workerId,
        host,
        engine,
        stateStep,
        tensorAddress,
        serviceAddress,
      });
      const { heartbeatIntervalMs, heartbeatTimeoutMs } = plan;
      return {
        protocolVersion: PROTOCOL_VERSION,
        session,
        heartbeatIntervalMs,
        heartbeatTimeoutMs,
      };
    }),
    attend: bidi((requests, context) => attend(run, requests, context)),
    leaseMicrobatches: counted('LeaseMicrobatches', (request) => ({ steps: run.lease(request) })),
    commitStep: counted('CommitStep', (request) => run.commitStep(request)),
    reportCheckpointPart: counted('ReportCheckpointPart', (request) =>
      run.reportCheckpointPart(request),
    ),
    reportResult: counted('ReportResult', (request) => run.reportResult(request)),
    getStatus: unary(() => ({ status: run.status() })),
    watchStatus: serverStream(async function* (_, { signal }) {
      for await (const status of run.watchStatus(signal)) yield { status };
    }),
    stopRun: unary(() => {
      run.stop();
      return {};
    }),
  };
}

/** The first beat names the session. */
async function* attend(
  run: Run,
  requests: AsyncIterable<AttendRequest>,
  { signal }: CallContext,
): AsyncGenerator<AttendResponse, void, undefined> {
  const beats = requests[Symbol.asyncIterator]();
  const first = await beats.next();
  if (first.done === true) return;
  const rest = { [Symbol.asyncIterator]: () => beats };
  for await (const generation of run.attend(first.value.session, rest, signal))
    yield { generation };
}

function otherRun(ours: string, theirs: string): RpcError {
  return new RpcError(
    status.FAILED_PRECONDITION,
    'OTHER_RUN',
    `this coordinator leads run ${ours}, not ${theirs}: give the worker the address of the coordinator of its run.`,
  );
}

function badWorkerId(workerId: string): RpcError {
  return new RpcError(
    status.INVALID_ARGUMENT,
    'BAD_WORKER_ID',
    `worker id ${JSON.stringify(workerId)} is not allowed: use up to 100 letters, digits, dots, dashes and underscores.`,
  );
}
