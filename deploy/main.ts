import { join } from 'node:path';
import { Command } from 'commander';
import { parseAddress, reachedAt } from '../proto/address.ts';
import { reportFatal, UsageError } from '../proto/errors.ts';
import { RECIPE_NAMES } from '../proto/recipe-names.ts';
import { optionsHelp, VERBS } from '../proto/verbs.ts';
import { runThrough } from './processes.ts';
import type { DrillFlags } from './drill/command.ts';
import type { KubernetesFlags } from './kubernetes/command.ts';
import type { EventsOptions } from './events.ts';
import type { OperatorOptions } from './ask-run.ts';
import type { StatusOptions } from './status.ts';

/** The `videoloom` command: picks the verb and starts that folder's main. */
const program = new Command('videoloom')
  .description(
    'Train video-language models: H.264 in, checkpoints out, the same bits on any number of workers.',
  )
  .version('0.1.0')
  .showHelpAfterError('(add --help for examples)');

const TLS_HELP =
  'certificates and token of `videoloom init --tls`; also VIDEOLOOM_TLS_DIR, or RUN/tls';
const METRICS_HELP =
  "address of the coordinator's /metrics, plain HTTP: whoever reaches it reads it";
const INSECURE_HELP = 'plain text, off the loopback too: whoever sees the traffic can join';

type RecipeOptions = Record<
  'preset' | 'stage' | 'data' | 'steps' | 'workers' | 'out',
  string | undefined
>;

/** A verb that takes a recipe, a preset and fields of the config. */
function recipeVerb(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .argument('<recipe>', `one of ${RECIPE_NAMES.join(', ')}, or the path of a YAML file`)
    .argument('[overrides...]', 'fields of the config, as train.steps=100')
    .option('--preset <name>', 'a preset of the recipe, such as tiny')
    .option(
      '--stage <name>',
      'one stage of a recipe of several (default: all, one after the other)',
    )
    .option(
      '--data <data>',
      'a folder or s3:// of videos with words, in any form (default: the demo world)',
    )
    .option('--steps <n>', 'length of the run')
    .option('--workers <n>', 'worker processes');
}

function prepareArgs(
  recipe: string,
  overrides: string[],
  options: RecipeOptions,
  numHosts = 0,
): [recipe: string, ...rest: string[]] {
  const set = [
    ...(numHosts === 0 ? [] : [`cluster.workers=${numHosts}`]),
    ...(options.data === undefined ? [] : [`data.folder=${JSON.stringify(options.data)}`]),
    ...(options.steps === undefined ? [] : [`train.steps=${options.steps}`]),
    ...(options.workers === undefined ? [] : [`cluster.workers=${options.workers}`]),
    ...overrides,
  ];
  return [
    recipe,
    ...(options.preset === undefined ? [] : ['--preset', options.preset]),
    ...(options.stage === undefined ? [] : ['--stage', options.stage]),
    ...(options.out === undefined ? [] : ['--out', options.out]),
    ...set.flatMap((override) => ['--set', override]),
  ];
}

/** What leads a run from here. */
interface LauncherFlags {
  readonly listen?: string;
  readonly metrics: string;
  readonly tls?: string;
  readonly insecure?: boolean;
  readonly hosts?: string;
  readonly ssh: string;
}

function launcherVerb(command: Command): Command {
  return command
    .option(
      '--listen <address>',
      'address of the coordinator (default: 127.0.0.1:0; with --hosts this machine by its name)',
    )
    .option('--metrics <address>', METRICS_HELP, '127.0.0.1:0')
    .option('--tls <dir>', TLS_HELP)
    .option('--insecure', INSECURE_HELP)
    .option(
      '--hosts <names>',
      'workers on these machines, by ssh (gpu-a,gpu-b), or on the nodes of this Slurm job (slurm); none: they come ' +
        'by themselves (videoloom worker)',
    )
    .option('--ssh <command>', 'how --hosts are logged in to', 'ssh');
}

