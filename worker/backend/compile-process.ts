// The process in which `compileApart` compiles one program; it is told which over the IPC channel of `fork`.
import { reportFatal } from '../../proto/errors.ts';
import type { CompileOrder } from './compile-apart.ts';
import { openDevices } from './devices.ts';
import { store } from './program-cache.ts';

// Whoever wanted the program is gone.
process.once('disconnect', () => {
  process.exit(1);
});
process.once('message', (message) => {
  const { devices, flags, deviceIndices, mlir, folder, file } = message as CompileOrder;
  void (async () => {
    const { client } = await openDevices(devices);
    const executable = await client.compile(mlir, { flags, deviceIndices });
    const numBytes = await store(folder, file, executable);
    process.exit(numBytes > 0 ? 0 : 1);
  })().catch(reportFatal);
});
