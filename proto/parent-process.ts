/** Exit code of a process that ended early and can be started again as it is: EX_TEMPFAIL of sysexits.h. */
export const EXIT_RESUMABLE = 75;

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