async function launcherOptions(flags: LauncherFlags) {
  const { hosts: names, ssh, listen, metrics, tls, insecure } = flags;
  const { env } = process;
  const common = { metricsAddress: metrics, tls, insecure, env };
  if (names === undefined) return { ...common, hosts: [], listenAddress: listen ?? '127.0.0.1:0' };
  if (names === 'none') {
    // A leader that is started again is looked for where it was.
    if (listen === undefined || parseAddress(listen).port === 0) {
      throw new UsageError(
        'HOSTS_INVALID',
        '--hosts none: workers that come by themselves have to know where: give --listen with an address that they reach and ' +
          'a port, as --listen 10.0.0.7:7077.',
      );
    }
    return { ...common, hosts: [], startsNoWorkers: true, listenAddress: listen };
  }
  const { nameForOthers, openHosts } = await import('./hosts.ts');
  const hosts = await openHosts(names, { ssh, cwd: process.cwd(), env });
  // Where all addresses are meant, that name is what workers are given.
  const isNamed = listen !== undefined && reachedAt(listen, '') === listen;
  const ownName = isNamed ? '' : await nameForOthers();
  return { ...common, hosts, listenAddress: listen ?? `${ownName}:0` };
}

launcherVerb(
  recipeVerb('train', 'train a recipe; run it again to resume').option(
    '--out <dir>',
    'run folder (default: runs/<recipe>)',
  ),
)
  .addHelpText(
    'after',
    `
Examples:
  videoloom train videobert                                  the demo, two workers
  videoloom train videobert --preset tiny --steps 20         seconds instead of minutes
  videoloom train videobert --data ~/films --out runs/films  your own videos
  videoloom train videobert --workers 4 optimizer.learningRate=1e-3
  videoloom train my-recipe.yaml --metrics 127.0.0.1:9464    for Prometheus
  videoloom train videobert --hosts gpu-a,gpu-b              one worker on each, by ssh
  sbatch --nodes=4 deploy/slurm/train.sbatch videobert       one worker a node

With --hosts project, Node, data, run folder and ~/.cache are at the same paths on all machines, as on a shared home; a
worker that dies is started again there, and the others train without a machine that is gone. gRPC and gradients go over
TLS with certificates made in RUN/tls unless --tls or --insecure says otherwise.

All fields: worker/recipes/config.schema.json. Stop with Ctrl-C or \`videoloom stop RUN\`; the same command resumes.`,
  )
  .action(async (recipe: string, overrides: string[], options: RecipeOptions & LauncherFlags) => {
    const { leadRun } = await import('./launcher.ts');
    const launcher = await launcherOptions(options);
    process.exitCode = await leadRun({
      prepareArgs: prepareArgs(recipe, overrides, options, launcher.hosts.length),
      ...launcher,
      runFolder: options.out === undefined ? undefined : join(options.out, options.stage ?? ''),
    });
  });

launcherVerb(
  program
    .command('resume')
    .description(
      'go on with a run from its newest whole checkpoint, here or on a machine that has nothing of it',
    )
    .argument('<run>', 'run folder, or s3://bucket/prefix/<run id> below its checkpoint.store')
    .argument('[overrides...]', 'fields of the config that may differ, as cluster.detectWithin=5')
    .option('--out <dir>', 'folder for a run out of a store (default: runs/<run id>)')
    .option('--workers <n>', 'worker processes; any number gives the same bits'),
)
  .addHelpText(
    'after',
    `
Examples:
  videoloom resume runs/videobert
  videoloom resume runs/videobert --workers 4
  videoloom resume s3://bucket/runs/videobert --out runs/videobert   the data must be where they were`,
  )
  .action(
    async (
      run: string,
      overrides: string[],
      options: LauncherFlags & { out?: string; workers?: string },
    ) => {
      const { resumeRun } = await import('./resume.ts');
      const { out, workers } = options;
      const launcher = await launcherOptions(options);
      process.exitCode = await resumeRun(run, { overrides, out, workers, launcher });
    },
  );

