import { RendezvousServiceService as Rpc } from '../proto/gen/videoloom/v1/rendezvous.ts';
import { call, type Channel } from '../proto/grpc.ts';
import type { KeyValueStore } from './pjrt/key-value.ts';

/** How long a call may take beyond the time that it is to wait. */
const CALL_TIMEOUT_MS = 10_000;

/** The store that the coordinator keeps for one generation of a run. */
export function coordinatorKeyValues(
  channel: Channel,
  scope: { readonly runId: string; readonly generation: number },
): KeyValueStore {
  return {
    async put(key, value) {
      const request = { ...scope, key, value: Buffer.from(value) };
      await call(channel, Rpc.putValue, request, { timeoutMs: CALL_TIMEOUT_MS });
    },
    async get(key, timeoutMs) {
      const options = { timeoutMs: timeoutMs + CALL_TIMEOUT_MS };
      return (await call(channel, Rpc.getValue, { ...scope, key, timeoutMs }, options)).value;
    },
    async tryGet(key) {
      const request = { ...scope, key };
      return (await call(channel, Rpc.tryGetValue, request, { timeoutMs: CALL_TIMEOUT_MS })).value;
    },
  };
}
