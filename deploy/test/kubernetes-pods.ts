import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';
import { readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { childrenOf } from './children.ts';

/**
 * What a cluster makes of a Job, as far as that can be had without one: each pod in namespaces of its own, with an address
 * and a host name, the names of the Service and the claim where it is mounted, and another pod, at another address, where
 * the Job's own rules ask for it.
 */

const VIDEOLOOM = fileURLToPath(new URL('../videoloom.mjs', import.meta.url));

export interface Job {
  readonly metadata: { readonly name: string };
  readonly spec: {
    readonly completions: number;
    readonly backoffLimitPerIndex: number;
    readonly podFailurePolicy: { readonly rules: readonly Rule[] };
    readonly template: { readonly spec: PodSpec };
  };
}

interface Rule {
  readonly action: 'Ignore' | 'FailJob' | 'FailIndex' | 'Count';
  readonly onExitCodes?: { readonly values: readonly number[] };
}

interface PodSpec {
  readonly subdomain: string;
  readonly containers: readonly [
    {
      readonly args: readonly string[];
      readonly workingDir: string;
      readonly volumeMounts: readonly { readonly name: string; readonly mountPath: string }[];
    },
  ];
}

/** The network of pods, and the folders that their volumes are. */
export interface Cluster {
  /** By name. */
  readonly volumes: Readonly<Record<string, string>>;
  /** What names lead to, as it is now. */
  readonly hostsFile: string;
  /** A network namespace for a pod, with an address that `hostName` leads to from now on. */
  addPod(hostName: string): { readonly namespace: string; readonly address: string };
  removePod(namespace: string): void;
  close(): void;
}

/** Why pods cannot be had here; false where they can. */
export function podsMissing(): string | false {
  if (process.getuid?.() !== 0) return 'networks of pods are made by root alone';
  const fails = (program: string, ...args: string[]): boolean =>
    spawnSync(program, args).status !== 0;
  if (fails('ip', 'netns', 'list'))
    return 'there is no ip that lists network namespaces (Debian: iproute2)';
  return (
    fails('bwrap', '--dev-bind', '/', '/', '--unshare-pid', 'true') &&
    'there is no bwrap that may make namespaces (Debian: bubblewrap)'
  );
}

/** A bridge in a namespace of its own, away from this machine's networks. */
export function openCluster(folder: string, volumes: Cluster['volumes']): Cluster {
  const network = `videoloom-${randomBytes(4).toString('hex')}`;
  const hostsFile = join(folder, 'hosts');
  const addresses = new Map<string, string>();
  const spaces = new Set<string>();
  const ip = (...args: string[]): void => void execFileSync('ip', args);
  const writeHosts = (): void => {
    const lines = [...addresses].map(([name, address]) => `${address} ${name}\n`);
    // The same file: pods have it mounted.
    writeFileSync(hostsFile, `127.0.0.1 localhost\n${lines.join('')}`);
  };
  writeHosts();
  ip('netns', 'add', network);
  ip('-n', network, 'link', 'add', 'bridge', 'type', 'bridge');
  ip('-n', network, 'link', 'set', 'bridge', 'up');
  const close = (): void => {
    process.off('exit', close);
    for (const space of [...spaces, network]) {
      try {
        ip('netns', 'delete', space);
      } catch {
        // It is gone; the others are not.
      }
    }
    spaces.clear();
  };
  process.once('exit', close);
  let numPods = 0;
  return {
    volumes,
    hostsFile,
    addPod(hostName) {
      const number = ++numPods;
      const [namespace, port, address] = [
        `${network}-${number}`,
        `pod${number}`,
        `10.77.0.${number}`,
      ];
      ip('netns', 'add', namespace);
      spaces.add(namespace);
      ip(
        ...[
          '-n',
          network,
          'link',
          'add',
          port,
          'type',
          'veth',
          'peer',
          'name',
          'eth0',
          'netns',
          namespace,
        ],
      );
      ip('-n', network, 'link', 'set', port, 'master', 'bridge', 'up');
      ip('-n', namespace, 'address', 'add', `${address}/24`, 'dev', 'eth0');
      for (const device of ['lo', 'eth0']) ip('-n', namespace, 'link', 'set', device, 'up');
      addresses.set(hostName, address);
      writeHosts();
      return { namespace, address };
    },
    removePod(namespace) {
      if (spaces.delete(namespace)) ip('netns', 'delete', namespace);
    },
    close,
  };
}

/** The pods of a Job. */
export interface RunningJob {
  /** How it ended, once each index has. */
  readonly ended: Promise<'Complete' | 'Failed'>;
  /** How many pods were started. */
  readonly numPods: number;
  /** Exit codes of pods, in order; 137 of one that was killed. */
  readonly exitCodes: readonly number[];
  /** As the death of a node. */
  kill(index: number): void;
  /** As a node that is drained: SIGTERM to the program of the container. */
  drain(index: number): Promise<void>;
  /** As `kubectl delete`: all are drained, and no others come. */
  remove(): Promise<void>;
  /** What the pods wrote. */
  output(): string;
  killAll(): void;
}

export function startJob(job: Job, cluster: Cluster): RunningJob {
  const { completions, backoffLimitPerIndex, podFailurePolicy } = job.spec;
  const pods = new Map<number, ChildProcess>();
  const exitCodes: number[] = [];
  let [numPods, output, isOver] = [0, '', false];
  const runIndex = async (index: number): Promise<boolean> => {
    for (let failures = 0; !isOver;) {
      const { pod, namespace } = startPod(job, index, cluster);
      numPods++;
      pods.set(index, pod);
      for (const stream of [pod.stdout!, pod.stderr!])
        stream.on('data', (chunk: Buffer) => (output += chunk.toString()));
      const [exit] = (await once(pod, 'close')) as [number | null];
      cluster.removePod(namespace);
      const code = exit ?? 137;
      exitCodes.push(code);
      pods.delete(index);
      if (code === 0) return true;
      const rule = podFailurePolicy.rules.find(({ onExitCodes }) =>
        onExitCodes?.values.includes(code),
      );
      if (rule?.action === 'FailJob') killAll();
      if (rule?.action === 'FailJob' || rule?.action === 'FailIndex') return false;
      if (rule?.action !== 'Ignore' && ++failures > backoffLimitPerIndex) return false;
    }
    return false;
  };
  const drain = async (index: number): Promise<void> => {
    // ip becomes bwrap, whose child is the first process of the namespace; the program is the child of that.
    const [first] = await childrenOf(pods.get(index)!.pid!);
    const [program] = await childrenOf(first!.pid);
    process.kill(program!.pid, 'SIGTERM');
  };
  const killAll = (): void => {
    isOver = true;
    for (const pod of pods.values()) pod.kill('SIGKILL');
  };
  const indices = Array.from({ length: completions }, (_, index) => index);
  return {
    ended: Promise.all(indices.map(runIndex)).then((ends) =>
      ends.every(Boolean) ? 'Complete' : 'Failed',
    ),
    get numPods() {
      return numPods;
    },
    exitCodes,
    kill: (index) => pods.get(index)!.kill('SIGKILL'),
    drain,
    async remove() {
      isOver = true;
      await Promise.all([...pods.keys()].map(drain));
    },
    output: () => output,
    killAll,
  };
}

function startPod(
  { metadata, spec }: Job,
  index: number,
  cluster: Cluster,
): { pod: ChildProcess; namespace: string } {
  const { subdomain, containers } = spec.template.spec;
  const { args, workingDir, volumeMounts } = containers[0];
  const hostName = `${metadata.name}-${index}`;
  const { namespace, address } = cluster.addPod(`${hostName}.${subdomain}`);
  // The claim is mounted at a place that is not there: what is there is bound into a root of its own.
  const root = readdirSync('/', { withFileTypes: true }).flatMap((entry) => {
    const path = `/${entry.name}`;
    if (entry.isSymbolicLink()) return ['--symlink', readlinkSync(path), path];
    return entry.isDirectory() && !['proc', 'dev'].includes(entry.name)
      ? ['--bind', path, path]
      : [];
  });
  const variables: Record<string, string> = { INDEX: String(index), POD_IP: address };
  const expanded = args.map((arg) =>
    arg.replace(/\$\((\w+)\)/g, (_, name: string) => variables[name] ?? ''),
  );
  const pod = spawn(
    'ip',
    [
      ...['netns', 'exec', namespace, 'bwrap'],
      ...[...root, '--dev-bind', '/dev', '/dev', '--proc', '/proc', '--die-with-parent'],
      ...['--unshare-pid', '--unshare-uts', '--hostname', hostName],
      ...['--ro-bind', cluster.hostsFile, '/etc/hosts'],
      ...volumeMounts.flatMap(({ name, mountPath }) => [
        ...['--bind', cluster.volumes[name]!, mountPath],
      ]),
      ...['--chdir', workingDir, process.execPath, VIDEOLOOM, ...expanded],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  return { pod, namespace };
}