recipeVerb('kubernetes', 'print the manifests of a run on Kubernetes')
  .requiredOption('--image <image>', 'made with deploy/kubernetes/Dockerfile')
  .requiredOption(
    '--claim <name>',
    'PersistentVolumeClaim that many nodes can write to: runs, and data that are given by a path',
  )
  .option('--name <name>', 'of the run, and beginning of all names (default: the recipe)')
  .option('--gpus <n>', 'of each worker', '0')
  .option('--cpus <n>', 'of each worker', '4')
  .option('--memory <amount>', 'of each worker', '16Gi')
  .option('--plugin <name>', 'cuda13, cuda12 or a path in the image (default with --gpus: cuda13)')
  .option('--wait-hours <n>', 'how long workers wait for a leader that prepares or is away', '6')
  .option('--secret <name>', 'a Secret whose keys become the environment, as AWS_SECRET_ACCESS_KEY')
  .option(
    '--pod <file>',
    "YAML with more fields of the pods' specs: nodeSelector, tolerations, ...",
  )
  .addHelpText(
    'after',
    `
Examples:
  videoloom kubernetes videobert --image registry.example/videoloom --claim films | kubectl apply -f -
  videoloom kubernetes my-recipe.yaml --workers 8 --gpus 8 --cpus 64 --memory 256Gi --image ... --claim films --data films/train

The claim is writable by user 1000; run folder and paths of data are below its root. A pod that dies or is moved joins
again. \`kubectl delete --cascade=foreground -f\` lets the run stop with a checkpoint and waits for it; then it goes on when
manifests are applied again, with any number of workers. \`videoloom stop\` stops it too, and its pods come again.
Prometheus finds all processes at http://NAME-leader-0.NAME:9464/sd.`,
  )
  .action(async (recipe: string, overrides: string[], options: RecipeOptions & KubernetesFlags) => {
    const { kubernetesCommand } = await import('./kubernetes/command.ts');
    const given = prepareArgs(recipe, overrides, { ...options, out: undefined });
    process.exitCode = await kubernetesCommand(given, options, (text) => {
      process.stdout.write(text);
    });
  });

recipeVerb('plan', 'what a run will take: memory, work, time a step; nothing is trained')
  .addHelpText(
    'after',
    `
Examples:
  videoloom plan videobert
  videoloom plan video-llava --preset paper --stage alignment
  videoloom plan videobert model.layers=12 model.width=512 engine.precision=bfloat16`,
  )
  .action(async (recipe: string, overrides: string[], options: RecipeOptions) => {
    process.exitCode = await runThrough('worker', [
      'plan',
      ...prepareArgs(recipe, overrides, options),
    ]);
  });

recipeVerb('drill', 'train a recipe while its processes are killed, and prove that nothing is lost')
  .option('--out <dir>', 'folder of the drill', 'runs/drill')
  .option(
    '--against <run>',
    'a finished run of the same config, instead of training one to compare',
  )
  .option('--kill-worker', 'kill -9 of a worker')
  .option('--pause-worker', 'a worker stands still (SIGSTOP)')
  .option('--kill-coordinator', 'kill -9 of the coordinator')
  .option('--join', 'one more worker while it trains')
  .option('--preempt [grace]', 'a worker gets SIGTERM, and SIGKILL after the grace (default: 30s)')
  .option('--corrupt [share]', 'so many of the media files are damaged in a copy (default: 1%)')
  .option('--full-disk', 'workers cannot write any more, for a while')
  .option('--drop-network', 'between a worker and the coordinator nothing arrives, for a while')
  .option('--seed <n>', 'draws the moments and who is hit', '1')
  .option('--json', 'the report as JSON on stdout')
  .addHelpText(
    'after',
    `
Without a fault among the options, all that can be done on this machine are done. Exits with 1 when a promise broke: the
final weights differ from the undisturbed run's, a sample was lost or used twice, a process or temporary file is left.

Examples:
  videoloom drill videobert --preset tiny
  videoloom drill my-recipe.yaml --data ~/films --steps 200 --kill-worker --kill-coordinator
  videoloom drill videobert --preset tiny --preempt 10s --corrupt 5% --json`,
  )
  .action(async (recipe: string, overrides: string[], options: RecipeOptions & DrillFlags) => {
    const { drillCommand } = await import('./drill/command.ts');
    const own = { ...options, out: undefined };
    process.exitCode = await drillCommand(prepareArgs(recipe, overrides, own), {
      ...{ ...options, out: options.out ?? 'runs/drill', env: process.env },
      hasSteps: options.steps !== undefined || overrides.some((o) => o.startsWith('train.steps=')),
    });
  });

