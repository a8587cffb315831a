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
  /** Name of a built-in recipe, or the text of one. */
  readonly recipe: string | { readonly text: string };
  /** Options and fields of `videoloom train`. */
  readonly train: readonly string[];
}

/** Where the claim is mounted, and commands run. */
export const VOLUME = '/videoloom';
/** Where a recipe of one's own is. */
const RECIPE = { folder: '/etc/videoloom', file: 'recipe.yaml' } as const;
const PORTS = { coordinator: 7077, metrics: 9464 } as const;
/** Time to end in order after SIGTERM, of which the worker leaves some to the kubelet. */
const GRACE_SECONDS = 60;
/** User and group of the image. */
const USER = 1000;
/** Stopped in order, can be started again. */
const EXIT_RESUMABLE = 75;
/** Of errors that would come again: a wrong config, a run that failed. */
const EXIT_FINAL = [1, 2];

/**
 * A Service and two Jobs: one pod leads the run, an indexed Job has its workers. Any Kubernetes from 1.31 on takes them as
 * they are; nothing has to be scheduled together, since a run begins after a minute with the workers that are there, and
 * others join it.
 */
export function manifests(options: ManifestOptions): object[] {
  const { name, out, run, recipe, workers, gpus, cpus, memory } = options;
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
      // A broken run is no better on another node; a worker that fails may have a broken node.
      onFinal: 'FailJob',
      args: [
        ...['train', isBuiltIn ? recipe : `${RECIPE.folder}/${RECIPE.file}`, ...options.train],
        ...['--out', out, '--hosts', 'none', '--listen', `0.0.0.0:${PORTS.coordinator}`],
        ...['--metrics', `0.0.0.0:${PORTS.metrics}`],
      ],
      resources: { requests: { cpu: '1', memory: '2Gi' }, limits: { memory: '8Gi' } },
      hasRecipe: !isBuiltIn,
    }),
    job(options, {
      name: `${name}-worker`,
      role: 'worker',
      count: workers,
      onFinal: 'FailIndex',
      args: [
        ...['worker', '--run', `${VOLUME}/${run}`, '--coordinator', coordinator],
        ...['--id', 'worker-$(INDEX)', '--listen', '$(POD_IP)'],
        ...['--metrics', `0.0.0.0:${PORTS.metrics}`],
        ...['--wait-hours', '24', '--grace-seconds', String(GRACE_SECONDS - 10)],
      ],
      resources: { requests: { cpu: cpus, memory }, limits: { memory, ...device } },
    }),
  ];
}

interface JobOptions {
  readonly name: string;
  readonly role: string;
  readonly count: number;
  readonly onFinal: 'FailJob' | 'FailIndex';
  readonly args: readonly string[];
  readonly resources: object;
  readonly hasRecipe?: boolean;
}

function job({ name: run, image, claim }: ManifestOptions, own: JobOptions): object {
  const { name, role, count, onFinal, args, resources, hasRecipe = false } = own;
  const field = (variable: string, fieldPath: string): object => ({
    name: variable,
    valueFrom: { fieldRef: { fieldPath } },
  });
  const onExit = (action: string, values: readonly number[]): object => ({
    action,
    onExitCodes: { containerName: role, operator: 'In', values },
  });
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
          onExit('Ignore', [EXIT_RESUMABLE]),
          onExit(onFinal, EXIT_FINAL),
        ],
      },
      template: {
        metadata: { labels: labels(run, role) },
        spec: {
          restartPolicy: 'Never',
          subdomain: run,
          terminationGracePeriodSeconds: GRACE_SECONDS,
          securityContext: {
            runAsNonRoot: true,
            ...{ runAsUser: USER, runAsGroup: USER, fsGroup: USER },
            // Else each start would open the keys of the run to the group, and be refused for that.
            fsGroupChangePolicy: 'OnRootMismatch',
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
              ],
              ports: Object.entries(PORTS)
                .filter(([each]) => role === 'leader' || each === 'metrics')
                .map(([each, containerPort]) => ({ name: each, containerPort })),
              resources,
              securityContext: {
                allowPrivilegeEscalation: false,
                capabilities: { drop: ['ALL'] },
              },
              volumeMounts: [
                { name: 'videoloom', mountPath: VOLUME },
                ...(hasRecipe ? [{ name: 'recipe', mountPath: RECIPE.folder }] : []),
              ],
            },
          ],
          volumes: [
            { name: 'videoloom', persistentVolumeClaim: { claimName: claim } },
            ...(hasRecipe ? [{ name: 'recipe', configMap: { name: run } }] : []),
          ],
        },
      },
    },
  };
}

function labels(name: string, role?: string): Record<string, string> {
  return {
    'app.kubernetes.io/name': 'videoloom',
    'app.kubernetes.io/instance': name,
    ...(role === undefined ? {} : { 'app.kubernetes.io/component': role }),
  };
}
