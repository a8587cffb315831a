/**
 * The process that decodes, one request at a time: started by the pool in `decoder.ts` with the pool's process id and
 * the wanted backend and device as arguments. It decodes synchronously, so all that must happen meanwhile is on another thread.
 */
import { writeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { messageOf } from '../../proto/errors.ts';
import { linesOf } from '../../proto/lines.ts';
import type { DecoderBackend } from './decoder-backend.ts';
import { DecodeError } from './decode-error.ts';
import {
  KIND,
  packFrames,
  packImages,
  packJson,
  packSamples,
  REPLY_FD,
  SHARED_HALF_BYTES,
  SHARED_MEMORY_FD,
  type DecoderCall,
} from './decoder-protocol.ts';
import { mapSharedMemory } from './shared-memory.ts';

const [parentPid = '', wanted = 'auto', device = 'cpu'] = process.argv.slice(2);
dieWithParent(Number(parentPid));

let shared: Uint8Array | undefined;

let backend: DecoderBackend;
try {
  backend = await openBackend(wanted, device === 'cuda' ? 'cuda' : 'cpu');
} catch (error) {
  send(packJson(0, KIND.ERROR, { code: 'DECODER_UNAVAILABLE', message: messageOf(error) }));
  process.exit(1);
}
send(packJson(0, KIND.HELLO, { backend: backend.name }));

for await (const line of linesOf(process.stdin)) {
  const call = JSON.parse(line) as DecoderCall;
  try {
    send(await answer(call));
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error; // a bug: die loudly, the pool reports it
    send(packJson(call.id, KIND.ERROR, { code: error.code, message: error.message }));
  }
}
process.exit(0);

async function answer({ id, call, request }: DecoderCall): Promise<Uint8Array[]> {
  switch (call) {
    case 'decode':
      return packFrames(id, await backend.decode(request));
    case 'probe':
      return packJson(id, KIND.INFO, await backend.probe(request));
    case 'decodeAudio':
      return packSamples(id, await backend.decodeAudio(request));
    // Loaded with the first picture: not everybody has any, and sharp takes 20 MB.
    case 'decodeImages': {
      const { sharedOffset, places, framing } = request;
      const numBytes = places.length * framing.width * framing.height * 3;
      const pixels =
        sharedOffset === undefined
          ? new Uint8Array(numBytes)
          : sharedMemory().subarray(sharedOffset, sharedOffset + numBytes);
      const faults = await (await import('./image-batch.ts')).decodeImages(request, pixels);
      return packImages(id, faults, sharedOffset === undefined ? pixels : undefined);
    }
    case 'probeImage':
      return packJson(
        id,
        KIND.INFO,
        await (await import('./image-backend.ts')).probeImage(request),
      );
  }
}

/** The memory shared with the parent. */
function sharedMemory(): Uint8Array {
  shared ??= mapSharedMemory(SHARED_MEMORY_FD, 2 * SHARED_HALF_BYTES);
  if (shared === undefined) throw new Error('the shared memory cannot be mapped');
  return shared;
}

async function openBackend(name: string, on: 'cpu' | 'cuda'): Promise<DecoderBackend> {
  const openers = {
    'node-av': async () => (await import('./node-av-backend.ts')).openNodeAvBackend(on),
    ffmpeg: async () => (await import('./ffmpeg-backend.ts')).openFfmpegBackend(on),
  };
  const reasons: string[] = [];
  for (const [candidate, open] of Object.entries(openers)) {
    if (name !== 'auto' && name !== candidate) continue;
    try {
      return await open();
    } catch (error) {
      reasons.push(`${candidate}: ${messageOf(error).split('\n')[0] ?? ''}`);
    }
  }
  throw new Error(reasons.join('; '));
}

function send(parts: readonly Uint8Array[]): void {
  for (const part of parts) {
    for (let at = 0; at < part.length;) at += writeSync(REPLY_FD, part, at);
  }
}

/** Ends this process group as soon as the parent is gone, even in the middle of a decode that hangs. */
function dieWithParent(parent: number): void {
  const watch = `setInterval(() => {
    if (process.ppid !== ${parent}) process.kill(-process.pid, 'SIGKILL');
  }, 300);`;
  new Worker(watch, { eval: true, execArgv: [], stdin: false }).unref();
}