const HELP_FLAGS = new Set(['--help', '-h']);

/**
 * A verb whose arguments go to another program as they are; so does `--help` where that program has a help of its own,
 * else `options` are those of a verb of the worker.
 */
function passOn(
  verb: string,
  target: {
    program: 'worker' | 'coordinator' | 'video';
    args: readonly string[];
    options?: keyof typeof VERBS;
    /** An option with which it is run again where it ended to be. */
    comesAgainWith?: string;
  },
  description: string,
  examples: readonly string[],
): void {
  const { options } = target;
  const shown = `\nExamples:\n${examples.map((example) => `  ${example}`).join('\n')}`;
  const command = program
    .command(verb)
    .description(description)
    .helpOption(false)
    .allowUnknownOption()
    .allowExcessArguments()
    .argument('[args...]')
    .action(async (args: string[]) => {
      const asksForHelp = args.some((arg) => HELP_FLAGS.has(arg));
      if (asksForHelp && options !== undefined) command.outputHelp();
      else {
        const { program: other, comesAgainWith: sign } = target;
        const comesAgain = sign !== undefined && args.some((arg) => arg.startsWith(sign));
        process.exitCode = await runThrough(other, [...target.args, ...args], { comesAgain });
      }
      if (asksForHelp && options === undefined && args.length === 1)
        process.stdout.write(`${shown}\n`);
    });
  if (options === undefined) command.addHelpText('after', shown);
  else {
    command.usage(VERBS[options].usage.replace(`videoloom ${verb} `, ''));
    command.addHelpText('after', `\nOptions:\n${optionsHelp(options)}\n${shown}`);
  }
}

passOn(
  'coordinator',
  { program: 'coordinator', args: [] },
  'serve a prepared run folder to workers',
  ['videoloom coordinator --run runs/videobert --listen 127.0.0.1:7077 --metrics 127.0.0.1:9464'],
);
passOn(
  'worker',
  { program: 'worker', args: ['train'], options: 'train', comesAgainWith: '--wait-hours' },
  'join a coordinator and train',
  [
    'videoloom worker --run runs/videobert --coordinator 127.0.0.1:7077 --id worker-0',
    'videoloom worker --run runs/videobert --coordinator 127.0.0.1:7077 --id worker-1 --engine cpu',
  ],
);
passOn('data', { program: 'video', args: [] }, 'make and look through data', [
  'videoloom data demo --out data/demo --train 512 --held-out 128     the demo world, real H.264',
  'videoloom data index ~/films                                       what would be trained on',
  'videoloom data index s3://bucket/shards --out films.jsonl          any form of data, from anywhere',
  'videoloom data look ~/films --out films.png                        frames and words, as a page',
  'videoloom data transcode ~/films ~/training                        H.264 out of anything FFmpeg reads',
  'videoloom data filter films.jsonl --out fewer.jsonl                without repetitions and bad words',
  'videoloom data pack films.jsonl shards                             tar shards that WebDataset reads too',
]);
passOn('engine', { program: 'worker', args: ['engine'] }, 'list, install and check the engines', [
  'videoloom engine list',
  'videoloom engine install cpu',
  'videoloom engine install tensorflow',
  'videoloom engine doctor',
]);
passOn(
  'look',
  { program: 'worker', args: ['look'], options: 'look' },
  'draw what the model sees and guesses, as an SVG page',
  ['videoloom look runs/videobert', 'videoloom look runs/videobert --clips 6 --out look.svg'],
);
passOn(
  'sample',
  { program: 'worker', args: ['sample'], options: 'sample' },
  'ask a trained run about a video; draws what it saw and said',
  [
    'videoloom sample runs/video-llava clip.mp4 "which way does it move ?"',
    'videoloom sample runs/videobert clip.mp4 "look now [MASK] and see [MASK]" --out said.png',
    'videoloom sample runs/clip clip.mp4 "a red circle moves left | a blue star moves up"',
    'videoloom sample runs/cm3leon picture.jpg "a red circle top left" --out drawn.png',
  ],
);
passOn(
  'probe',
  { program: 'worker', args: ['probe'], options: 'probe' },
  "what a run's figures are for one frame, shuffled and reversed frames",
  ['videoloom probe runs/videobert', 'videoloom probe runs/videobert --json'],
);

