/** How the benchmarks tell what they measured: a JSON line a figure. */

/** A measured figure. */
export interface Measured {
  readonly name: string;
  readonly metric: string;
  readonly value: number;
  readonly unit: string;
  /** Which of two values is the better one, where it is set beside that of a peer. */
  readonly better?: 'higher' | 'lower';
}

/** The same figure of somebody else's program, measured in the same run. */
export interface PeerValue {
  readonly name: string;
  readonly value: number;
}

const DIGITS = 4;

/** Prints a figure, beside each peer's if there are any; a ratio above 1 means that ours is better. */
export function report(figure: Measured, peers: readonly PeerValue[] = []): void {
  const { name, metric, value, unit, better = 'higher' } = figure;
  const ours = { name, metric, value: rounded(value), unit };
  if (peers.length === 0) printLine(ours);
  for (const peer of peers) {
    const ratio = better === 'higher' ? value / peer.value : peer.value / value;
    const beside = { peer: peer.name, peer_value: rounded(peer.value), ratio: rounded(ratio) };
    printLine({ ...ours, ...beside });
  }
}

/** The middle value, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function rounded(value: number): number {
  return Number(value.toPrecision(DIGITS));
}

function printLine(line: Readonly<Record<string, string | number>>): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
