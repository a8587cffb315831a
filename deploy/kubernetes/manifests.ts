import { EXIT_USAGE, UsageError } from '../../proto/errors.ts';
import { EXIT_RESUMABLE } from '../../proto/parent-process.ts';

/** What a run takes on Kubernetes. */
export interface ManifestOptions {
  /** Beginning of all names. */
  readonly name: string;
  /** Run folder that the command makes, on the claim, and below it that of the stage. */
  readonly out: string;
  readonly run: string;
  readonly image: string;
  /** A PersistentVolumeClaim that many nodes can write to: run folder, and data that are given by a path. */
  readonly claim: string;
  readonly workers: number;
  /** Of each worker. */
  readonly gpus: number;
  readonly cpus: string;
  readonly memory: string;
  readonly engine: string;
  /** Of the engine xla; undefined: what the image says. */
  readonly plugin: string | undefined;
  /** How long workers wait for their leader. */
  readonly waitHours: number;
  /** A Secret whose keys are variables of the environment, such as those for S3. */
  readonly secret: string | undefined;
  /** Fields of both pods' specs: what the cluster wants beside. Lists are added to those that are there. */
  readonly pod: Readonly<Record<string, unknown>>;
  /** Name of a built-in recipe, or the text of one. */
  readonly recipe: string | { readonly text: string };
  /** Options and fields of `videoloom train`. */
  readonly train: readonly string[];
}

/** Where the claim is mounted, and commands run. */
const VOLUME = '/videoloom';
/** Where a recipe of one's own is. */
const RECIPE = { folder: '/etc/videoloom', file: 'recipe.yaml' } as const;
const PORTS = { coordinator: 7077, metrics: 9464 } as const;
/** Time to end in order after SIGTERM unless the fields of a pod say another; the worker leaves some to the kubelet. */
const GRACE_SECONDS = 60;
/** User and group of the image. */
const USER = 1000;
/** A pod of a node that does not answer is given up after, seconds; by itself after five minutes. */
const NODE_GONE_SECONDS = 30;

/**
 * A Service and two Jobs: one pod leads the run, an indexed Job has its workers. Any Kubernetes from 1.31 on takes them as
 * they are; nothing has to be scheduled together, since a run begins after a minute with the workers that are there, and
 * others join it.
 */
export function manifests(options: ManifestOptions): object[] {
  const { name, out, run, recipe, workers, gpus, cpus, memory, engine } = options;
  const { terminationGracePeriodSeconds: grace = GRACE_SECONDS } = options.pod;
  if (typeof grace !== 'number' || grace < 20) {
    throw new UsageError(
      'KUBERNETES_INVALID',
      '--pod: terminationGracePeriodSeconds is to be 20 or more.',
    );
  }
  const leader = `${name}-leader`;
  // The name of the first pod of an indexed Job, below the Service.
  const coordinator = `${leader}-0.${name}:${PORTS.coordinator}`;
  const device = gpus === 0 ? {} : { 'nvidia.com/gpu': String(gpus) };
  const isBuiltIn = typeof recipe === 'string';
  return [
    ...(isBuiltIn
      ? []
      : [
          {
            apiVersion: 'v1',
            kind: 'ConfigMap',
            metadata: { name, labels: labels(name) },
            data: { [RECIPE.file]: recipe.text },
          },
        ]),
    {
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name, labels: labels(name) },
      spec: {
        clusterIP: 'None',
        selector: labels(name),
        publishNotReadyAddresses: true,
        ports: Object.entries(PORTS).map(([each, port]) => ({ name: each, port })),
      },
    },
    job(options, {
      name: leader,
      role: 'leader',
      count: 1,
      args: [
        ...['train', isBuiltIn ? recipe : `${RECIPE.folder}/${RECIPE.file}`, ...options.train],
        ...['--out', out, '--hosts', 'none', '--listen', `0.0.0.0:${PORTS.coordinator}`],
        ...['--metrics', `0.0.0.0:${PORTS.metrics}`],
      ],
      resources: { requests: { cpu: '1' }, limits: { memory } },
      // Whoever makes room for others is to take a worker: without its leader the whole run stops.
      annotations: {
        'cluster-autoscaler.kubernetes.io/safe-to-evict': 'false',
        'karpenter.sh/do-not-disrupt': 'true',
      },
      mounts: isBuiltIn ? {} : { [RECIPE.folder]: { name: 'recipe', configMap: { name } } },
    }),
    job(options, {
      name: `${name}-worker`,
      role: 'worker',
      count: workers,
      args: [
        ...['worker', '--run', `${VOLUME}/${run}`, '--coordinator', coordinator],
        ...['--id', 'worker-$(INDEX)', '--listen', '$(POD_IP)', '--engine', engine],
        ...['--metrics', `0.0.0.0:${PORTS.metrics}`],
        ...['--wait-hours', String(options.waitHours), '--grace-seconds', String(grace - 10)],
      ],
      resources: { requests: { cpu: cpus, memory }, limits: { memory, ...device } },
      // NCCL's, of which a container has 64 MiB by itself.
      mounts: gpus > 1 ? { '/dev/shm': { name: 'shm', emptyDir: { medium: 'Memory' } } } : {},
    }),
  ];
}