passOn(
  'evaluate',
  { program: 'worker', args: ['evaluate'], options: 'evaluate' },
  'have a run caption, answer about or find its held-out clips or those of a file, and score it; killed, it goes on',
  [
    'videoloom evaluate runs/video-ofa',
    'videoloom evaluate runs/video-llava "which way does it move ?" --clips 200 --json',
    'videoloom evaluate runs/clip --retrieval',
    'videoloom evaluate runs/clip --pairs swap_att.json --media coco/val2017',
    'videoloom evaluate runs/video-llava --questions coco_pope_popular.json --media coco/val2014',
  ],
);
passOn(
  'score',
  { program: 'worker', args: ['score'], options: 'score' },
  'score what whatever model has said, found or compared: captions, answers, POPE, CHAIR, retrieval, Winoground and its like',
  [
    'videoloom score captions captions.json annotations/captions_val2014.json',
    'videoloom score vqa answers.json v2_mscoco_val2014_annotations.json',
    'videoloom score answers runs/video-llava/answers.jsonl --json',
    'videoloom score pope answers.jsonl coco_pope_adversarial.json',
    'videoloom score chair captions.json instances_val2014.json captions_val2014.json --synonyms synonyms.txt',
    'videoloom score retrieval similarity.npy coco_karpathy_test.json',
    'videoloom score pairs winoground_scores.jsonl',
  ],
);

passOn(
  'export',
  { program: 'worker', args: ['export'], options: 'export' },
  'write the weights of a run as a folder in the layout of Hugging Face',
  [
    'videoloom export runs/videobert --out exported/videobert',
    'videoloom export runs/videobert --step 1000 --out exported/videobert-1000',
  ],
);

program
  .command('init')
  .description('make what a run over several machines needs: certificates and a join token')
  .requiredOption(
    '--tls <dir>',
    'folder to make them in, or that of a run which is there: it gets tls/',
  )
  .option(
    '--workers <n>',
    'certificates for worker-0 to worker-<n - 1> (default: 16, or those named)',
  )
  .option('--worker <id...>', 'certificates for workers of these names')
  .option('--nats <host...>', 'a certificate for a NATS server that is reached at these names')
  .option('--days <n>', 'how long certificates are valid', '90')
  .addHelpText(
    'after',
    `
Examples:
  videoloom init --tls ~/cluster --worker gpu-a gpu-b    and then each program with --tls ~/cluster
  videoloom init --tls runs/videobert                    a run that is there: programs find its tls/ by themselves
  videoloom init --tls ~/cluster                         again: same authority and token, certificates renewed`,
  )
  .action(
    async (
      options: Record<'tls' | 'days', string> & {
        workers?: string;
        worker?: string[];
        nats?: string[];
      },
    ) => {
      const { initTls } = await import('./init-tls.ts');
      await initTls({ ...options, say: (text) => process.stdout.write(text) });
    },
  );

program
  .command('status')
  .description('the state of a run')
  .argument('<run>', 'run folder or host:port of its coordinator')
  .option('--json', 'the whole status as JSON on stdout')
  .option('--watch', 'go on until the run ends')
  .option('--tls <dir>', TLS_HELP)
  .option('--insecure', INSECURE_HELP)
  .addHelpText(
    'after',
    `
Examples:
  videoloom status runs/videobert
  videoloom status 127.0.0.1:7077 --json
  videoloom status runs/videobert --watch`,
  )
  .action(async (run: string, options: Omit<StatusOptions, 'env'>) => {
    const { showStatus } = await import('./status.ts');
    await showStatus(run, { ...options, env: process.env });
  });

