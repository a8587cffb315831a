/**
 * Calls of native libraries, set up before the first library is loaded: afterwards koffi refuses, so everybody takes it
 * from here.
 */
import koffi from 'koffi';

// koffi runs each native call on a stack of its own; the compiler inside a PJRT plugin recurses deeply.
const STACK_BYTES = 16 * 2 ** 20;

const { sync_stack_size, async_stack_size } = koffi.config();
if (sync_stack_size !== STACK_BYTES || async_stack_size !== STACK_BYTES) {
  koffi.config({ ...koffi.config(), sync_stack_size: STACK_BYTES, async_stack_size: STACK_BYTES });
}

export { koffi };
