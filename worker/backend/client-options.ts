import path from 'node:path';

import type { NamedValues } from '../pjrt/named-values.ts';

/** What the engine may take of each GPU's memory, where it is not told; as XLA does. */
const MEMORY_FRACTION = 0.75;

/**
 * The client options of a plugin, by the name of its library: those of GPUs take `memoryFraction` of the memory at the
 * start, which keeps it in one piece. Others have no such options and refuse them.
 * Source: PJRT_Client_Create in xla/pjrt/c/pjrt_c_api_gpu_internal.cc
 */
export function clientOptions(
  pluginPath: string,
  memoryFraction: number = MEMORY_FRACTION,
): NamedValues {
  if (!/cuda|rocm/i.test(path.basename(pluginPath))) return {};
  return { memory_fraction: memoryFraction, preallocate: true };
}
