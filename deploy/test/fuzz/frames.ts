/** Tensor connections as no worker opens them: no frames, broken frames, frames of other runs, generations and peers. */
import type { Socket } from 'node:net';
import { PROTOCOL_VERSION } from '../../../proto/protocol.ts';
import type { Rng } from '../../../proto/random.ts';
import {
  encodeHeader,
  FRAME_KIND,
  HEADER_BYTES,
  type FrameKind,
} from '../../../worker/parallel/frame.ts';
import { open, send } from './connections.ts';
import { mutate, randomBytes } from './mutate.ts';

/** A member of the run that is fuzzed. */
interface Target {
  readonly workerId: string;
  readonly tensorAddress: string;
}

/** Sends `count` frames to the tensor ports of workers. Gives how many of each form. */
export async function fuzzFrames(
  targets: readonly Target[],
  { runId, rng, count }: { readonly runId: string; readonly rng: Rng; readonly count: number },
): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  const held: Socket[] = [];
  for (let sent = 0; sent < count;) {
    const target = targets[rng.integer(targets.length)]!;
    const socket = await open(target.tensorAddress);
    const form = FORMS[rng.integer(FORMS.length)]!;
    // Some frames on each connection, so far as it lasts.
    for (let more = 1 + rng.integer(6); more > 0 && sent < count; more--) {
      sent++;
      counts[form] = (counts[form] ?? 0) + 1;
      if (socket === undefined || socket.destroyed) continue;
      await send(socket, bytesOf(form, rng, target, runId));
    }
    if (socket === undefined) continue;
    if (form === 'slow') held.push(socket);
    else socket.destroy();
    if (held.length > 50) held.shift()!.destroy();
  }
  for (const socket of held) socket.destroy();
  return counts;
}

const FORMS = ['hello', 'hello', 'broken', 'header', 'bytes', 'slow'] as const;

function bytesOf(form: (typeof FORMS)[number], rng: Rng, target: Target, runId: string): Buffer {
  switch (form) {
    case 'hello': // a stranger's, well made
      return frame(rng, FRAME_KIND.hello, helloOf(rng, target, runId));
    case 'broken':
      return mutate(rng, frame(rng, FRAME_KIND.hello, helloOf(rng, target, runId)));
    case 'header': // any kind, announcing anything
      return frame(
        rng,
        (1 + rng.integer(6)) as FrameKind,
        randomBytes(rng, 200),
        rng.integer(2 ** 24),
      );
    case 'bytes':
      return randomBytes(rng, 300);
    default:
      return frame(rng, FRAME_KIND.hello, helloOf(rng, target, runId)).subarray(
        0,
        rng.integer(HEADER_BYTES),
      );
  }
}

/** Never one of a member: that would be obeyed. */
function helloOf(rng: Rng, { workerId }: Target, runId: string): Buffer {
  const hello = {
    protocolVersion: rng.integer(4) === 0 ? rng.uint32() : PROTOCOL_VERSION,
    runId: rng.integer(3) === 0 ? randomBytes(rng, 30).toString('base64') : runId,
    workerId: `fuzz-${rng.integer(100)}`,
    toWorkerId: rng.integer(3) === 0 ? randomBytes(rng, 30).toString('base64') : workerId,
    token: rng.integer(2) === 0 ? randomBytes(rng, 60).toString('base64') : undefined,
  };
  return Buffer.from(JSON.stringify(hello));
}

function frame(rng: Rng, kind: FrameKind, payload: Buffer, length = payload.length): Buffer {
  const header = encodeHeader({
    ...{ generation: rng.integer(4) === 0 ? rng.uint32() : rng.integer(5), kind, length },
    ...{
      step: rng.integer(50),
      sequence: rng.integer(100),
      tag: rng.uint32(),
      chunk: rng.uint32(),
    },
    checksum: rng.integer(2) === 0 ? rng.uint32() : undefined,
  });
  return Buffer.concat([header, payload]);
}
