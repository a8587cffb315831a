// Layers, lowest first: proto <- video <- worker and proto <- coordinator; deploy starts processes.
import tseslint from 'typescript-eslint';

const forbid = (folders, why) => ({
  'no-restricted-imports': [
    'error',
    { patterns: folders.map((folder) => ({ group: [`**/${folder}/**`], message: why })) },
  ],
});

export default tseslint.config(
  { ignores: ['node_modules/**', 'proto/gen/**', 'runs/**', 'data/**'] },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: {
      parserOptions: { project: '../tsconfig.json', tsconfigRootDir: import.meta.dirname },
    },
    rules: {
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/no-unnecessary-condition': [
        'error',
        { allowConstantLoopConditions: true },
      ],
      // node:test's describe/it return promises that the runner itself awaits.
      '@typescript-eslint/no-floating-promises': [
        'error',
        {
          allowForKnownSafeCalls: [
            { from: 'package', package: 'node:test', name: ['test', 'it', 'describe', 'suite'] },
          ],
        },
      ],
    },
  },
  {
    files: ['proto/**'],
    rules: forbid(['video', 'worker', 'coordinator', 'deploy'], 'proto is the lowest layer'),
  },
  {
    files: ['video/**'],
    rules: forbid(['worker', 'coordinator', 'deploy'], 'video imports proto alone'),
  },
  {
    files: ['worker/**'],
    rules: forbid(['coordinator', 'deploy'], 'worker imports proto and video'),
  },
  {
    files: ['coordinator/**'],
    rules: forbid(['video', 'worker', 'deploy'], 'coordinator imports proto alone'),
  },
  {
    // Reports read what the others have left in a run folder.
    files: ['deploy/**'],
    ignores: ['deploy/reports/**'],
    rules: forbid(
      ['video', 'worker', 'coordinator'],
      'deploy starts processes and imports proto alone',
    ),
  },
  // A test may look at what another folder's process left behind; benches share their tools.
  {
    files: ['**/test/**', '**/*.test.ts', 'video/bench/**', 'deploy/bench/**'],
    rules: { 'no-restricted-imports': 'off' },
  },
  {
    files: ['worker/models/**', 'worker/tokens/**', 'worker/losses.ts', 'worker/optim/**'],
    ignores: ['**/*.test.ts'],
    rules: forbid(
      ['backend', 'pjrt', 'parallel', 'stablehlo', 'gen'],
      'models run on any tfjs backend',
    ),
  },
);
