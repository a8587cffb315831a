import pc from 'picocolors';

/** One line on a terminal that is redrawn, or a plain line now and then where there is no terminal. */
export interface Progress {
  update(done: number, detail?: string): void;
  /** Leaves the finished line on screen. */
  done(detail?: string): void;
}

/** Where progress is drawn; `process.stderr` is one. */
export interface ProgressTarget {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

/** `1:05` or `2:03:09`. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '--:--';
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [
    Math.floor(whole / 3600),
    Math.floor(whole / 60) % 60,
    whole % 60,
  ];
  const padded = (n: number): string => String(n).padStart(2, '0');
  return hours > 0 ? `${hours}:${padded(minutes)}:${padded(rest)}` : `${minutes}:${padded(rest)}`;
}

/** `[#####     ]`, drawn with blocks. */
export function bar(share: number, width = 20): string {
  const eighths = Math.round(Math.min(1, Math.max(0, share)) * width * 8);
  const [full, rest] = [Math.floor(eighths / 8), eighths % 8];
  const partial = rest === 0 ? '' : ' ▏▎▍▌▋▊▉'[rest]!;
  return '█'.repeat(full) + partial + ' '.repeat(width - full - (rest === 0 ? 0 : 1));
}

/** A progress line `label  ████   | 12/48  0:03<0:09  detail`; at most 10 a second, plain lines every 5 s without a TTY. */
export function openProgress(
  label: string,
  total: number,
  {
    target = process.stderr,
    now = () => performance.now(),
  }: { target?: ProgressTarget; now?: () => number } = {},
): Progress {
  const startMs = now();
  const isTTY = target.isTTY === true;
  let lastMs = isTTY ? -Infinity : startMs;
  let finished = false;
  const draw = (done: number, detail: string): void => {
    const elapsed = (now() - startMs) / 1000;
    const left = done > 0 ? (elapsed / done) * (total - done) : Infinity;
    const times = `${formatDuration(elapsed)}<${formatDuration(left)}`;
    const text = `${label}  ${isTTY ? `${bar(done / total)}| ` : ''}${done}/${total}  ${times}  ${detail}`;
    if (isTTY) target.write(`\r\x1b[2K${text.slice(0, (target.columns ?? 120) - 1)}`);
    else target.write(`${text.trimEnd()}\n`);
  };
  return {
    update(done, detail = '') {
      const time = now();
      if (finished || time - lastMs < (isTTY ? 100 : 5000)) return;
      lastMs = time;
      draw(done, detail);
    },
    done(detail = '') {
      if (finished) return;
      finished = true;
      const elapsed = formatDuration((now() - startMs) / 1000);
      target.write(
        `${isTTY ? '\r\x1b[2K' : ''}${pc.green('✓')} ${label}  ${pc.dim(elapsed)}  ${detail}`.trimEnd() +
          '\n',
      );
    },
  };
}
