/**
 * Bottleneck adapters: what the attention and the MLP of each block give, h, becomes h + up(relu(down(h))) before it is
 * added to the states. `up` begins as zero, so that a model begins as it was. 2 D M + M + D parameters a place for a
 * width of M. Source: Houlsby et al. 2019, arXiv:1902.00751, sec. 2.1.
 */
import { initDense, type Bottleneck } from '../layers/dense.ts';
import type { Initializer } from '../initializer.ts';
import type { TensorTree } from '../tree.ts';
import { denseLayers, initByLayer, isNamed, withLayers, type ByLayer } from './dense-layers.ts';
import type { TunedModel, Tuning } from './tuning.ts';

export interface AdaptersConfig {
  /** Of the bottleneck. */
  readonly width: number;
}

export type AdapterParams = ByLayer<Bottleneck>;

/** The last layers of attention and of MLPs, as the decoders call them. */
const LAST_LAYERS = ['attention/output', 'mlp/down', 'mlpOut'];

export function initAdapters(
  init: Initializer,
  params: TensorTree,
  { width }: AdaptersConfig,
): AdapterParams {
  const places = denseLayers(params).filter(({ path }) =>
    LAST_LAYERS.some((name) => isNamed(path, name)),
  );
  return initByLayer(init, places, (own, { path, numOut }) => ({
    down: initDense(own, `${path}/down`, numOut, width),
    up: {
      kernel: own.fill(`${path}/up/kernel`, [width, numOut], 0),
      bias: own.fill(`${path}/up/bias`, [numOut], 0),
    },
  }));
}

export function withAdapters<T extends TensorTree>(params: T, adapters: AdapterParams): T {
  return withLayers(params, adapters, (layer, adapter) => ({ ...layer, adapter }));
}

export function adapters(
  config: AdaptersConfig,
  { form, decoder }: TunedModel,
): Tuning<AdapterParams> {
  return {
    init: (init) => initAdapters(init, form, config),
    fixed: {},
    adapted: (params, own) => withAdapters(params, own),
    decoder,
    kind: { tuning: 'adapters' },
  };
}