program
  .command('stop')
  .description('has a run stop after the step under way, and waits until its checkpoint is written')
  .argument('<run>', 'run folder or host:port of its coordinator')
  .option('--tls <dir>', TLS_HELP)
  .option('--insecure', INSECURE_HELP)
  .addHelpText(
    'after',
    `
As Ctrl-C at its launcher: for runs whose terminal is closed, or that another machine leads. Of a recipe with stages name
the folder of the stage that runs: its launcher then begins no other, unless that stage was at its end.

Examples:
  videoloom stop runs/videobert
  videoloom resume runs/videobert                         goes on with it`,
  )
  .action(async (run: string, options: Omit<OperatorOptions, 'env'>) => {
    const { stopRun } = await import('./stop.ts');
    process.exitCode = await stopRun(run, { ...options, env: process.env });
  });

program
  .command('events')
  .description('what happens to a run, as lines: what its NATS server keeps, then what comes')
  .argument('<run>', 'run folder, or the name of a run with --server')
  .option(
    '--server <url>',
    "nats://host:port or tls://host:port (default: the run's cluster.events)",
  )
  .option('--new', 'leave out what was before')
  .option('--json', 'whole events, CloudEvents as JSON')
  .option('--tls <dir>', TLS_HELP)
  .option('--insecure', INSECURE_HELP)
  .addHelpText(
    'after',
    `
Ends with the run. Any NATS client sees the same: nats sub 'videoloom.>'. What a server asks for beside a certificate
(credentials of nsc, user:password, a token) stands in the file that VIDEOLOOM_NATS_CREDENTIALS names.

Examples:
  videoloom train videobert cluster.events=nats://127.0.0.1:4222
  videoloom events runs/videobert
  videoloom events videobert --server tls://events.example --tls ~/cluster --json`,
  )
  .action(async (run: string, options: Omit<EventsOptions, 'env'>) => {
    const { showEvents } = await import('./events.ts');
    await showEvents(run, { ...options, env: process.env });
  });

program
  .command('quarantine')
  .description('the files that a run could not use, and why')
  .argument('<run>', 'run folder')
  .option('--out <file>', 'write them as JSON Lines too')
  .addHelpText('after', '\nExample:\n  videoloom quarantine runs/videobert --out bad-files.jsonl')
  .action(async (run: string, options: { out?: string }) => {
    const { showQuarantine } = await import('./reports/quarantine.ts');
    await showQuarantine(run, options);
  });

program
  .command('audit')
  .description('prove from journal, plan and checkpoints what a run did with each sample')
  .argument('<run>', 'run folder')
  .option('--json', 'all of it as JSON on stdout')
  .addHelpText(
    'after',
    `
Exits with 1 when a sample was lost or used twice, a record or a checkpoint is damaged, or the result is not what the
last checkpoint holds; each is named.

Examples:
  videoloom audit runs/videobert
  videoloom audit runs/videobert --json | jq .samples.substitutes`,
  )
  .action(async (run: string, options: { json?: boolean }) => {
    const { showAudit } = await import('./reports/audit.ts');
    process.exitCode = await showAudit(run, options);
  });

program
  .command('postmortem')
  .description('who stopped or diverged first, from the black boxes of the workers and the journal')
  .argument('<run>', 'run folder, of a run that has ended or one that lives')
  .option('--json', 'all of it as JSON on stdout')
  .addHelpText(
    'after',
    `
Workers that were killed or are stopped by a signal have left their last phases, collectives, plans and digests in
RUN/blackbox. Exits with 1 when somebody stopped or diverged.

Example:
  videoloom postmortem runs/videobert`,
  )
  .action(async (run: string, options: { json?: boolean }) => {
    const { showPostmortem } = await import('./reports/postmortem.ts');
    process.exitCode = await showPostmortem(run, options);
  });

program.parseAsync(process.argv).catch((error: unknown) => {
  process.exitCode = reportFatal(error);
});
