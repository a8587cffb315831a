import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { KeyValues, rendezvousService } from '../coordinator/key-values.ts';
import { VideoloomError } from '../proto/errors.ts';
import { RendezvousServiceService } from '../proto/gen/videoloom/v1/rendezvous.ts';
import { dial, serve, type Channel, type RpcServer } from '../proto/grpc.ts';
import { coordinatorKeyValues } from './key-values.ts';

let server: RpcServer;
let channel: Channel;
before(async () => {
  const values = new KeyValues('run', () => 3);
  const handlers = rendezvousService(values);
  server = await serve([{ definition: RendezvousServiceService, handlers }], '127.0.0.1:0');
  channel = dial(server.address);
});
after(async () => {
  channel.close();
  await server.close();
});

const isError = (code: string) => (error: unknown) => {
  assert.ok(error instanceof VideoloomError);
  assert.equal(error.code, code);
  return true;
};

test('two workers of a generation find what the other left with the coordinator', async () => {
  const [a, b] = [0, 1].map(() => coordinatorKeyValues(channel, { runId: 'run', generation: 3 }));
  const waiting = b!.get('nccl', 20_000);
  assert.equal(await b!.tryGet('nccl'), undefined);
  await a!.put('nccl', Uint8Array.of(0, 255));
  assert.deepEqual([...(await waiting)], [0, 255]);
  assert.deepEqual([...(await b!.tryGet('nccl'))!], [0, 255]);
});

test('a key that does not come, and a generation that is over, are errors that say so', async () => {
  const now = coordinatorKeyValues(channel, { runId: 'run', generation: 3 });
  await assert.rejects(now.get('never', 20), isError('KEY_VALUE_TIMEOUT'));
  const old = coordinatorKeyValues(channel, { runId: 'run', generation: 2 });
  await assert.rejects(old.put('nccl', Uint8Array.of(1)), isError('STALE_GENERATION'));
});
