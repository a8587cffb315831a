import type { Socket } from 'node:net';
import { platform } from 'node:os';
import { isLoopback } from '../../proto/address.ts';
import { koffi } from '../../proto/koffi.ts';

/** Of Linux: `IPPROTO_TCP`, `TCP_CONGESTION`. Source: tcp(7) */
const [TCP, CONGESTION] = [6, 13];
/** Allowed to everybody on every Linux. */
const RENO = Buffer.from('reno');

/**
 * Turns off the pacing of a connection that stays inside this machine. Some systems pace all TCP (BBR), which suits a
 * wide network; on the loopback there is no network to spare, and the timers cost throughput.
 */
export function unpaceLoopback(socket: Socket): void {
  const { remoteAddress } = socket;
  const descriptor = descriptorOf(socket);
  if (descriptor === undefined || remoteAddress === undefined || !isLoopback(remoteAddress)) return;
  callsOf().setsockopt(descriptor, TCP, CONGESTION, RENO, RENO.length);
}

/** Node has no other way to it. Undefined for what is no TCP connection, and elsewhere than on Linux. */
function descriptorOf(socket: Socket): number | undefined {
  if (platform() !== 'linux' || socket.remoteAddress === undefined) return undefined;
  const { _handle: handle } = socket as unknown as { readonly _handle?: { readonly fd?: number } };
  const descriptor = handle?.fd ?? -1;
  return descriptor < 0 ? undefined : descriptor;
}

type SetOption = (
  descriptor: number,
  level: number,
  option: number,
  value: Uint8Array,
  length: number,
) => number;

let loaded: { readonly library: unknown; readonly setsockopt: SetOption } | undefined;

function callsOf(): { readonly setsockopt: SetOption } {
  if (loaded === undefined) {
    const library = koffi.load(null); // koffi unloads a library that nothing refers to
    const setsockopt = library.func(
      'int setsockopt(int descriptor, int level, int option, const void *value, uint32_t length)',
    ) as SetOption;
    loaded = { library, setsockopt };
  }
  return loaded;
}
