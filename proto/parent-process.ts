/** Exit code of a process that ended early and can be started again as it is: EX_TEMPFAIL of sysexits.h. */
export const EXIT_RESUMABLE = 75;

/** How long a coordinator takes at most to end its step and a checkpoint when its machine is wanted or its launcher gone. */
export const GRACE_SECONDS = 30;

/**
 * A signal that comes again within is no further wish: npm sends its child one of its own right behind the terminal's,
 * and to a group of processes it comes from the sender and once more from a command that passes it on.
 */
export const SAME_WISH_MS = 1000;

/**
 * A closed terminal ends nothing, as who began with `nohup` expects: Node does not keep that SIGHUP was ignored. Nor does
 * the end of a program at the other end of a pipe: of Ctrl-C in `videoloom train | tee log` `tee` dies first, and the run
 * is to stop in order. What is written there from then on is lost.
 */
export function outliveTerminal(): void {
  process.on('SIGHUP', () => undefined);
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EIO' && error.code !== 'EPIPE') throw error;
    });
  }
}

/**
 * Calls `leave` once when the `videoloom` command that started this process is gone, however it went: the system
 * closes its end of the IPC channel between them even after a SIGKILL. Never called in a process without such a channel.
 */
export function onLauncherGone(leave: () => void): void {
  if (process.send === undefined) return;
  // It may have gone before anybody listened.
  if (process.connected) process.once('disconnect', leave);
  else leave();
  // Listening alone keeps nobody alive.
  process.channel?.unref();
}
