import type { RunPlan } from '../../proto/run-plan.ts';
import type { ExportedPart, LeftOutPart } from './export-published.ts';

/** What stands beside exported weights: what the names and numbers in them mean, for whoever reads them elsewhere. */
export function modelCard({
  name,
  plan,
  step,
  files,
  published,
  leftOut,
}: {
  readonly name: string;
  readonly plan: RunPlan;
  readonly step: number;
  readonly files: readonly string[];
  /** Folders with what transformers has too, and the classes that load them. */
  readonly published: readonly ExportedPart[];
  readonly leftOut: readonly LeftOutPart[];
}): string {
  return `# ${plan.runId}

A \`${name}\` trained with Videoloom, as it was after step ${step} of ${plan.totalSteps}.

- \`model.safetensors\` (or shards, with \`model.safetensors.index.json\`): float32, little-endian. A tensor's name is the
  path of the parameter. A \`kernel\` of a linear layer is [in, out] (PyTorch keeps [out, in]); \`scale\` and \`offset\` of a norm
  are PyTorch's \`weight\` and \`bias\`; the number in \`blocks/3/…\` is that of the layer, from 0.
- \`config.json\`: \`model\` has the sizes of the architecture, \`input\` what it is shown, \`videoloom\` the run, with the SHA-256
  of the weights that the run reported.
${
  files.some((file) => file.startsWith('tokenizer'))
    ? '- `tokenizer.json`: read by `tokenizers` (`Tokenizer.from_file`) and `transformers` (`PreTrainedTokenizerFast`).\n'
    : ''
}${
    files.includes('visual-vocabulary.safetensors')
      ? '- `visual-vocabulary.safetensors`: the hierarchical k-means that turns features of frames into visual words.\n'
      : ''
  }${files.includes('frozen.safetensors') ? '- `frozen.safetensors`: parameters that the run did not train.\n' : ''}${published
    .map(({ folder, className }) =>
      className === 'PeftModel'
        ? `- \`${folder}\`: an adapter of peft: \`PeftModel.from_pretrained(language_model, "${folder}")\`.\n`
        : `- \`${folder}\`: what transformers has too, under its names: \`${className}.from_pretrained("${folder}")\`.\n`,
    )
    .join('')}${leftOut.map(({ folder, why }) => `- \`${folder}\` is not here: ${why}.\n`).join('')}
\`\`\`python
from safetensors.numpy import load_file
weights = load_file("${files.find((file) => file.startsWith('model')) ?? 'model.safetensors'}")
\`\`\`
`;
}