interface JobOptions {
  readonly name: string;
  readonly role: string;
  readonly count: number;
  readonly args: readonly string[];
  readonly resources: object;
  readonly annotations?: Readonly<Record<string, string>>;
  /** Volumes by where they are mounted, beside the claim. */
  readonly mounts: Readonly<
    Record<string, { readonly name: string; readonly [source: string]: unknown }>
  >;
}

function job(options: ManifestOptions, own: JobOptions): object {
  const { name: run, image, claim, plugin, secret, pod } = options;
  const { name, role, count, args, resources, annotations } = own;
  const mounts = {
    [VOLUME]: { name: 'videoloom', persistentVolumeClaim: { claimName: claim } },
    ...own.mounts,
  };
  const field = (variable: string, fieldPath: string): object => ({
    name: variable,
    valueFrom: { fieldRef: { fieldPath } },
  });
  const onExit = (action: string, code: number): object => ({
    action,
    onExitCodes: { containerName: role, operator: 'In', values: [code] },
  });
  const tolerations = ['not-ready', 'unreachable'].map((state) => ({
    key: `node.kubernetes.io/${state}`,
    operator: 'Exists',
    effect: 'NoExecute',
    tolerationSeconds: NODE_GONE_SECONDS,
  }));
  return {
    apiVersion: 'batch/v1',
    kind: 'Job',
    metadata: { name, labels: labels(run, role) },
    spec: {
      completionMode: 'Indexed',
      completions: count,
      parallelism: count,
      // For what a pod does not answer for: a node that is drained or wanted for others takes none of its tries.
      backoffLimitPerIndex: 20,
      podFailurePolicy: {
        rules: [
          { action: 'Ignore', onPodConditions: [{ type: 'DisruptionTarget', status: 'True' }] },
          onExit('Ignore', EXIT_RESUMABLE),
          onExit('FailIndex', EXIT_USAGE),
        ],
      },
      template: {
        metadata: { labels: labels(run, role), ...(annotations && { annotations }) },
        spec: withFields(pod, {
          restartPolicy: 'Never',
          subdomain: run,
          terminationGracePeriodSeconds: GRACE_SECONDS,
          tolerations,
          // No fsGroup: it would give the whole claim to a group, keys of the run among it, which are refused then.
          securityContext: {
            runAsNonRoot: true,
            ...{ runAsUser: USER, runAsGroup: USER },
            seccompProfile: { type: 'RuntimeDefault' },
          },
          containers: [
            {
              name: role,
              image,
              args,
              workingDir: VOLUME,
              env: [
                field('INDEX', "metadata.annotations['batch.kubernetes.io/job-completion-index']"),
                field('POD_IP', 'status.podIP'),
                ...(plugin === undefined ? [] : [{ name: 'PJRT_PLUGIN_PATH', value: plugin }]),
              ],
              ...(secret === undefined ? {} : { envFrom: [{ secretRef: { name: secret } }] }),
              ports: Object.entries(PORTS)
                .filter(([each]) => role === 'leader' || each === 'metrics')
                .map(([each, containerPort]) => ({ name: each, containerPort })),
              resources,
              securityContext: {
                allowPrivilegeEscalation: false,
                capabilities: { drop: ['ALL'] },
              },
              volumeMounts: Object.entries(mounts).map(([mountPath, volume]) => ({
                ...{ name: volume.name, mountPath },
              })),
            },
          ],
          volumes: Object.values(mounts),
        }),
      },
    },
  };
}

/** `spec` with further fields; lists become longer, and objects have the fields of both. */
function withFields(
  fields: Readonly<Record<string, unknown>>,
  spec: Readonly<Record<string, unknown>>,
): object {
  const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  const merged = Object.entries(fields).map(([name, value]) => {
    const there = spec[name];
    if (Array.isArray(there) && Array.isArray(value)) return [name, there.concat(value)];
    if (isObject(there) && isObject(value)) return [name, withFields(value, there)];
    return [name, value];
  });
  return { ...spec, ...(Object.fromEntries(merged) as object) };
}

function labels(name: string, role?: string): Record<string, string> {
  return {
    'app.kubernetes.io/name': 'videoloom',
    'app.kubernetes.io/instance': name,
    ...(role === undefined ? {} : { 'app.kubernetes.io/component': role }),
  };
}
