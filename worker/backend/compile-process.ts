// The process in which `compileApart` compiles one program; it is told which over the IPC channel of `fork`.
import type { CompileOrder, CompileReply } from './compile-apart.ts';
import { openDevices } from './devices.ts';
import { store } from './program-cache.ts';

/** At once: an orderly end would wait for a compilation under way. A file that is not whole has a temporary name. */
function end(): void {
  process.kill(process.pid, 'SIGKILL');
}

// Whoever wanted the program is gone.
process.once('disconnect', end);
process.once('message', (message) => {
  compile(message as CompileOrder)
    .catch((): CompileReply => 'failed')
    .then((reply) => process.send?.(reply, end))
    .catch(end);
});

async function compile({
  devices,
  flags,
  deviceIndices,
  mlir,
  folder,
  file,
}: CompileOrder): Promise<CompileReply> {
  const { client } = await openDevices(devices);
  const executable = await client.compile(mlir, { flags, deviceIndices });
  return (await store(folder, file, executable)) > 0 ? 'stored' : 'not stored';
}
